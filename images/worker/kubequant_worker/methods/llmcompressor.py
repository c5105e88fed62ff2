"""The parent's half of llmcompressor: what all methods that it does share.

A method gives a recipe, as plain values that cross to the child (`llmcompressor_child`), which
holds the library; it is not imported here.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from kubequant.api.enums import Device, Offload
from kubequant_worker.evaluation.meter import Portion
from kubequant_worker.methods.engine import EngineQuantizer, calibration_note

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kubequant.api.spec import QuantizationJobSpec
    from kubequant_worker.datasets import TextSet
    from kubequant_worker.evaluation.meter import Meter
    from kubequant_worker.methods.child import Child

# How much of the stage saving is, against one for each modifier.
_SAVING_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Modifier:
    """One step of a recipe: a modifier's class in llmcompressor, and its arguments."""

    kind: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What llmcompressor is to do, in order.

    `one_by_one` quantizes each linear module with what the quantized ones before it give, instead
    of each layer as a whole.
    """

    modifiers: Sequence[Modifier]
    one_by_one: bool = False


def weights(
    bits: int, *, kind: str = "int", group_size: int = -1, symmetric: bool = True
) -> dict[str, Any]:
    """Return the arguments of `QuantizationArgs` for weights; -1 is one scale per row."""
    grouped: dict[str, Any] = {"strategy": "channel"}
    if group_size > 0:
        grouped = {"strategy": "group", "group_size": group_size}
    return {"num_bits": bits, "type": kind, "symmetric": symmetric, **grouped}


def linear_modules(
    weight: Mapping[str, Any], ignore: Sequence[str], activations: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return a modifier's arguments that quantize all linear modules but `ignore`."""
    group = {"targets": ["Linear"], "weights": weight, "input_activations": activations}
    return {"config_groups": {"group_0": group}, "ignore": list(ignore)}


class LLMCompressorQuantizer(EngineQuantizer):
    """Quantizes by a recipe."""

    LIBRARY: ClassVar[str] = "llmcompressor"
    CHILD_MODULE: ClassVar[str] = "kubequant_worker.methods.llmcompressor_child"

    @classmethod
    @abstractmethod
    def recipe(cls, spec: QuantizationJobSpec) -> Recipe:
        """Return the recipe for the spec's parameters.

        Raises:
            BadRequestError: This engine cannot do what they ask for.
        """

    def produce_with(
        self, child: Child, calibration: TextSet | None, meter: Meter
    ) -> tuple[str, ...]:
        """Write the quantized checkpoint by the engine in `child`; return notes."""
        notes, calibrated = self.carried_out("quantize", child, calibration, meter)
        return (*notes, *calibrated)

    def carried_out(
        self, operation: str, child: Child, calibration: TextSet | None, meter: Meter
    ) -> tuple[Any, tuple[str, ...]]:
        """Let the child do `operation` by the recipe.

        Returns its answer, and a sentence on the calibration where there was one.
        """
        recipe = self.recipe(self._spec)
        stages = len(recipe.modifiers)
        meter.set_total(stages + _SAVING_SHARE)
        meter.advance(0, "reading calibration text" if calibration else "loading the model")
        samples = self._calibration_file(child, calibration) if calibration else None
        portions = [Portion(meter, 1) for _ in recipe.modifiers]
        shown = 0

        def count(stage: int, step: int, of: int, message: str) -> None:
            nonlocal shown
            while shown < min(stage, stages):
                portions[shown].finish()
                shown += 1
            if stage < stages:
                portions[stage].set_total(of)
                portions[stage].advance(1 if step else 0, message)
            else:
                meter.advance(0, message)

        job = {
            **self.job(samples),
            "modifiers": [asdict(modifier) for modifier in recipe.modifiers],
            "one_by_one": recipe.one_by_one,
        }
        answer = child.call(operation, job, on_event=count)
        return answer, (calibration_note(samples),) if samples else ()

    def _engine_loading(self) -> dict[str, Any]:
        """Return how the engine loads the model.

        With offload it stays in the CPU's memory (or on disk), and llmcompressor itself brings one
        layer at a time to the GPU.
        """
        loading = self.loading()
        if self._spec.effective_device() is Device.GPU:
            if self._spec.memory.offload is Offload.CPU:
                return {**loading, "device": "cpu", "most_bytes": None}
            if self._spec.memory.offload is Offload.DISK:
                most = {k: v for k, v in (loading["most_bytes"] or {}).items() if k == "cpu"}
                return {**loading, "device": "cpu", "most_bytes": most}
        return loading
