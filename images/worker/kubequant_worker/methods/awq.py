"""Method AWQ: weights in 4 bits, the columns that matter most to activations scaled up before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from kubequant.api.engines import AUTO_AWQ
from kubequant.api.params import AWQParameters
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods.gptqmodel import GPTQModelQuantizer, Task
from kubequant_worker.methods.legacy import LegacyQuantizer
from kubequant_worker.methods.llmcompressor import (
    LLMCompressorQuantizer,
    Modifier,
    Recipe,
    linear_modules,
    weights,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

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


class AutoAWQAWQ(LegacyQuantizer):
    """AWQ by AutoAWQ, in the awq format."""

    NAME: ClassVar[str] = AUTO_AWQ
    LIBRARY: ClassVar[str] = "autoawq"
    CHILD_MODULE: ClassVar[str] = "kubequant_worker.methods.autoawq_child"

    @classmethod
    def bits(cls, spec: QuantizationJobSpec) -> int:
        """Return how many bits a quantized weight has."""
        return (spec.awq or AWQParameters()).bits

    @classmethod
    def ignore(cls, spec: QuantizationJobSpec) -> Sequence[str]:
        """Return the words of the modules that stay as they are."""
        return (spec.awq or AWQParameters()).ignore

    @classmethod
    def settings(cls, spec: QuantizationJobSpec) -> dict[str, Any]:
        """Return AutoAWQ's `quant_config`.

        Without zero points it writes a layout of the marlin kernel alone, and with one scale for a
        row it ends in an error.
        """
        asked = spec.awq or AWQParameters()
        if not asked.zero_point:
            raise BadRequestError(
                "spec.awq.zeroPoint: engine AutoAWQ writes zero points in both versions, GEMM and "
                "GEMV; leave zeroPoint out, or take engine LLMCompressor"
            )
        if asked.group_size < 0:
            raise BadRequestError(
                f"spec.awq.groupSize: engine AutoAWQ cannot do {asked.group_size}; set 128, 64 or "
                "32, or take engine LLMCompressor"
            )
        return {
            "w_bit": asked.bits,
            "q_group_size": asked.group_size,
            "zero_point": asked.zero_point,
            "version": asked.version,
        }
