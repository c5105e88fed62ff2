"""Method GPTQ: weights in few bits, each column's error made up for by the columns after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from kubequant.api.engines import AUTO_GPTQ
from kubequant.api.params import GPTQParameters
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


class LLMCompressorGPTQ(LLMCompressorQuantizer):
    """GPTQ by llmcompressor."""

    @classmethod
    def calibrates(cls, spec: QuantizationJobSpec) -> bool:
        """Return True: the Hessians come from text."""
        del spec
        return True

    @classmethod
    def bits(cls, spec: QuantizationJobSpec) -> int:
        """Return how many bits a quantized weight has."""
        return (spec.gptq or GPTQParameters()).bits

    @classmethod
    def recipe(cls, spec: QuantizationJobSpec) -> Recipe:
        """Return the recipe.

        Activation order is the kind that reorders only while quantizing ("static"), so that the
        result is served as fast as any.
        """
        asked = spec.gptq or GPTQParameters()
        weight = weights(asked.bits, group_size=asked.group_size, symmetric=asked.symmetric)
        arguments = {
            **linear_modules(weight, asked.ignore),
            "dampening_frac": float(asked.damping_fraction),
            "actorder": "static" if asked.activation_order else None,
        }
        return Recipe([Modifier("GPTQModifier", arguments)], one_by_one=asked.true_sequential)


class GPTQModelGPTQ(GPTQModelQuantizer):
    """GPTQ by gptqmodel, in the gptq format."""

    @classmethod
    def bits(cls, spec: QuantizationJobSpec) -> int:
        """Return how many bits a quantized weight has."""
        return (spec.gptq or GPTQParameters()).bits

    @classmethod
    def task(cls, spec: QuantizationJobSpec) -> Task:
        """Return what gptqmodel is to do.

        The first version of the format stores zero points less one, which a zero point of 0 has no
        room for: asymmetric weights get the second. "act_group_aware" is an order of gptqmodel's
        own, on where nothing is said.
        """
        asked = spec.gptq or GPTQParameters()
        arguments = {
            "bits": asked.bits,
            "group_size": asked.group_size,
            "sym": asked.symmetric,
            "format": "gptq" if asked.symmetric else "gptq_v2",
            "damp_percent": float(asked.damping_fraction),
            "desc_act": asked.activation_order,
            "act_group_aware": False,
            "true_sequential": asked.true_sequential,
        }
        return Task("gptq", arguments, asked.ignore)


class AutoGPTQGPTQ(LegacyQuantizer):
    """GPTQ by AutoGPTQ, in the gptq format."""

    NAME: ClassVar[str] = AUTO_GPTQ
    LIBRARY: ClassVar[str] = "auto-gptq"
    CHILD_MODULE: ClassVar[str] = "kubequant_worker.methods.autogptq_child"

    @classmethod
    def bits(cls, spec: QuantizationJobSpec) -> int:
        """Return how many bits a quantized weight has."""
        return (spec.gptq or GPTQParameters()).bits

    @classmethod
    def ignore(cls, spec: QuantizationJobSpec) -> Sequence[str]:
        """Return the words of the modules that stay as they are."""
        return (spec.gptq or GPTQParameters()).ignore

    @classmethod
    def settings(cls, spec: QuantizationJobSpec) -> dict[str, Any]:
        """Return the arguments of AutoGPTQ's `BaseQuantizeConfig`.

        Activation order is the kind that older pipelines had: groups follow the new order.
        """
        asked = spec.gptq or GPTQParameters()
        return {
            "bits": asked.bits,
            "group_size": asked.group_size,
            "damp_percent": float(asked.damping_fraction),
            "desc_act": asked.activation_order,
            "static_groups": False,
            "sym": asked.symmetric,
            "true_sequential": asked.true_sequential,
        }

    def _engine_loading(self) -> dict[str, Any]:
        """Return how the engine loads the model.

        It packs integers that it finds again from the rounded weights, and 8 bits of those are more
        than bfloat16 tells apart.
        """
        return {**super()._engine_loading(), "dtype": "float16"}
