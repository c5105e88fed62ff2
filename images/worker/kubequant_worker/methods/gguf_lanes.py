"""Several contexts of one model at work side by side, each on windows of its own.

Threads that share one small batch wait for each other at every operation; contexts that share only
the weights do not, and lose nothing when another program takes a core from one of them. Runs in the
engine's child process only (`gguf_engine`).
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np

from kubequant_worker.closing import Closing
from kubequant_worker.methods.gguf_context import Batch, Context, Piece, batch_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from kubequant_worker.evaluation.runtime import TokenArray
    from kubequant_worker.methods.gguf_llama import LoadedModel

Span = tuple[int, int, int]

# Each lane holds a cache of its own, and the weights' bandwidth is shared by all.
MOST_LANES = 4
SLOTS_PER_LANE = 2


def lane_count(model: LoadedModel, windows: Sequence[TokenArray]) -> int:
    """Return how many lanes to use: 1 where a window takes several batches, kept in order."""
    if max(len(window) for window in windows) > batch_tokens(model.vocabulary_size):
        return 1
    return max(1, min(MOST_LANES, model.threads, len(windows)))


class Lanes(Closing):
    """Contexts of one model, each used by one thread at a time. A context manager."""

    def __init__(self, model: LoadedModel, count: int, longest: int) -> None:
        """Make `count` contexts for windows of up to `longest` tokens."""
        self._model = model
        self._stack = ExitStack()
        self._free: SimpleQueue[tuple[Context, Batch]] = SimpleQueue()
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="lane")
        size = batch_tokens(model.vocabulary_size)
        for _ in range(count):
            context = Context(
                model,
                length=longest,
                sequences=1,
                batch=size,
                threads=max(1, model.threads // count),
            )
            self._free.put((self._stack.enter_context(context), Batch(size)))

    def close(self) -> None:
        """Wait for what is being computed and free the contexts."""
        self._pool.shutdown(cancel_futures=True)
        self._stack.close()

    def score(
        self,
        windows: Sequence[TokenArray],
        slots: npt.NDArray[np.float32],
        tell: Callable[[int, list[Span]], None],
        wait: Callable[[], object],
    ) -> None:
        """Put each window's logits into a slot, shape (slots, rows, vocabulary), in order.

        `tell` hears of each slot that is ready, in the windows' order; `wait` returns when the
        oldest slot told of may be written again.
        """
        working: deque[tuple[int, Future[list[Span]]]] = deque()
        told = freed = 0
        for number, window in enumerate(windows):
            while number - freed >= len(slots):
                if told == freed:
                    told += _tell(working, tell)
                wait()
                freed += 1
            slot = number % len(slots)
            task = self._pool.submit(self._compute, number, window, slots[slot])
            working.append((slot, task))
            while working and working[0][1].done():
                told += _tell(working, tell)
        while working:
            told += _tell(working, tell)
        for _ in range(told - freed):
            wait()

    def _compute(
        self, number: int, window: TokenArray, slot: npt.NDArray[np.float32]
    ) -> list[Span]:
        context, batch = self._free.get()
        try:
            context.clear()
            count = batch.fill([Piece(number, 0, window, 0)])
            context.decode(batch)
            np.copyto(slot[:count], context.logits(count))
        finally:
            self._free.put((context, batch))
        return [(number, 0, count)]


def _tell(
    working: deque[tuple[int, Future[list[Span]]]], tell: Callable[[int, list[Span]], None]
) -> int:
    slot, task = working.popleft()
    tell(slot, task.result())
    return 1
