"""Method INT4: weights in 4 bits by rounding to nearest, without any data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kubequant.api.params import INT4Parameters
from kubequant_worker.methods.llmcompressor import (
    LLMCompressorQuantizer,
    Modifier,
    Recipe,
    linear_modules,
    weights,
)

if TYPE_CHECKING:
    from kubequant.api.spec import QuantizationJobSpec

BITS = 4


class LLMCompressorINT4(LLMCompressorQuantizer):
    """W4A16 by llmcompressor."""

    @classmethod
    def calibrates(cls, spec: QuantizationJobSpec) -> bool:
        """Return False: rounding needs no text."""
        del spec
        return False

    @classmethod
    def bits(cls, spec: QuantizationJobSpec) -> int:
        """Return how many bits a quantized weight has."""
        del spec
        return BITS

    @classmethod
    def recipe(cls, spec: QuantizationJobSpec) -> Recipe:
        """Return the recipe; rounding Tuned is another engine's."""
        asked = spec.int4 or INT4Parameters()
        weight = weights(BITS, group_size=asked.group_size, symmetric=asked.symmetric)
        return Recipe([Modifier("QuantizationModifier", linear_modules(weight, asked.ignore))])
