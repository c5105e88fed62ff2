"""Method INT8: weights, and with them activations, in 8 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kubequant.api.params import INT8Parameters
from kubequant_worker.methods.llmcompressor import (
    LLMCompressorQuantizer,
    Modifier,
    Recipe,
    linear_modules,
    weights,
)

if TYPE_CHECKING:
    from kubequant.api.spec import QuantizationJobSpec

BITS = 8
# One scale for each token, found when it is computed.
_ACTIVATIONS: Final = {
    "num_bits": BITS,
    "type": "int",
    "symmetric": True,
    "strategy": "token",
    "dynamic": True,
}


class LLMCompressorINT8(LLMCompressorQuantizer):
    """W8A8 (SmoothQuant, then GPTQ) or W8A16 by llmcompressor."""

    @classmethod
    def calibrates(cls, spec: QuantizationJobSpec) -> bool:
        """Return whether activations are quantized: weights alone are rounded without data."""
        return (spec.int8 or INT8Parameters()).scheme == "WeightAndActivation"

    @classmethod
    def bits(cls, spec: QuantizationJobSpec) -> int:
        """Return how many bits a quantized weight has."""
        del spec
        return BITS

    @classmethod
    def recipe(cls, spec: QuantizationJobSpec) -> Recipe:
        """Return the recipe; a smoothing strength of 0 leaves SmoothQuant out."""
        asked = spec.int8 or INT8Parameters()
        weight = weights(BITS)
        if asked.scheme == "WeightOnly":
            return Recipe([Modifier("QuantizationModifier", linear_modules(weight, asked.ignore))])
        arguments = linear_modules(weight, asked.ignore, _ACTIVATIONS)
        quantize = Modifier("GPTQModifier", {**arguments, "actorder": None})
        strength = float(asked.smoothing_strength)
        if not strength:
            return Recipe([quantize])
        smooth = Modifier("SmoothQuantModifier", {"smoothing_strength": strength})
        return Recipe([smooth, quantize])
