"""The parent's half of a model that is loaded in a child: the `Runtime` of evaluation.

Every engine's child answers the same requests (`tokenize`, `score`, `generate`, `complete`,
`perform`, `close`), and rows of logits come through memory that both share. What an engine does
besides stands in its own modules; none is imported here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Self, cast

import numpy as np

from kubequant_worker.evaluation.runtime import Generation, LogitRows, TokenArray

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    from kubequant_worker.evaluation.performance import Samples, Trial
    from kubequant_worker.methods.child import Child


class ChildEngine(Protocol):
    """What holds the child."""

    @property
    def child(self) -> Child:
        """Return the child, started now if it does not run."""

    def shared_memory(self) -> mmap.mmap:
        """Return the memory that the child writes logits to, at its present size."""

    def close(self) -> None:
        """End the child; a second call does nothing."""


class ChildRuntime:
    """One model loaded in an engine's child. Implements `evaluation.runtime.Runtime`."""

    def __init__(
        self, engine: ChildEngine, facts: Mapping[str, Any], *, name: str, context_length: int = 0
    ) -> None:
        """Serve windows of up to `context_length` tokens (0: the model's own context).

        `facts` is what the child answered to `open`.
        """
        self.engine = engine
        self._name = name
        self._vocabulary_size = int(facts["vocabulary_size"])
        trained = int(facts["context_length"])
        self._trained_length = trained
        self._context_length = min(context_length, trained) if context_length else trained
        self._bos_token = cast("int | None", facts["bos_token"])
        self._prefix_token = int(facts["prefix_token"])
        self._chat_template = cast("str | None", facts["chat_template"])
        self._slot_shape = tuple(int(part) for part in facts["slots"])
        self._memory = engine.shared_memory()
        self._open = True

    @property
    def name(self) -> str:
        """Return the engine and its version."""
        return self._name

    @property
    def vocabulary_size(self) -> int:
        """Return the width of a row of logits."""
        return self._vocabulary_size

    @property
    def context_length(self) -> int:
        """Return the longest window that this runtime measures."""
        return self._context_length

    @property
    def trained_length(self) -> int:
        """Return the longest window that the model was trained on."""
        return self._trained_length

    @property
    def bos_token(self) -> int | None:
        """Return the id that opens every text, None where the tokenizer adds none."""
        return self._bos_token

    @property
    def prefix_token(self) -> int:
        """Return the id that a text without any context is predicted from."""
        return self._prefix_token

    @property
    def chat_template(self) -> str | None:
        """Return the chat template that the model carries."""
        return self._chat_template

    def tokenize(self, texts: Sequence[str], *, special: bool = False) -> list[TokenArray]:
        """Return each text's ids, nothing added; see `Runtime.tokenize`."""
        return cast("list[TokenArray]", self.engine.child.call("tokenize", list(texts), special))

    def generate(self, prompts: Sequence[str], max_new_tokens: int) -> list[Generation]:
        """Return the greedy continuation of each prompt."""
        generated = self.engine.child.call("generate", list(prompts), max_new_tokens)
        return cast("list[Generation]", generated)

    def complete(
        self, starts: Sequence[TokenArray], max_new_tokens: int, stops: Sequence[str] = ()
    ) -> list[Generation]:
        """Return the greedy continuation of each start; see `Runtime.complete`."""
        arguments = (list(starts), max_new_tokens, list(stops))
        return cast("list[Generation]", self.engine.child.call("complete", *arguments))

    def perform(self, trial: Trial, on_step: Callable[[str], None]) -> Samples:
        """Time the model; see `Runtime.perform`."""
        return cast("Samples", self.engine.child.call("perform", trial, on_event=on_step))

    def logits(self, windows: Sequence[TokenArray]) -> Iterator[LogitRows]:
        """Yield the logits of every token of every window; see `Runtime.logits`."""
        slots = np.ndarray(self._slot_shape, np.float32, memoryview(self._memory))
        child = self.engine.child
        finished = False
        try:
            for slot, spans in child.events("score", list(windows)):
                at = 0
                for window, first, count in spans:
                    yield LogitRows(window, first, slots[slot, at : at + count])
                    at += count
                child.send("done")
            finished = True
        finally:
            if not finished:
                # The child waits in the middle of a batch: there is no way back but a new one.
                self.engine.close()
                self._open = False

    def close(self) -> None:
        """Free the model; a second call does nothing."""
        if self._open:
            self._open = False
            self.engine.child.call("close")

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Free the model, or leave it to the child's end where the run is being interrupted."""
        if exc_type is None:
            self.close()
