"""Method AWQ: weights in 4 bits, the columns that matter most to activations scaled up before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kubequant.api.params import AWQParameters
from kubequant_worker.methods.gptqmodel import GPTQModelQuantizer, Task
from kubequant_worker.methods.llmcompressor import (
    LLMCompressorQuantizer,
    Modifier,
    Recipe,
    linear_modules,
    weights,
)

if TYPE_CHECKING:
    from kubequant.api.spec import QuantizationJobSpec


class LLMCompressorAWQ(LLMCompressorQuantizer):
    """AWQ by llmcompressor."""

    @classmethod
    def calibrates(cls, spec: QuantizationJobSpec) -> bool:
        """Return True: what matters is seen on text."""
        del spec
        return True

    @classmethod
    def bits(cls, spec: QuantizationJobSpec) -> int:
        """Return how many bits a quantized weight has."""
        return (spec.awq or AWQParameters()).bits

    @classmethod
    def recipe(cls, spec: QuantizationJobSpec) -> Recipe:
        """Return the recipe: AWQ scales, and the rounding is a modifier of its own."""
        asked = spec.awq or AWQParameters()
        weight = weights(asked.bits, group_size=asked.group_size, symmetric=not asked.zero_point)
        quantize = Modifier("QuantizationModifier", linear_modules(weight, asked.ignore))
        return Recipe([Modifier("AWQModifier"), quantize])


class GPTQModelAWQ(GPTQModelQuantizer):
    """AWQ by gptqmodel, in the awq format (its layout GEMM)."""

    @classmethod
    def bits(cls, spec: QuantizationJobSpec) -> int:
        """Return how many bits a quantized weight has."""
        return (spec.awq or AWQParameters()).bits

    @classmethod
    def task(cls, spec: QuantizationJobSpec) -> Task:
        """Return what gptqmodel is to do."""
        asked = spec.awq or AWQParameters()
        arguments = {
            "bits": asked.bits,
            "group_size": asked.group_size,
            "sym": not asked.zero_point,
            "format": asked.version.lower(),
        }
        return Task("awq", arguments, asked.ignore)
