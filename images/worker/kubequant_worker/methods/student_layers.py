"""A student made of some of its teacher's layers: their files copied, tensor by tensor.

No engine is needed and no tensor is held in memory: names are changed in the headers and bytes are
copied as they are, so the student's tensors are the teacher's own.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods.tensor_copy import Copied, copy_tensors
from kubequant_worker.sources.model_folder import INDEX, model_config
from kubequant_worker.sources.safetensors_header import read_header

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from kubequant_worker.sources.safetensors_header import TensorSpan

FIELD: Final = "spec.distill.student"
# What architectures of transformers call the number of their layers.
_COUNTS: Final = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
# What says how many of the first layers have no experts.
_FIRST: Final = ("first_k_dense_replace",)
_NUMBERED: Final = re.compile(r"((?:[^.]+[.])*?)([0-9]+)[.](.+)")


@dataclass(frozen=True, slots=True)
class Cut:
    """Which layers of a teacher its student keeps, in their order."""

    kept: tuple[int, ...]
    teacher_layers: int

    @property
    def share(self) -> float:
        """Return the share of the layers that is kept."""
        return len(self.kept) / self.teacher_layers


def cut_of(config: Mapping[str, Any], keep: int | None) -> Cut:
    """Return the layers to keep of a teacher with this config.json: `keep` of them, or half.

    They are spread evenly, the first and the last among them.

    Raises:
        BadRequestError: The teacher does not say how many layers it has, or has no more than that.
    """
    layers = _layer_count(config)
    wanted = (layers + 1) // 2 if keep is None else keep
    if wanted >= layers:
        raise BadRequestError(
            f"{FIELD}.keepLayers: {wanted} of {layers} layers are no smaller model; keep fewer "
            "than the teacher has"
            if layers > 1
            else f"{FIELD}: the teacher has one layer, of which none can be left out",
            advice=f"set {FIELD}.keepLayers below {layers}"
            if layers > 1
            else f"name a smaller model in {FIELD}.uri",
        )
    last = layers - 1
    steps = max(1, wanted - 1)
    return Cut(tuple((2 * n * last + steps) // (2 * steps) for n in range(wanted)), layers)


def _layer_count(config: Mapping[str, Any]) -> int:
    found = [config[name] for name in _COUNTS if isinstance(config.get(name), int)]
    if not found or found[0] < 1:
        raise BadRequestError(
            f"{FIELD}: config.json of the teacher does not say how many layers it has "
            f"({', '.join(_COUNTS)}), so none can be left out",
            reason=FailureReason.UNSUPPORTED_MODEL,
            advice=f"name a smaller model in {FIELD}.uri",
        )
    return int(found[0])


def student_bytes(weights: int, config: Mapping[str, Any], cut: Cut) -> int:
    """Return about how many bytes the student's weights take, of a teacher's `weights` in 16 bits.

    Embeddings and output head stay whole.
    """
    vocabulary, hidden = config.get("vocab_size"), config.get("hidden_size")
    ends = 0
    if isinstance(vocabulary, int) and isinstance(hidden, int):
        matrices = 1 if config.get("tie_word_embeddings") else 2
        ends = min(weights, 2 * vocabulary * hidden * matrices)
    return ends + int((weights - ends) * cut.share)


def make_student(
    teacher: Path, target: Path, cut: Cut, lists: Mapping[str, Sequence[Any]] | None = None
) -> None:
    """Write the student's checkpoint, weights and config.json, into the folder `target`.

    `lists` has what is known of each of the teacher's layers beside what its config.json says.

    Raises:
        BadRequestError: The teacher's weights are no safetensors, or its layers cannot be told by
            their names.
    """
    files = sorted(teacher.glob("*.safetensors"))
    _require_safetensors(path.name for path in files)
    headers = {path: read_header(path) for path in files}
    prefix = _layers_prefix((span.name for spans in headers.values() for span in spans), cut)
    places = {f"{prefix}{old}.": f"{prefix}{new}." for new, old in enumerate(cut.kept)}
    target.mkdir(parents=True, exist_ok=True)
    shards: dict[str, str] = {}
    total = 0
    for path, spans in headers.items():
        kept = [(span, _renamed(span.name, prefix, places)) for span in spans]
        written = _copy(path, target / path.name, [(s, name) for s, name in kept if name])
        shards |= dict.fromkeys(written, path.name)
        total += sum(written.values())
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(shards.items()))}
        (target / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    said = model_config(teacher)
    left_out = {name: one for name, one in (lists or {}).items() if said.get(name) is None}
    config = shortened({**said, **left_out}, cut)
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def require_layers(teacher: Path, files: Iterable[str], cut: Cut) -> None:
    """Raise as `make_student` does where that is told before any weight is there.

    `files` are the names of all that the teacher has; of them, the folder `teacher` holds the small
    ones. A model of one file tells the names of its tensors in that file alone.
    """
    _require_safetensors(files)
    if (teacher / INDEX).is_file():
        try:
            index = json.loads((teacher / INDEX).read_text(encoding="utf-8"))
            names = list(index["weight_map"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return  # what is wrong with it is said where the weights are checked
        _layers_prefix(map(str, names), cut)


def _require_safetensors(files: Iterable[str]) -> None:
    if not any(name.endswith(".safetensors") for name in files):
        raise BadRequestError(
            f"{FIELD}: layers can be left out of safetensors only, and the teacher's weights are "
            "none",
            reason=FailureReason.UNSUPPORTED_MODEL,
            advice=f"convert the teacher to safetensors, or name a smaller model in {FIELD}.uri",
        )


def shortened(config: Mapping[str, Any], cut: Cut) -> dict[str, Any]:
    """Return a config.json with the layers of `cut`: their number, and every list of one a layer.

    How many of the first layers are of another kind than the rest is counted anew.
    """
    changed = dict(config)
    for name, value in config.items():
        if name in _COUNTS:
            changed[name] = len(cut.kept)
        elif name in _FIRST and isinstance(value, int):
            changed[name] = sum(index < value for index in cut.kept)
        elif is_of_layers(name, value, cut.teacher_layers):
            changed[name] = [value[index] for index in cut.kept]
    if "attention_types" in changed and "attention_layers" in changed:  # GPT-Neo's, one of other
        changed["attention_types"] = [[changed["attention_layers"], 1]]
    return changed


def is_of_layers(name: str, value: object, layers: int) -> bool:
    """Say whether a config's value tells of each of its `layers` layers: by its name and length."""
    return isinstance(value, list) and "layer" in name and len(value) == layers


