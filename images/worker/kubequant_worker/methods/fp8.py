"""Method FP8: weights and activations as 8-bit floating-point numbers (E4M3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kubequant.api.params import FP8Parameters
from kubequant_worker.methods.llmcompressor import LLMCompressorQuantizer, Modifier, Recipe

if TYPE_CHECKING:
    from kubequant.api.spec import QuantizationJobSpec

BITS = 8
# The presets of compressed-tensors, by the API's words.
_PRESETS: Final = {"Dynamic": "FP8_DYNAMIC", "Static": "FP8", "Block": "FP8_BLOCK"}


class LLMCompressorFP8(LLMCompressorQuantizer):
    """FP8 by llmcompressor."""

    @classmethod
    def calibrates(cls, spec: QuantizationJobSpec) -> bool:
        """Return whether the activations' scales are found beforehand."""
        return spec.fp8 is not None and spec.fp8.scheme == "Static"

    @classmethod
    def bits(cls, spec: QuantizationJobSpec) -> int:
        """Return how many bits a quantized weight has."""
        del spec
        return BITS

    @classmethod
    def recipe(cls, spec: QuantizationJobSpec) -> Recipe:
        """Return the recipe."""
        asked = spec.fp8 or FP8Parameters()
        arguments = {
            "targets": ["Linear"],
            "scheme": _PRESETS[asked.scheme],
            "ignore": list(asked.ignore),
        }
        return Recipe([Modifier("QuantizationModifier", arguments)])
