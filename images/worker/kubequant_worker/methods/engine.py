"""The parent's half of an engine that quantizes in a child of its own.

What all such engines share stands here: when their child starts and ends, how calibration text gets
there as token ids, where the results come back to. Which engine it is, and what it is asked for,
are the modules' beside this one. The child's half is `engine_child`; no engine is imported here.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from kubequant_worker.methods.checkpoint import CheckpointQuantizer
from kubequant_worker.methods.child import Child

if TYPE_CHECKING:
    from pathlib import Path

    from kubequant_worker.datasets import TextSet
    from kubequant_worker.evaluation.meter import Meter
    from kubequant_worker.methods import Workspace


class EngineQuantizer(CheckpointQuantizer):
    """A checkpoint method whose engine is a child's: `produce_with` asks it."""

    CHILD_MODULE: ClassVar[str]
    """The module that holds the engine, started as a program."""

    def __init__(self, workspace: Workspace) -> None:
        """Prepare to work in `workspace`; starts nothing."""
        super().__init__(workspace)
        self._child: Child | None = None

    @abstractmethod
    def produce_with(
        self, child: Child, calibration: TextSet | None, meter: Meter
    ) -> tuple[str, ...]:
        """Write the quantized checkpoint by the engine in `child`; return notes."""

    def _produce(self, calibration: TextSet | None, meter: Meter) -> tuple[str, ...]:
        child = self._started_child()
        try:
            return self.produce_with(child, calibration, meter)
        finally:
            self._end_child()

    def job(self, samples: Path | None) -> dict[str, Any]:
        """Return what every engine's child is told; an engine adds words of its own.

        `model`, `target`: the folders to read and to write. `loading`: the fields of
        `transformers_model.Loading`. `stored`: torch's name of the checkpoint's own type.
        `samples`: the file of calibration ids, or None. `probe`, `expected`: the file of the ids to
        compute once quantized (or None), and where their logits go.
        """
        return {
            "model": str(self._work.model),
            "target": str(self._work.artifact),
            "loading": self._engine_loading(),
            "stored": self._stored,
            "samples": str(samples) if samples else None,
            "probe": str(self._probe()) if self._reference else None,
            "expected": str(self.expected_logits),
            "seed": self._spec.calibration.seed,
        }

    def _engine_loading(self) -> dict[str, Any]:
        """Return how the engine loads the model: as it is measured, unless it says otherwise."""
        return self.loading()

    def _calibration_file(self, child: Child, texts: TextSet) -> Path:
        """Write the sequences to calibrate with to scratch, as token ids, and return the file.

        An array of shape (samples, length), int32.
        """
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
                self.CHILD_MODULE,
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
        """Return itself; an engine's imports take seconds, and begin while others fetch."""
        super().__enter__()
        self._started_child()
        return self

    def close(self) -> None:
        """End the children; a second call does nothing."""
        self._end_child()
        super().close()


def calibration_note(samples: Path) -> str:
    """Return the sentence on what an engine was calibrated with."""
    count, length = np.load(samples, mmap_mode="r").shape
    return f"calibrated with {count} sequences of {length} tokens"
