"""Whether the layers that a student keeps are in it what they were in its teacher.

Many configs say what kind a layer is by its number: every sixth attends to all of the text, the
first three have no experts. In a student the same words would make other layers of the weights.
What transformers tells of each layer is written out, and both models are laid side by side without
weights. Imported by children only, since it imports torch and transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers import AutoModelForCausalLM

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods import older_transformers
from kubequant_worker.methods.student_layers import FIELD, is_of_layers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PLAIN: Final = (bool, int, float, str, type(None))
# What a model's own code raises that cannot be laid out without weights.
_NEEDS_WEIGHTS: Final = (NotImplementedError, RuntimeError)


def read_config(path: str, field: str, *, trusted: bool) -> Any:
    """Return a checkpoint's config; raises BadRequestError, by `field`, where it cannot be."""
    try:
        return older_transformers.config(
            Path(path), trust_remote_code=trusted, local_files_only=True
        )
    except (ImportError, KeyError, TypeError, ValueError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise BadRequestError(
            f"{field}: transformers does not read config.json: {said[:300]}",
            reason=FailureReason.UNSUPPORTED_MODEL,
            advice=f"take a model that this version of transformers knows, or name another, "
            f"smaller one in {FIELD}.uri",
        ) from error


def layer_lists(path: str, layers: int, *, trusted: bool) -> dict[str, list[Any]]:
    """Return what transformers tells of each of the `layers` layers, by its names in a config."""
    config = read_config(path, "spec.model", trusted=trusted)
    return {
        name: list(value)
        for name, value in config.to_dict().items()
        if is_of_layers(name, value, layers)
    }


def require_same_layers(teacher: Any, student: Any, kept: Sequence[int], *, trusted: bool) -> None:
    """Raise BadRequestError where a layer of the student is not as the one it was made of.

    Both are configs; `kept` has the teacher's numbers of the student's layers.
    """
    try:
        before, after = (_layers(one, trusted=trusted) for one in (teacher, student))
    except _NEEDS_WEIGHTS:
        return
    for name, theirs in before.items():
        ours = after.get(name, ())
        if len(ours) != len(kept):
            continue  # no list of the model's layers, like a layer's experts
        for new, old in enumerate(kept):
            if told := _difference(theirs[old], ours[new], old, new):
                raise BadRequestError(
                    f"{FIELD}.keepLayers: layer {new} of the student would not be as layer {old} "
                    f"of the teacher, of which it is made: {told}. config.json says what a layer "
                    "is by its number, and transformers has no list for it",
                    reason=FailureReason.UNSUPPORTED_MODEL,
                    advice=f"set {FIELD}.keepLayers to another number, or name a smaller model in "
                    f"{FIELD}.uri",
                )


def _layers(config: Any, *, trusted: bool) -> dict[str, Sequence[torch.nn.Module]]:
    """Return the model's outermost lists of modules, by their names; nothing is allocated."""
    factory: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model = factory.from_config(config, trust_remote_code=trusted)
    lists = {name: one for name, one in model.named_modules() if _is_list(one)}
    return {
        name: list(one)
        for name, one in lists.items()
        if not any(name.startswith(f"{other}.") for other in lists)
    }


def _is_list(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.ModuleList)


def _difference(theirs: torch.nn.Module, ours: torch.nn.Module, old: int, new: int) -> str:
    """Return in words how two layers differ, but for their numbers; "" where they do not."""
    first, second = _told(theirs), _told(ours)
    for name in sorted(first.keys() | second.keys()):
        left, right = first.get(name, "missing"), second.get(name, "missing")
        if left != right and (left, right) != (old, new):
            return f"{name} is {right} and not {left}"
    return ""


def _told(layer: torch.nn.Module) -> Mapping[str, object]:
    """Return everything that is plain to see of a layer: kinds, shapes, settings."""
    told: dict[str, object] = {}
    for name, module in layer.named_modules():
        place = f"{name}." if name else ""
        told[f"{place}class"] = type(module).__name__
        told |= {
            f"{place}{part}": tuple(parameter.shape)
            for part, parameter in module.named_parameters(recurse=False)
        }
        told |= {
            f"{place}{part}": value
            for part, value in vars(module).items()
            if isinstance(value, _PLAIN) and not part.startswith("_")
        }
    return told
