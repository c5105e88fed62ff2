"""What method Auto becomes: a table from a goal to a method, its parameters and the reason.

The digest of a run stays that of the spec as its user wrote it, with Auto and the goal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kubequant.api.enums import Method
from kubequant.api.params import (
    AWQParameters,
    GGUFParameters,
    GGUFType,
    GPTQParameters,
    INT8Parameters,
    MethodParameters,
)
from kubequant.api.spec import MEMBERS

if TYPE_CHECKING:
    from kubequant.api.spec import QuantizationJobSpec


@dataclass(frozen=True, slots=True)
class Choice:
    """A method with its parameters, and why in half a sentence."""

    method: Method
    parameters: MethodParameters
    because: str


@dataclass(frozen=True, slots=True)
class Resolution:
    """A spec whose method is not Auto, and in a sentence why it is this one."""

    spec: QuantizationJobSpec
    reason: str


_BALANCED_GGUF: Final = GGUFParameters(types=(GGUFType.Q4_K_M, GGUFType.Q5_K_M))

CHOICES: Final[dict[tuple[str, str], Choice]] = {
    ("GPU", "Quality"): Choice(
        Method.AWQ, AWQParameters(), "AWQ loses least of the 4-bit methods that GPUs serve"
    ),
    ("GPU", "Speed"): Choice(
        Method.GPTQ, GPTQParameters(), "GPUs have the fastest kernels for GPTQ in 4 bits"
    ),
    ("GPU", "Balanced"): Choice(
        Method.INT8, INT8Parameters(), "INT8 halves the model and hardly changes it"
    ),
    ("CPU", "Quality"): Choice(
        Method.GGUF,
        GGUFParameters(types=(GGUFType.Q6_K, GGUFType.Q8_0)),
        "llama.cpp serves GGUF on CPUs, and Q6_K and Q8_0 are almost the original",
    ),
    ("CPU", "Speed"): Choice(
        Method.GGUF,
        GGUFParameters(types=(GGUFType.Q4_0,)),
        "llama.cpp serves GGUF on CPUs, and Q4_0 is the fastest level to compute with",
    ),
    ("CPU", "Balanced"): Choice(
        Method.GGUF,
        _BALANCED_GGUF,
        "llama.cpp serves GGUF on CPUs, and Q4_K_M and Q5_K_M are small and good",
    ),
    **{
        ("AppleSilicon", priority): Choice(
            Method.GGUF,
            _BALANCED_GGUF,
            "llama.cpp serves GGUF on Apple silicon, and Q4_K_M and Q5_K_M are small and good",
        )
        for priority in ("Quality", "Speed", "Balanced")
    },
}
"""The choice by hardware and priority."""


def resolve(spec: QuantizationJobSpec) -> Resolution:
    """Return `spec` with the method that its goal asks for; any other method stays as it is."""
    goal = spec.goal
    if spec.method is not Method.AUTO or goal is None:
        return Resolution(spec, f"The spec names method {spec.method}.")
    choice = CHOICES[goal.hardware, goal.priority]
    member, _ = MEMBERS[choice.method]
    resolved = spec.model_copy(
        update={"method": choice.method, member: choice.parameters, "goal": None}
    )
    reason = f"Auto for {goal.hardware} and {goal.priority} is {choice.method}: {choice.because}."
    return Resolution(resolved, reason)
