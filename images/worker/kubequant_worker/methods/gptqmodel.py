"""The parent's half of gptqmodel: what both methods that it does share.

A method gives a task, as plain values that cross to the child (`gptqmodel_child`), which holds the
library; it is not imported here.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from kubequant.api.enums import Offload
from kubequant.api.fields import quantity_bytes
from kubequant_worker.methods.engine import EngineQuantizer, calibration_note

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from kubequant.api.spec import QuantizationJobSpec
    from kubequant_worker.datasets import TextSet
    from kubequant_worker.evaluation.meter import Meter
    from kubequant_worker.methods.child import Child

# How much of the stage saving is, against one for quantizing.
_SAVING_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Task:
    """What gptqmodel is to do.

    `method` is its name for it, which the format has too; `arguments` are those of the method's
    configuration; `ignore` names modules as `spec` does.
    """

    method: str
    arguments: Mapping[str, Any]
    ignore: Sequence[str]


class GPTQModelQuantizer(EngineQuantizer):
    """Quantizes by a task."""

    LIBRARY: ClassVar[str] = "gptqmodel"
    CHILD_MODULE: ClassVar[str] = "kubequant_worker.methods.gptqmodel_child"

    @classmethod
    def calibrates(cls, spec: QuantizationJobSpec) -> bool:
        """Return True: both methods see on text what matters."""
        del spec
        return True

    @classmethod
    @abstractmethod
    def task(cls, spec: QuantizationJobSpec) -> Task:
        """Return the task for the spec's parameters."""

    def produce_with(
        self, child: Child, calibration: TextSet | None, meter: Meter
    ) -> tuple[str, ...]:
        """Write the quantized checkpoint by the engine in `child`; return notes."""
        if calibration is None:
            raise RuntimeError("calibration text comes first")
        meter.set_total(1 + _SAVING_SHARE)
        meter.advance(0, "reading calibration text")
        samples = self._calibration_file(child, calibration)
        shown = 0.0

        def count(share: float, message: str) -> None:
            nonlocal shown
            meter.advance(max(0.0, share - shown), message)
            shown = max(shown, share)

        notes: list[str] = child.call("quantize", self.job(samples), on_event=count)
        return (*notes, calibration_note(samples))

    def job(self, samples: Path | None) -> dict[str, Any]:
        """Return what the child is told: besides what all engines are, the task and the memory.

        gptqmodel holds the weights in the CPU's memory and brings one layer at a time to the GPU;
        `spills` has it read them from the disk and write them there. A model that is spread cannot
        be asked for its logits.
        """
        memory = self._spec.memory
        limit = memory.max_gpu_memory
        job = super().job(samples)
        return {
            **job,
            **asdict(self.task(self._spec)),
            "spills": memory.offload is Offload.DISK,
            "waits": memory.low_memory,
            "most_gpu_bytes": quantity_bytes(limit) if limit else None,
            "probe": job["probe"] if memory.offload is Offload.NONE else None,
        }
