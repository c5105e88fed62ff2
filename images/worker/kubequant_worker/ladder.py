"""The ladders of onGateFailure: Escalate: from each setting to the next more careful ones.

A literal table and pure functions over it. A ladder is made of what one image holds, and never
leaves the runtime that measured the original. docs/gates.md shows it, compared by a test.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from kubequant.api.base import camel
from kubequant.api.engines import (
    AUTO_AWQ,
    AUTO_GPTQ,
    AUTO_ROUND,
    BITS_AND_BYTES,
    GPTQ_MODEL,
    LLAMA_CPP,
    LLM_COMPRESSOR,
    ONNX_RUNTIME,
    TORCH,
    TORCH_AO,
)
from kubequant.api.enums import Method
from kubequant.api.params import DistillParameters, GGUFType, PruneParameters
from kubequant.api.spec import MEMBERS
from kubequant_worker.methods.gguf_types import LEVELS

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from kubequant.api.params import MethodParameters
    from kubequant.api.spec import QuantizationJobSpec


@dataclass(frozen=True, slots=True)
class Rung:
    """One setting: a method, the engine that does it here, and the parameters that matter.

    What `changes` does not name is the method's default, but for `ignore`, which stays the spec's.
    """

    method: Method
    engine: str
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What tells this setting from every other of the run."""
        return f"{self.method} {self.engine} {dict(self.changes)}"

    @property
    def types(self) -> tuple[GGUFType, ...]:
        """The one GGUF type that it makes; other methods make none."""
        return self.changes.get("types", ())  # type: ignore[no-any-return] # a parameter's value

    @property
    def variant(self) -> str:
        """The name of the variant that it makes."""
        return self.types[0].value if self.types else self.method.value


NEXT_TYPE: Final[dict[GGUFType, GGUFType | None]] = {
    GGUFType.Q2_K: GGUFType.Q3_K_M,
    GGUFType.Q3_K_S: GGUFType.Q3_K_M,
    GGUFType.Q3_K_M: GGUFType.Q4_K_M,
    GGUFType.Q3_K_L: GGUFType.Q4_K_M,
    GGUFType.Q4_0: GGUFType.Q5_0,
    GGUFType.Q4_1: GGUFType.Q5_1,
    GGUFType.Q4_K_S: GGUFType.Q5_K_S,
    GGUFType.Q4_K_M: GGUFType.Q5_K_M,
    GGUFType.Q5_0: GGUFType.Q8_0,
    GGUFType.Q5_1: GGUFType.Q8_0,
    GGUFType.Q5_K_S: GGUFType.Q6_K,
    GGUFType.Q5_K_M: GGUFType.Q6_K,
    GGUFType.Q6_K: GGUFType.Q8_0,
    GGUFType.Q8_0: None,
    GGUFType.F16: None,
    GGUFType.BF16: None,
}
"""The next more careful level of each GGUF level; the plain ones stay plain, for their speed."""


def _gptq(engine: str, bits: int, group_size: int) -> Rung:
    return Rung(Method.GPTQ, engine, {"bits": bits, "group_size": group_size})


def _awq(engine: str, group_size: int) -> Rung:
    return Rung(Method.AWQ, engine, {"bits": 4, "group_size": group_size})


_COMPRESSED: Final = (
    _gptq(LLM_COMPRESSOR, 4, 128),
    _awq(LLM_COMPRESSOR, 128),
    Rung(Method.INT8, LLM_COMPRESSOR, {"scheme": "WeightAndActivation"}),
    _gptq(LLM_COMPRESSOR, 8, 128),
)
_BY_GPTQ_MODEL: Final = tuple(_gptq(GPTQ_MODEL, *one) for one in ((4, 128), (4, 32), (8, 128)))
_BY_AUTO_GPTQ: Final = tuple(_gptq(AUTO_GPTQ, *one) for one in ((4, 128), (4, 32), (8, 128)))

_PRUNED: Final = tuple(
    Rung(Method.PRUNE, LLM_COMPRESSOR, {"algorithm": "SparseGPT", "sparsity": share})
    for share in ("0.5", "0.4", "0.3", "0.2")
)

