"""Method INT8: weights, and with them activations, in 8 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from kubequant.api.params import INT8Parameters
from kubequant.api.status import Usage
from kubequant_worker.methods.llmcompressor import (
    LLMCompressorQuantizer,
    Modifier,
    Recipe,
    linear_modules,
    weights,
)
from kubequant_worker.methods.onnxruntime import ONNXRuntimeQuantizer
from kubequant_worker.methods.quantized_load import QuantizedLoad

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kubequant.api.spec import QuantizationJobSpec
    from kubequant_worker.methods import ProducedVariant

BITS = 8
# In float32, since half precision is many times slower on a CPU without instructions for it.
_USE: Final = (
    'python -c "from transformers import pipeline; '
    "print(pipeline('text-generation', '.', dtype='float32')('The')[0]['generated_text'])\""
)
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


class TorchAOINT8(QuantizedLoad):
    """Weights rounded row by row, activations token by token as they come, by torchao.

    Nothing is smoothed: the API refuses a smoothing strength with this engine.
    """

    LIBRARY: ClassVar[str] = "torchao"
    CHILD_MODULE: ClassVar[str] = "kubequant_worker.methods.torchao_child"
    USAGE: ClassVar[Usage] = Usage(runtime="transformers", command=_USE)

    @classmethod
    def bits(cls, spec: QuantizationJobSpec) -> int:
        """Return how many bits a quantized weight has."""
        del spec
        return BITS

    @classmethod
    def ignore(cls, spec: QuantizationJobSpec) -> Sequence[str]:
        """Return the words of the modules that stay as they are."""
        return (spec.int8 or INT8Parameters()).ignore

    @classmethod
    def gpu_advice(cls, spec: QuantizationJobSpec) -> str:
        """Return what would need less of a GPU."""
        del spec
        return "spec.int8.engine: LLMCompressor with spec.memory.offload: CPU takes less."

    @classmethod
    def settings(cls, spec: QuantizationJobSpec) -> Mapping[str, Any]:
        """Return the scheme, by the API's word."""
        return {"scheme": (spec.int8 or INT8Parameters()).scheme}

    def usage(self, produced: ProducedVariant) -> Usage:
        """Return the command that loads the variant."""
        del produced
        return self.USAGE


class ONNXRuntimeINT8(ONNXRuntimeQuantizer):
    """Weights in 8 bits, and activations when they are computed, by ONNX Runtime for CPUs.

    Nothing is smoothed: the API refuses a smoothing strength with this engine.
    """

    @classmethod
    def bits(cls, spec: QuantizationJobSpec) -> int:
        """Return how many bits a quantized weight has."""
        del spec
        return BITS

    @classmethod
    def scheme(cls, spec: QuantizationJobSpec) -> str:
        """Return what is quantized, by the API's word."""
        return (spec.int8 or INT8Parameters()).scheme

    @classmethod
    def ignore(cls, spec: QuantizationJobSpec) -> Sequence[str]:
        """Return the words of the modules that stay as they are."""
        return (spec.int8 or INT8Parameters()).ignore
