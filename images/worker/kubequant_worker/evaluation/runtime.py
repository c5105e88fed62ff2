"""What evaluation asks of a loaded model, whatever engine holds it.

Only the protocol and the values that cross it live here. llama.cpp and
transformers implement it in `methods`; neither is imported here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from kubequant_worker.evaluation.performance import Samples, Trial

TokenArray = npt.NDArray[np.int32]
FloatRows = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LogitRows:
    """Logits of consecutive positions of one window.

    `rows` has the shape (positions, vocabulary); row i holds the logits after the window's token
    `first_position` + i. The array is the runtime's own buffer: it is valid only until the next
    item is asked for, and must be copied by whoever keeps it.
    """

    window: int
    first_position: int
    rows: FloatRows


@dataclass(frozen=True, slots=True)
class Generation:
    """One greedy continuation.

    The new tokens (a stop token left out), their text, and what ended it.
    """

    tokens: tuple[int, ...]
    text: str
    stopped: bool


class Stops:
    """The texts that end a generation, looked for at its end while it grows."""

    # A token has a byte at least; the last ones may hold a stop's beginning.
    _MORE_TOKENS = 4

    def __init__(self, stops: Sequence[str], text: Callable[[Sequence[int]], str]) -> None:
        """Look for `stops` in what `text` makes of tokens."""
        self._stops = tuple(stop for stop in stops if stop)
        self._text = text
        longest = max((len(stop.encode()) for stop in self._stops), default=0)
        self._tokens = longest + self._MORE_TOKENS

    def reached(self, tokens: Sequence[int]) -> bool:
        """Say whether the last of `tokens` completed a stop."""
        if not self._stops:
            return False
        end = self._text(tokens[-self._tokens :])
        return any(stop in end for stop in self._stops)


class Runtime(Protocol):
    """One loaded model.

    A context manager; not thread-safe, and used by one thread from open to close.
    """

    @property
    def name(self) -> str:
        """Return the engine and its version, like "llama.cpp 0.3.36"."""

    @property
    def vocabulary_size(self) -> int:
        """Return the width of a row of logits."""

    @property
    def context_length(self) -> int:
        """Return the longest window, in tokens, that the runtime was opened for."""

    @property
    def trained_length(self) -> int:
        """Return the longest window, in tokens, that the model was trained on."""

    @property
    def bos_token(self) -> int | None:
        """Return the id that this model's tokenizer opens every text with.

        Or None where it does not.
        """

    @property
    def prefix_token(self) -> int:
        """Return the id that a text without any context is predicted from: BOS, else EOS."""

    @property
    def chat_template(self) -> str | None:
        """Return the model's own chat template (Jinja), or None where it has none."""

    def tokenize(self, texts: Sequence[str], *, special: bool = False) -> list[TokenArray]:
        """Return each text's token ids, without BOS or EOS.

        Special tokens in a text count only if `special`.
        """

    def logits(self, windows: Sequence[TokenArray]) -> Iterator[LogitRows]:
        """Yield the logits after every token of every window, in order, in bounded pieces.

        Each window is a context of its own, at most the `context_length` that the runtime was
        opened with.
        """

    def generate(self, prompts: Sequence[str], max_new_tokens: int) -> list[Generation]:
        """Return the greedy continuation of each prompt, which the tokenizer's BOS opens."""

    def complete(
        self, starts: Sequence[TokenArray], max_new_tokens: int, stops: Sequence[str] = ()
    ) -> list[Generation]:
        """Return the greedy continuation of each start, which opens as it is: nothing is added.

        A text also ends where one of `stops` comes up, which then is its end. The generations'
        texts are what their tokens say by themselves.
        """

    def perform(self, trial: Trial, on_step: Callable[[str], None]) -> Samples:
        """Time the model as `trial` asks; `on_step` hears of each of the trial's steps.

        It means something only where this model is all that the runtime's process ever did.
        """

    def close(self) -> None:
        """Free the model; a second call does nothing."""

    def __enter__(self) -> Self:
        """Return itself."""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the runtime."""
