"""Method BitsAndBytes: weights in 8 bits (LLM.int8()) or in 4 bits (NF4, FP4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from kubequant_worker.methods.quantized_load import QuantizedLoad

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kubequant.api.params import BitsAndBytesParameters
    from kubequant.api.spec import QuantizationJobSpec

EIGHT_BITS: Final = 8


class BitsAndBytesQuantizer(QuantizedLoad):
    """BitsAndBytes by the library of that name."""

    LIBRARY: ClassVar[str] = "bitsandbytes"
    CHILD_MODULE: ClassVar[str] = "kubequant_worker.methods.bits_and_bytes_child"

    @classmethod
    def bits(cls, spec: QuantizationJobSpec) -> int:
        """Return how many bits a quantized weight has."""
        return _asked(spec).bits

    @classmethod
    def ignore(cls, spec: QuantizationJobSpec) -> Sequence[str]:
        """Return the words of the modules that stay as they are."""
        return _asked(spec).ignore

    @classmethod
    def gpu_advice(cls, spec: QuantizationJobSpec) -> str:
        """Return what would need less of a GPU."""
        if _asked(spec).bits == EIGHT_BITS:
            return "spec.bitsAndBytes.bits: 4 with spec.memory.offload: CPU takes less."
        return "spec.device: CPU needs no GPU."

    @classmethod
    def settings(cls, spec: QuantizationJobSpec) -> Mapping[str, Any]:
        """Return the arguments of transformers' `BitsAndBytesConfig` but for ignored modules."""
        asked = _asked(spec)
        if asked.bits == EIGHT_BITS:
            return {"load_in_8bit": True, "llm_int8_threshold": float(cast("str", asked.threshold))}
        return {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": cast("str", asked.quant_type).lower(),
            "bnb_4bit_use_double_quant": asked.double_quantization,
            "bnb_4bit_compute_dtype": cast("str", asked.compute_dtype).lower(),
        }


def _asked(spec: QuantizationJobSpec) -> BitsAndBytesParameters:
    """Return the parameters, each with its default for these bits and this device."""
    return cast("BitsAndBytesParameters", spec.parameters())