def _layers_prefix(names: Iterable[str], cut: Cut) -> str:
    """Return what stands before the number of a layer in its tensors' names."""
    numbers: dict[str, set[int]] = defaultdict(set)
    for name in names:
        if found := _NUMBERED.fullmatch(name):
            numbers[found[1]].add(int(found[2]))
    whole = set(range(cut.teacher_layers))
    fitting = [prefix for prefix, seen in numbers.items() if seen == whole]
    if len(fitting) != 1:
        told = ", ".join(f"{prefix}N" for prefix in fitting) or "none"
        raise BadRequestError(
            f"{FIELD}: the teacher's {cut.teacher_layers} layers cannot be told by the names of "
            f"its tensors (found: {told})",
            reason=FailureReason.UNSUPPORTED_MODEL,
            advice=f"name a smaller model in {FIELD}.uri",
        )
    return fitting[0]


def _renamed(name: str, prefix: str, places: Mapping[str, str]) -> str:
    """Return a tensor's name in the student, "" where its layer is left out."""
    found = _NUMBERED.fullmatch(name)
    if found is None or found[1] != prefix:
        return name
    place = places.get(f"{prefix}{found[2]}.")
    return f"{place}{found[3]}" if place else ""


def _copy(source: Path, target: Path, kept: Sequence[tuple[TensorSpan, str]]) -> dict[str, int]:
    """Write a file of these tensors of another under new names; return their names and bytes."""
    tensors = [Copied(span, name, span.dtype) for span, name in kept]
    copy_tensors(source, target, tensors, {"format": "pt"})
    return {one.name: one.size for one in tensors}
