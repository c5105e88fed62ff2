"""Method INT4: weights in 4 bits, rounded to nearest without any data or by what text teaches."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

from kubequant.api.enums import Offload
from kubequant.api.fields import quantity_bytes
from kubequant.api.outcome import FailureReason
from kubequant.api.params import INT4Parameters
from kubequant_worker.errors import BadRequestError
from kubequant_worker.evaluation.meter import Portion
from kubequant_worker.methods.engine import EngineQuantizer, calibration_note
from kubequant_worker.methods.llmcompressor import (
    LLMCompressorQuantizer,
    Modifier,
    Recipe,
    linear_modules,
    weights,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kubequant.api.spec import QuantizationJobSpec
    from kubequant_worker.datasets import TextSet
    from kubequant_worker.evaluation.meter import Meter
    from kubequant_worker.methods import Needs
    from kubequant_worker.methods.child import Child

BITS = 4
# How much of the stage reading text, loading and saving are, against one for the tuning.
_REST = 0.1


class LLMCompressorINT4(LLMCompressorQuantizer):
    """W4A16 by llmcompressor."""

    @classmethod
    def calibrates(cls, spec: QuantizationJobSpec) -> bool:
        """Return False: rounding needs no text."""
        del spec
        return False

    @classmethod
    def bits(cls, spec: QuantizationJobSpec) -> int:
        """Return how many bits a quantized weight has."""
        del spec
        return BITS

    @classmethod
    def recipe(cls, spec: QuantizationJobSpec) -> Recipe:
        """Return the recipe; rounding Tuned is another engine's."""
        asked = spec.int4 or INT4Parameters()
        weight = weights(BITS, group_size=asked.group_size, symmetric=asked.symmetric)
        return Recipe([Modifier("QuantizationModifier", linear_modules(weight, asked.ignore))])


class AutoRoundINT4(EngineQuantizer):
    """W4A16 by AutoRound, which learns the rounding of each block's weights.

    The model lies in the CPU's memory as a whole, and one block at a time on the device.
    """

    LIBRARY: ClassVar[str] = "auto-round"
    CHILD_MODULE: ClassVar[str] = "kubequant_worker.methods.auto_round_child"

    @classmethod
    def needs(cls, spec: QuantizationJobSpec, files: Mapping[str, int]) -> Needs:
        """Return what the run will take.

        Raises:
            BadRequestError: The model is to be spilled to disk.
        """
        if spec.memory.offload is Offload.DISK:
            raise BadRequestError(
                "spec.memory.offload: Disk is not possible with rounding: Tuned, since AutoRound "
                "keeps the whole model in memory while it tunes",
                reason=FailureReason.INVALID_SPEC,
                advice="set offload: CPU, which leaves one block at a time on a GPU, or "
                "rounding: Nearest",
            )
        return replace(super().needs(spec, files), memory_advice="")

    @classmethod
    def calibrates(cls, spec: QuantizationJobSpec) -> bool:
        """Return True: the rounding is learned from text."""
        del spec
        return True

    @classmethod
    def bits(cls, spec: QuantizationJobSpec) -> int:
        """Return how many bits a quantized weight has."""
        del spec
        return BITS

    def job(self, samples: Path | None) -> dict[str, Any]:
        """Return what the child is told beside the usual.

        `device`: where it computes, by torch's name. `spare_gpu`: keep what blocks are given in the
        CPU's memory. `one_by_one`: let one sequence at a time through a block. `most_gpu_bytes`: a
        bound, or None.
        """
        asked = cast("INT4Parameters", self._spec.parameters())
        memory = self._spec.memory
        most = memory.max_gpu_memory
        return {
            **super().job(samples),
            "bits": BITS,
            "group_size": asked.group_size,
            "symmetric": asked.symmetric,
            "ignore": list(asked.ignore),
            "iterations": asked.iterations,
            "device": "cuda:0" if self.on_gpu else "cpu",
            "spare_gpu": self.on_gpu and (memory.offload is Offload.CPU or memory.low_memory),
            "one_by_one": memory.low_memory,
            "most_gpu_bytes": quantity_bytes(most) if self.on_gpu and most else None,
        }

    def _engine_loading(self) -> dict[str, Any]:
        """Return how the engine loads the model: AutoRound itself brings blocks to the GPU."""
        return {**self.loading(), "device": "cpu", "most_bytes": None}

    def produce_with(
        self, child: Child, calibration: TextSet | None, meter: Meter
    ) -> tuple[str, ...]:
        """Write the quantized checkpoint by the engine in `child`; return notes."""
        if calibration is None:
            raise RuntimeError("the rounding cannot be learned without text")
        meter.set_total(1 + _REST)
        meter.advance(0, "reading calibration text")
        samples = self._calibration_file(child, calibration)
        tuning, told = Portion(meter, 1), 0

        def count(done: int, of: int, message: str) -> None:
            nonlocal told
            tuning.set_total(of)
            tuning.advance(done - told, message)
            told = done

        notes: list[str] = child.call("quantize", self.job(samples), on_event=count)
        return (*notes, calibration_note(samples))
