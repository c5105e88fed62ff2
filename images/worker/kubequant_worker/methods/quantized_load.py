"""The parent's half of engines that quantize each weight while transformers loads it.

bitsandbytes and torchao are two: a weight is read, quantized and held quantized, so that the whole
model is never in memory unquantized. Nothing of them can be spilled, which is why `memory` means
something else here. The child's half is `quantized_load_child`; no engine is imported here.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kubequant.api.enums import Device, Offload
from kubequant_worker.evaluation.meter import Portion
from kubequant_worker.methods.bounds import GPU_CONTEXT_BYTES, gpu_cap
from kubequant_worker.methods.engine import EngineQuantizer
from kubequant_worker.sources.selection import is_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kubequant.api.spec import QuantizationJobSpec
    from kubequant_worker.datasets import TextSet
    from kubequant_worker.evaluation.meter import Meter
    from kubequant_worker.methods import Needs
    from kubequant_worker.methods.child import Child

# How much of the stage saving is, against quantizing.
_SAVING_SHARE = 0.1
# What of a model, as loaded, stays unquantized: embeddings and the output head.
_UNQUANTIZED_SHARE = 0.3


class QuantizedLoad(EngineQuantizer):
    """A method by an engine that quantizes on load, without any data."""

    @classmethod
    def calibrates(cls, spec: QuantizationJobSpec) -> bool:
        """Return False: every weight is rounded by itself."""
        del spec
        return False

    @classmethod
    @abstractmethod
    def settings(cls, spec: QuantizationJobSpec) -> Mapping[str, Any]:
        """Return what the engine's own configuration is made of, as plain values.

        Raises:
            BadRequestError: This engine cannot do what the parameters ask for.
        """

    @classmethod
    @abstractmethod
    def ignore(cls, spec: QuantizationJobSpec) -> Sequence[str]:
        """Return the words of the modules that stay as they are."""

    @classmethod
    def needs(cls, spec: QuantizationJobSpec, files: Mapping[str, int]) -> Needs:
        """Return what the run will take; refuses what this engine cannot do."""
        cls.settings(spec)
        needs = super().needs(spec, files)
        if spec.effective_device() is Device.CPU:
            return needs
        # Only the original is spilled: the quantized model is held on the GPU.
        weights = sum(size for name, size in files.items() if is_weights(name))
        spilled = GPU_CONTEXT_BYTES + cls.spilled_bytes(spec, weights)
        advice = cls.gpu_advice(spec)
        if spec.memory.offload is not Offload.NONE:
            return replace(needs, gpu_memory_bytes=spilled, gpu_memory_advice=advice)
        if spilled < needs.gpu_memory_bytes:
            gib = spilled / (1 << 30)
            advice = f"spec.memory.offload: CPU would make do with {gib:.1f} GiB of it."
        return replace(needs, gpu_memory_advice=advice)

    @classmethod
    @abstractmethod
    def gpu_advice(cls, spec: QuantizationJobSpec) -> str:
        """Return what would need less of a GPU where spilling the original does not."""

    @classmethod
    def spilled_bytes(cls, spec: QuantizationJobSpec, loaded: int) -> int:
        """Return what is in memory though the original is spilled: the quantized model, twice.

        The second time while it is saved.
        """
        on_gpu = spec.effective_device() is Device.GPU
        width = 16 if on_gpu else 32
        return int(loaded * (2 * cls.bits(spec) / width + _UNQUANTIZED_SHARE))

    def produce_with(
        self, child: Child, calibration: TextSet | None, meter: Meter
    ) -> tuple[str, ...]:
        """Write the quantized checkpoint by the engine in `child`; return notes."""
        del calibration
        meter.set_total(1 + _SAVING_SHARE)
        meter.advance(0, "reading the model")
        quantizing = Portion(meter, 1)

        def count(done: int, total: int, message: str) -> None:
            if total:
                quantizing.set_total(total)
                quantizing.advance(done, message)
            else:
                quantizing.finish()
                meter.advance(0, message)

        job = {
            **self.job(None),
            "settings": dict(self.settings(self._spec)),
            "ignore": list(self.ignore(self._spec)),
        }
        notes: list[str] = child.call("quantize", job, on_event=count)
        return tuple(notes)

    def _produce(self, calibration: TextSet | None, meter: Meter) -> tuple[str, ...]:
        # The child stays until `_expect`: while it computes, what loads the variant imports torch.
        return self.produce_with(self._started_child(), calibration, meter)

    def _expect(self) -> None:
        if self._child is not None:
            self._child.call("expect")
        self._end_child()

    def variant_loading(self) -> dict[str, Any]:
        """Return how to load what is quantized: whole, where the bound of a GPU holds it."""
        bound = gpu_cap(self._spec.memory) if self.on_gpu else {}
        return {**self.loading(), "most_bytes": bound or None}

    def _engine_loading(self) -> dict[str, Any]:
        """Return how the engine loads the model: quantized already when it takes up memory."""
        return self.variant_loading()
