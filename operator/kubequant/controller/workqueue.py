"""The queue of keys to look at: one key at a time, never twice at once.

The semantics are those of client-go's workqueue: a key that is added while it waits is there once;
a key that is added while it is worked on comes again when that is done. Beside that each key has
at most one timer, for a deadline or for another try. What a key means is not known here.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

K = TypeVar("K", bound="Hashable")

FIRST_RETRY_SECONDS: Final = 0.005
LONGEST_RETRY_SECONDS: Final = 1000.0
_DOUBLINGS: Final = 18
"""After so many doublings the longest wait is passed; more would only make a large number."""


class WorkQueue(Generic[K]):
    """Keys in the order in which they came; used by the tasks of one event loop."""

    def __init__(self, jitter: Callable[[], float] = random.random) -> None:
        """Make an empty queue; `jitter` answers with numbers from 0 to 1."""
        self._jitter = jitter
        self._ready: asyncio.Queue[K] = asyncio.Queue()
        self._waiting: set[K] = set()
        self._taken: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        self._settled = asyncio.Event()
        self._settled.set()
        self._is_closed = False

    def __len__(self) -> int:
        """Return how many keys wait to be taken."""
        return len(self._waiting)

    async def settled(self) -> None:
        """Wait until no key is worked on."""
        await self._settled.wait()

    def add(self, key: K) -> None:
        """Have `key` looked at as soon as it is its turn."""
        if key in self._waiting or self._is_closed:
            return
        self._waiting.add(key)
        if key not in self._taken:
            self._ready.put_nowait(key)

    def add_after(self, key: K, seconds: float) -> None:
        """Have `key` looked at in `seconds`, instead of when its timer said before."""
        self.cancel(key)
        loop = asyncio.get_running_loop()
        self._timers[key] = loop.call_later(seconds, self._due, key)

    def cancel(self, key: K) -> None:
        """Forget the timer of `key`, if it has one."""
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    def retry(self, key: K) -> float:
        """Have `key` looked at again after its backoff, and return that in seconds.

        The wait doubles with every failure since `forget`; up to half of it is random, so that keys
        that failed together do not come back together.
        """
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        wait = min(
            FIRST_RETRY_SECONDS * 2 ** float(min(failures, _DOUBLINGS)), LONGEST_RETRY_SECONDS
        )
        seconds = wait * (1 - self._jitter() / 2)
        self.add_after(key, seconds)
        return seconds

    def failures(self, key: K) -> int:
        """Return how often `key` failed since `forget`."""
        return self._failures.get(key, 0)

    def forget(self, key: K) -> None:
        """Count the failures of `key` from zero again."""
        self._failures.pop(key, None)

    async def take(self) -> K:
        """Wait for a key and take it; `done` gives it back."""
        key = await self._ready.get()
        self._waiting.discard(key)
        self._taken.add(key)
        self._settled.clear()
        return key

    def done(self, key: K) -> None:
        """Give back a key that was taken; where it was added meanwhile it waits again."""
        self._taken.discard(key)
        if not self._taken:
            self._settled.set()
        if key in self._waiting and not self._is_closed:
            self._ready.put_nowait(key)

    def close(self) -> None:
        """Give out no more keys."""
        self._is_closed = True
        while not self._ready.empty():
            self._ready.get_nowait()
        for key in list(self._timers):
            self.cancel(key)

    def _due(self, key: K) -> None:
        self._timers.pop(key, None)
        self.add(key)
