"""Method AWQ: weights in 4 bits, the columns that matter most to activations scaled up before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kubequant.api.params import AWQParameters
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods.llmcompressor import (
    LLMCompressorQuantizer,
    Modifier,
    Recipe,
    linear_modules,
    weights,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kubequant.api.spec import QuantizationJobSpec
    from kubequant_worker.methods import Needs


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
    def needs(cls, spec: QuantizationJobSpec, files: Mapping[str, int]) -> Needs:
        """Return what the run will take; refuses a layout that this engine does not write."""
        cls.recipe(spec)
        return super().needs(spec, files)

    @classmethod
    def recipe(cls, spec: QuantizationJobSpec) -> Recipe:
        """Return the recipe: AWQ scales, and the rounding is a modifier of its own."""
        asked = spec.awq or AWQParameters()
        if asked.version != "GEMM":
            raise BadRequestError(
                f"spec.awq.version: {asked.version} is a layout of the awq format, and engine "
                "LLMCompressor writes compressed-tensors; leave version out, or name an engine "
                "that writes awq"
            )
        weight = weights(asked.bits, group_size=asked.group_size, symmetric=not asked.zero_point)
        quantize = Modifier("QuantizationModifier", linear_modules(weight, asked.ignore))
        return Recipe([Modifier("AWQModifier"), quantize])
