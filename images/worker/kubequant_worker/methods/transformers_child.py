"""The child that holds one checkpoint: `python -m kubequant_worker.methods.transformers_child`.

It loads one model, once: a checkpoint that is measured after another gets a process that has never
seen the other. Rows of logits go to the parent through shared memory, in slots, so that the parent
works on one piece while the next is computed. The parent's half is `transformers_runtime`.
"""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from kubequant_worker.methods import remote_code
from kubequant_worker.methods.child import Parent, serve
from kubequant_worker.methods.stopwatch import measure
from kubequant_worker.methods.transformers_model import CheckpointModel, Loading
from kubequant_worker.methods.transformers_speed import CheckpointSubject

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kubequant_worker.evaluation.performance import Samples, Trial
    from kubequant_worker.evaluation.runtime import Generation, TokenArray
    from kubequant_worker.methods.child import Operation

SLOTS = 2


class Engine:
    """The operations of the child; what kind of model it holds may be another (`onnx_child`)."""

    MODEL: ClassVar[type[CheckpointModel]] = CheckpointModel

    def __init__(self, parent: Parent, *, memory_descriptor: int) -> None:
        """Answer to `parent`, with logits in the memory of `memory_descriptor`."""
        self._parent = parent
        self._descriptor = memory_descriptor
        self._model: CheckpointModel | None = None
        self._shared: mmap.mmap | None = None

    def operations(self) -> Mapping[str, Operation]:
        """Return what the parent may ask for."""
        return {
            "open": self.open,
            "close": self.close,
            "tokenize": self.tokenize,
            "score": self.score,
            "generate": self.generate,
            "complete": self.complete,
            "perform": self.perform,
        }

    def open(self, path: str, loading: Mapping[str, object]) -> dict[str, object]:
        """Load the model and return what a runtime has to know of it."""
        if self._model is not None:
            raise RuntimeError("this process has loaded a model already")
        how = Loading(**loading)  # type: ignore[arg-type] # crosses a pipe as a mapping
        remote_code.decide(trusted=how.trust_remote_code)
        model = self.MODEL(Path(path), how)
        self._model = model
        size = SLOTS * model.piece_rows * model.vocabulary_size * 4
        os.ftruncate(self._descriptor, size)
        self._shared = mmap.mmap(self._descriptor, size)
        return {
            "vocabulary_size": model.vocabulary_size,
            "context_length": model.context_length,
            "bos_token": model.bos_token,
            "prefix_token": model.prefix_token,
            "chat_template": model.chat_template,
            "slots": (SLOTS, model.piece_rows, model.vocabulary_size),
        }

    def close(self) -> None:
        """Do nothing: the parent ends this process to free the model."""

    def _loaded(self) -> CheckpointModel:
        if self._model is None:
            raise RuntimeError("no model is loaded")
        return self._model

    def tokenize(self, texts: Sequence[str], special: bool) -> list[TokenArray]:  # noqa: FBT001 - crosses a pipe
        """Return the ids of each text."""
        return [self._loaded().tokenize(text, special=special) for text in texts]

    def generate(self, prompts: Sequence[str], most: int) -> list[Generation]:
        """Return the greedy continuations."""
        return self._loaded().generate(prompts, most)

    def complete(
        self, starts: Sequence[TokenArray], most: int, stops: Sequence[str]
    ) -> list[Generation]:
        """Return the greedy continuations of token ids."""
        return self._loaded().complete(starts, most, stops)

    def perform(self, trial: Trial) -> Samples:
        """Time the model, telling the parent of each step."""
        model = self._loaded()
        return measure(
            CheckpointSubject(model),
            trial,
            loaded=model.loaded,
            threads=torch.get_num_threads(),
            on_step=self._parent.event,
        )

    def score(self, windows: Sequence[TokenArray]) -> None:
        """Put the logits of all windows, piece by piece, into the slots, and tell the parent.

        The parent answers each piece when it is done with it; a slot is written again only after
        that.
        """
        model, shared = self._loaded(), self._shared
        if shared is None:
            raise RuntimeError("no memory is shared")
        shape = (SLOTS, model.piece_rows, model.vocabulary_size)
        slots = np.ndarray(shape, np.float32, memoryview(shared))
        number = waiting = 0
        for window, tokens in enumerate(windows):
            for first, rows in model.rows(tokens):
                if waiting == SLOTS:
                    self._parent.receive()
                    waiting -= 1
                # A checkpoint may pad the rows of its output beyond the vocabulary.
                np.copyto(slots[number % SLOTS, : len(rows)], rows[:, : model.vocabulary_size])
                self._parent.event(number % SLOTS, [(window, first, len(rows))])
                number += 1
                waiting += 1
        for _ in range(waiting):
            self._parent.receive()


def main(kind: type[Engine] = Engine) -> None:
    """Serve until the parent is gone. Arguments: socket, parent's pid, shared memory, threads."""
    descriptor, threads = int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)

    def operations(parent: Parent) -> Mapping[str, Operation]:
        return kind(parent, memory_descriptor=descriptor).operations()

    serve(sys.argv[1:], operations)


if __name__ == "__main__":
    main()