LADDERS: Final[dict[tuple[str, Method, int], tuple[Rung, ...]]] = {
    (LLM_COMPRESSOR, Method.GPTQ, 2): _COMPRESSED,
    (LLM_COMPRESSOR, Method.GPTQ, 3): _COMPRESSED,
    (LLM_COMPRESSOR, Method.INT4, 4): _COMPRESSED,
    (LLM_COMPRESSOR, Method.GPTQ, 4): _COMPRESSED,
    (LLM_COMPRESSOR, Method.AWQ, 4): _COMPRESSED[2:],
    (LLM_COMPRESSOR, Method.FP8, 8): _COMPRESSED[3:],
    (LLM_COMPRESSOR, Method.INT8, 8): _COMPRESSED[3:],
    (GPTQ_MODEL, Method.GPTQ, 2): _BY_GPTQ_MODEL,
    (GPTQ_MODEL, Method.GPTQ, 3): _BY_GPTQ_MODEL,
    (GPTQ_MODEL, Method.GPTQ, 4): _BY_GPTQ_MODEL,
    (GPTQ_MODEL, Method.AWQ, 4): (_awq(GPTQ_MODEL, 32), _gptq(GPTQ_MODEL, 8, 128)),
    (AUTO_GPTQ, Method.GPTQ, 2): _BY_AUTO_GPTQ,
    (AUTO_GPTQ, Method.GPTQ, 3): _BY_AUTO_GPTQ,
    (AUTO_GPTQ, Method.GPTQ, 4): _BY_AUTO_GPTQ,
    (AUTO_AWQ, Method.AWQ, 4): (_awq(AUTO_AWQ, 32),),
    (AUTO_ROUND, Method.INT4, 4): (
        Rung(Method.INT4, AUTO_ROUND, {"rounding": "Tuned", "group_size": 32}),
    ),
    (TORCH_AO, Method.INT8, 8): (Rung(Method.INT8, TORCH_AO, {"scheme": "WeightOnly"}),),
    (ONNX_RUNTIME, Method.INT8, 8): (Rung(Method.INT8, ONNX_RUNTIME, {"scheme": "WeightOnly"}),),
    (BITS_AND_BYTES, Method.BITS_AND_BYTES, 4): (
        Rung(Method.BITS_AND_BYTES, BITS_AND_BYTES, {"bits": 4, "quant_type": "NF4"}),
        Rung(Method.BITS_AND_BYTES, BITS_AND_BYTES, {"bits": 8}),
    ),
    (LLM_COMPRESSOR, Method.PRUNE, 0): _PRUNED,
    (TORCH, Method.PRUNE, 0): _PRUNED,
}
"""What follows, in order, by engine, method and bits; what is not here is a ladder's end.

A rung that is no more careful than the spec's own setting is passed over, and groups never get
coarser than the spec's. GGUF's ladder stands in `NEXT_TYPE`."""

_BITS: Final = {Method.INT8: 8, Method.INT4: 4, Method.FP8: 8}


def standing(spec: QuantizationJobSpec, engine: str) -> tuple[Rung, ...]:
    """Return what `spec` itself asks for: a rung for each GGUF type, one for other methods."""
    if spec.method is Method.GGUF:
        return tuple(_of_type(kind) for kind in _types(spec))
    parameters = spec.parameters()
    changes = {name: getattr(parameters, name) for name in type(parameters).model_fields}
    return (Rung(spec.method, engine, changes),)


def rungs(spec: QuantizationJobSpec, start: Rung, there: Container[str]) -> tuple[Rung, ...]:
    """Return what follows `start` in order, of the engines that are `there`."""
    if start.method is Method.GGUF:
        found = []
        kind = NEXT_TYPE[start.types[0]]
        while kind is not None:
            found.append(_of_type(kind))
            kind = NEXT_TYPE[kind]
        return tuple(found)
    parameters = spec.parameters()
    known = LADDERS.get((start.engine, spec.method, _bits(spec.method, parameters)), ())
    return tuple(
        rung
        for rung in known
        if rung.engine in there
        and (rung.method is not spec.method or _care(_parameters(spec, rung)) > _care(parameters))
    )


def spec_of(spec: QuantizationJobSpec, made: Sequence[Rung]) -> QuantizationJobSpec:
    """Return `spec` with the setting of a rung; of several GGUF rungs all types are made."""
    rung = made[0]
    parameters = _parameters(spec, rung)
    if rung.method is Method.GGUF:
        types = tuple(kind for one in made for kind in one.types)
        parameters = parameters.model_copy(update={"types": types})
    members: dict[str, MethodParameters | None] = {member: None for member, _ in MEMBERS.values()}
    members[MEMBERS[rung.method][0]] = parameters
    device = spec.effective_device()
    return spec.model_copy(update={**members, "method": rung.method, "device": device})


