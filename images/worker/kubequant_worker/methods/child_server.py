"""The child's half of a model that is loaded in a child: what `child_runtime` asks.

The same for every engine: the operations, the facts that `open` answers with, and the slots in
shared memory by which rows of logits go to the parent, so that it works on one piece while the next
is computed. What an engine does besides stands in its own modules; none is imported here.
"""

from __future__ import annotations

import math
import mmap
import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from kubequant_worker.evaluation.performance import Samples, Trial
    from kubequant_worker.evaluation.runtime import FloatRows, Generation, TokenArray
    from kubequant_worker.methods.child import Operation, Parent

Span = tuple[int, int, int]
"""A window's number, the first of its tokens that is meant, and how many."""


class ServedModel(Protocol):
    """What every engine's model can do; see `evaluation.runtime.Runtime` for what it means."""

    vocabulary_size: int
    context_length: int
    bos_token: int | None
    prefix_token: int
    chat_template: str | None

    def tokenize(self, text: str, *, special: bool) -> TokenArray:
        """Return a text's ids, nothing added."""

    def generate(self, prompts: Sequence[str], most: int, /) -> list[Generation]:
        """Return the greedy continuations."""

    def complete(
        self, starts: Sequence[TokenArray], most: int, stops: Sequence[str], /
    ) -> list[Generation]:
        """Return the greedy continuations of token ids."""


Model = TypeVar("Model", bound=ServedModel)


class ModelServer(ABC, Generic[Model]):
    """The operations of a child that holds one model at a time, but for `open`."""

    SLOTS: ClassVar[int] = 2
    """How many pieces of logits may wait for the parent."""

    def __init__(self, parent: Parent, *, memory_descriptor: int) -> None:
        """Answer to `parent`, with logits in the memory of `memory_descriptor`."""
        self._parent = parent
        self._descriptor = memory_descriptor
        self._model: Model | None = None
        self._slots: np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None = None

    def operations(self) -> Mapping[str, Operation]:
        """Return what the parent may ask for."""
        return {
            "close": self.close,
            "tokenize": self.tokenize,
            "score": self.score,
            "generate": self.generate,
            "complete": self.complete,
            "perform": self.perform,
        }

    def _serve(self, model: Model, *, rows: int) -> dict[str, Any]:
        """Hold `model`, share memory for slots of `rows` rows of logits, and return the facts."""
        shape = (self.SLOTS, rows, model.vocabulary_size)
        size = math.prod(shape) * 4
        os.ftruncate(self._descriptor, size)
        memory = memoryview(mmap.mmap(self._descriptor, size))
        self._model, self._slots = model, np.ndarray(shape, np.float32, memory)
        return {
            "vocabulary_size": model.vocabulary_size,
            "context_length": model.context_length,
            "bos_token": model.bos_token,
            "prefix_token": model.prefix_token,
            "chat_template": model.chat_template,
            "slots": shape,
        }

    def _loaded(self) -> Model:
        if self._model is None:
            raise RuntimeError("no model is loaded")
        return self._model

    def _shared(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        """Return the slots, shape (slots, rows of a slot, vocabulary)."""
        if self._slots is None:
            raise RuntimeError("no memory is shared")
        return self._slots

    @abstractmethod
    def close(self) -> None:
        """Free the model, if one is loaded."""

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

    @abstractmethod
    def perform(self, trial: Trial) -> Samples:
        """Time the model, telling the parent of each step."""

    @abstractmethod
    def score(self, windows: Sequence[TokenArray]) -> None:
        """Put the logits of all windows, piece by piece, into the slots, and tell the parent."""

    def _hand_over(self, pieces: Iterable[tuple[Sequence[Span], FloatRows]]) -> None:
        """Put each piece of logits into the next slot, and tell the parent whose they are.

        The parent answers each piece when it is done with it; a slot is written again only after
        that.
        """
        slots = self._shared()
        waiting = 0
        for number, (spans, rows) in enumerate(pieces):
            if waiting == self.SLOTS:
                self._parent.receive()
                waiting -= 1
            slot = number % self.SLOTS
            # A checkpoint may pad the rows of its output beyond the vocabulary.
            np.copyto(slots[slot, : len(rows)], rows[:, : slots.shape[2]])
            self._parent.event(slot, spans)
            waiting += 1
        for _ in range(waiting):
            self._parent.receive()
