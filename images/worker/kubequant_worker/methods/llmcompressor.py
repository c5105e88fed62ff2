"""The parent's half of llmcompressor: what all methods that it does share.

A method gives a recipe, as plain values that cross to the child (`llmcompressor_child`), which
holds the library; it is not imported here.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from kubequant.api.spec import Device, Offload
from kubequant_worker.evaluation.meter import Portion
from kubequant_worker.methods.checkpoint import CheckpointQuantizer
from kubequant_worker.methods.child import Child

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from kubequant.api.spec import QuantizationJobSpec
    from kubequant_worker.datasets import TextSet
    from kubequant_worker.evaluation.meter import Meter
    from kubequant_worker.methods import Workspace

_MODULE = "kubequant_worker.methods.llmcompressor_child"
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


class LLMCompressorQuantizer(CheckpointQuantizer):
    """Quantizes by a recipe."""

    LIBRARY: ClassVar[str] = "llmcompressor"

    def __init__(self, workspace: Workspace) -> None:
        """Prepare to work in `workspace`; starts nothing."""
        super().__init__(workspace)
        self._child: Child | None = None

    @classmethod
    @abstractmethod
    def recipe(cls, spec: QuantizationJobSpec) -> Recipe:
        """Return the recipe for the spec's parameters.

        Raises:
            BadRequestError: This engine cannot do what they ask for.
        """

    def _produce(self, calibration: TextSet | None, meter: Meter) -> tuple[str, ...]:
        child = self._started_child()
        try:
            return self.produce_with(child, calibration, meter)
        finally:
            self._end_child()

    def produce_with(
        self, child: Child, calibration: TextSet | None, meter: Meter
    ) -> tuple[str, ...]:
        """Write the quantized checkpoint by the engine in `child`; return notes."""
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

        job = self.job(recipe, self._work.artifact, samples)
        notes: list[str] = child.call("quantize", job, on_event=count)
        if samples is not None:
            count_of, length = np.load(samples, mmap_mode="r").shape
            notes.append(f"calibrated with {count_of} sequences of {length} tokens")
        return tuple(notes)

    def job(self, recipe: Recipe, target: Path, samples: Path | None) -> dict[str, Any]:
        """Return what the child is asked to do."""
        return {
            "model": str(self._work.model),
            "target": str(target),
            "loading": self._engine_loading(),
            "stored": self._stored,
            "modifiers": [asdict(modifier) for modifier in recipe.modifiers],
            "one_by_one": recipe.one_by_one,
            "samples": str(samples) if samples else None,
            "probe": str(self._probe()) if self._reference else None,
            "expected": str(self.expected_logits),
            "seed": self._spec.calibration.seed,
        }

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

    def _calibration_file(self, child: Child, texts: TextSet) -> Path:
        """Write the sequences to calibrate with to scratch, as token ids, and return the file."""
        trusted = self._spec.model.trust_remote_code
        path = str(self._work.model)
        found = child.call("tokenize", path, trusted, list(texts.documents), texts.templated)
        samples = self._samples(
            texts,
            np.concatenate([np.empty(0, np.int32), *found["ids"]]),
            context_length=found["context_length"],
            bos=found["bos_token"],
        )
        target = self._work.scratch / "calibration.npy"
        np.save(target, samples)
        return target

    def _started_child(self) -> Child:
        if self._child is None:
            threads = self._work.threads
            self._child = Child(
                _MODULE,
                engine=self.engine(),
                threads=threads,
                arguments=(str(threads),),
                gpus=self.on_gpu,
            )
        return self._child

    def _end_child(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None

    def __enter__(self) -> Self:
        """Return itself; llmcompressor's imports take seconds too, and begin while others fetch."""
        super().__enter__()
        self._started_child()
        return self

    def close(self) -> None:
        """End the children; a second call does nothing."""
        self._end_child()
        super().close()