def setting(spec: QuantizationJobSpec, rung: Rung) -> str:
    """Return how a rung quantizes, in a few words."""
    if rung.method is Method.GGUF:
        matrix = spec.gguf is not None and spec.gguf.importance_matrix
        return f"{rung.variant}{' with an importance matrix' if matrix else ''}"
    parameters = _parameters(spec, rung)
    count = _bits(rung.method, parameters)
    words = [f"{count} bits"] if count else []
    if isinstance(parameters, PruneParameters):
        words.append(f"{100 * float(parameters.sparsity):g} % zeros")
        words += ["two of every four"] if parameters.pattern == "TwoOfFour" else []
    if isinstance(parameters, DistillParameters):
        words += _student_words(parameters)
    group = getattr(parameters, "group_size", 0)
    if group:
        words.append("one scale per row" if group < 0 else f"groups of {group}")
    words += [
        value
        for name in ("scheme", "rounding", "quant_type", "precision", "algorithm")
        if isinstance(value := getattr(parameters, name, None), str)
    ]
    return ", ".join(words)


def _student_words(parameters: DistillParameters) -> list[str]:
    student = parameters.student
    made = "half of the layers"
    if student is not None:
        kept = student.keep_layers
        layers = "1 layer" if kept == 1 else f"{kept} layers"
        made = "a student of its own" if kept is None else layers
    return [made, f"{parameters.steps} steps", f"temperature {float(parameters.temperature):g}"]


def bits(spec: QuantizationJobSpec, rung: Rung) -> float | None:
    """Return the bits of a weight that a rung quantizes; None where a method quantizes none."""
    if rung.types:
        return LEVELS[rung.types[0]].bits_per_weight
    return _bits(rung.method, _parameters(spec, rung)) or None


def _of_type(kind: GGUFType) -> Rung:
    return Rung(Method.GGUF, LLAMA_CPP, {"types": (kind,)})


def _types(spec: QuantizationJobSpec) -> tuple[GGUFType, ...]:
    types: tuple[GGUFType, ...] = spec.parameters().types  # type: ignore[attr-defined] # GGUF's
    return types


def _parameters(spec: QuantizationJobSpec, rung: Rung) -> MethodParameters:
    """Return a rung's parameters in full, defaults filled in."""
    member, kind = MEMBERS[rung.method]
    if rung.method is spec.method and rung.method is Method.GGUF:
        written = getattr(spec, member) or kind()
        return written.model_copy(update=dict(rung.changes))
    named = {"engine": rung.engine} if "engine" in kind.model_fields else {}
    kept = getattr(spec.parameters(), "ignore", None)
    ignore = {"ignore": kept} if kept is not None and "ignore" in kind.model_fields else {}
    groups = {}
    own, wanted = getattr(spec.parameters(), "group_size", 0), rung.changes.get("group_size", 0)
    if 0 < own < wanted:
        groups = {"group_size": own}
    made = kind.model_validate({**ignore, **named, **rung.changes, **groups})
    return made.effective(on_cpu=spec.effective_device().value == "CPU")


def _bits(method: Method, parameters: MethodParameters) -> int:
    return int(getattr(parameters, "bits", _BITS.get(method, 0)))


def _care(parameters: MethodParameters) -> tuple[float, ...]:
    """Return what orders two settings of one method: bits, levels, the fineness of groups.

    Of two prunings that which drops less, then that which may drop any weight, then the algorithm
    that makes up for what it drops.
    """
    if isinstance(parameters, PruneParameters):
        algorithms = ("Magnitude", "Wanda", "SparseGPT")
        free = parameters.pattern == "Unstructured"
        return -float(parameters.sparsity), free, algorithms.index(parameters.algorithm)
    group = getattr(parameters, "group_size", 0)
    levels = ("FP4", "NF4", "WeightAndActivation", "WeightOnly")
    named = getattr(parameters, "quant_type", None) or getattr(parameters, "scheme", None)
    return (
        int(getattr(parameters, "bits", 0)),
        levels.index(named) if named in levels else -1,
        -group if group > 0 else -(1 << 20),
    )


def as_table() -> str:
    """Return all ladders as the Markdown table of docs/gates.md."""
    lines = ["| engine | from | to, in order |", "| --- | --- | --- |"]
    for kind, follows in NEXT_TYPE.items():
        climbed = []
        while follows is not None:
            climbed.append(follows.value)
            follows = NEXT_TYPE[follows]  # noqa: PLW2901 - the ladder is climbed
        if climbed:
            lines.append(f"| {LLAMA_CPP} | GGUF {kind.value} | {', '.join(climbed)} |")
    for (engine, method, count), known in LADDERS.items():
        climbed = [_words(rung) for rung in known]
        start = f"{method.value}, {count} bits" if count else method.value
        lines.append(f"| {engine} | {start} | {'; '.join(climbed)} |")
    return "\n".join(lines)


def _words(rung: Rung) -> str:
    values = {name: value for name, value in rung.changes.items() if name != "bits"}
    named = [f"{rung.changes['bits']} bits"] if "bits" in rung.changes else []
    named += [f"{camel(name)} {value}" for name, value in values.items()]
    return f"{rung.method.value} ({', '.join(named)})"
