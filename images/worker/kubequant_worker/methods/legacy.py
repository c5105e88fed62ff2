"""The parent's half of the legacy engines, AutoGPTQ and AutoAWQ: what both share.

They are for whoever must reproduce an older pipeline, are bound to a transformers before 5, and
quantize decoder layers only. A method says what its engine is told (`settings`); the child's half
is `legacy_child`. Neither library is imported here.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from kubequant.api.enums import Offload
from kubequant.api.fields import quantity_bytes
from kubequant_worker.errors import BadRequestError
from kubequant_worker.evaluation.meter import Portion
from kubequant_worker.methods.engine import EngineQuantizer, calibration_note
from kubequant_worker.methods.ignored import ignored
from kubequant_worker.methods.transformers_runtime import TransformersEngine
from kubequant_worker.sources.selection import is_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kubequant.api.spec import QuantizationJobSpec
    from kubequant_worker.datasets import TextSet
    from kubequant_worker.evaluation.meter import Meter
    from kubequant_worker.methods import Needs
    from kubequant_worker.methods.child import Child

# How much of the stage saving is, against one for quantizing.
_SAVING_SHARE = 0.1
RUNTIME_MODULE = "kubequant_worker.methods.legacy_runtime_child"
_HEAD = "lm_head"
_HEAD_CLASSES = ("Linear", "Module")
_UNPACKED = (
    "measured with its weights unpacked to 16 bits, since no kernel here computes with packed ones"
)


class LegacyQuantizer(EngineQuantizer):
    """Quantizes layer by layer, with the model in the CPU's memory and one layer where it counts.

    What it writes is measured with its weights unpacked: no kernel here computes with packed ones.
    """

    NAME: ClassVar[str]
    """The engine's word in the API."""

    @classmethod
    @abstractmethod
    def settings(cls, spec: QuantizationJobSpec) -> dict[str, Any]:
        """Return what the engine is told, by its own words.

        Raises:
            BadRequestError: This engine cannot do what the parameters ask for.
        """

    @classmethod
    @abstractmethod
    def ignore(cls, spec: QuantizationJobSpec) -> Sequence[str]:
        """Return the words of the modules that stay as they are."""

    @classmethod
    def calibrates(cls, spec: QuantizationJobSpec) -> bool:
        """Return True: both methods look at text."""
        del spec
        return True

    @classmethod
    def needs(cls, spec: QuantizationJobSpec, files: Mapping[str, int]) -> Needs:
        """Return what the run will take; refuses what this engine cannot do."""
        cls.settings(spec)
        if spec.memory.offload is Offload.DISK:
            raise BadRequestError(
                f"spec.memory.offload: engine {cls.NAME} needs the whole model in memory, and "
                "cannot leave it on Disk; remove it, or take engine LLMCompressor"
            )
        if not ignored([_HEAD], cls.ignore(spec), {_HEAD: _HEAD_CLASSES}):
            member = spec.method.value.lower()
            raise BadRequestError(
                f"spec.{member}.ignore: engine {cls.NAME} quantizes decoder layers only; name "
                f"{_HEAD} in it, or take engine LLMCompressor"
            )
        found = super().needs(spec, files)
        weights = sum(size for name, size in files.items() if is_weights(name))
        without = "Give the pod more memory, or take engine LLMCompressor, which can spill to Disk."
        return replace(found, scratch_bytes=found.scratch_bytes + weights, memory_advice=without)

    def _engine_started(self) -> TransformersEngine:
        return TransformersEngine(self._work.threads, gpus=self.on_gpu, module=RUNTIME_MODULE)

    def _engine_loading(self) -> dict[str, Any]:
        """Return how the engine loads the model: in memory; it moves layers itself."""
        return {**self.loading(), "device": "cpu", "most_bytes": None}

    def compute_device(self) -> str:
        """Return where the quantized model computes its probe, before it is packed for good."""
        offloads = self._spec.memory.offload is not Offload.NONE
        return "cpu" if offloads else str(self.loading()["device"])

    def produce_with(
        self, child: Child, calibration: TextSet | None, meter: Meter
    ) -> tuple[str, ...]:
        """Write the quantized checkpoint by the engine in `child`; return notes."""
        if calibration is None:
            raise RuntimeError("both legacy engines calibrate")
        meter.set_total(1 + _SAVING_SHARE)
        meter.advance(0, "reading calibration text")
        samples = self._calibration_file(child, calibration)
        portion = Portion(meter, 1)
        shown = 0.0

        def count(done: float, of: float, message: str) -> None:
            nonlocal shown
            portion.set_total(of)
            portion.advance(done - shown, message)
            shown = done

        limit = self._spec.memory.max_gpu_memory
        job = {
            **self.job(samples),
            "settings": self.settings(self._spec),
            "ignore": list(self.ignore(self._spec)),
            "compute_device": self.compute_device(),
            "offloads": self._spec.memory.offload is not Offload.NONE,
            "most_gpu_bytes": quantity_bytes(limit) if limit else None,
        }
        notes: list[str] = child.call("quantize", job, on_event=count)
        portion.finish()
        meter.advance(_SAVING_SHARE, "saved")
        return (
            *notes,
            calibration_note(samples),
            _UNPACKED,
        )
