"""How far a run is: stages with a percent and an ETA that come from work done, never from a timer.

Each stage tells its `StageProgress` what it has done; sinks (a terminal bar, log lines, the
operator's status server) show it. Thread-safe, since downloads and uploads report from their own
threads.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kubequant.api.outcome import Stage


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One stage at one moment; `fraction` never falls, `eta_seconds` is None while unknown."""

    stage: Stage
    fraction: float
    eta_seconds: float | None
    message: str
    finished: bool


class Sink(Protocol):
    """Something that shows snapshots: called in order; must be quick and must not raise."""

    def update(self, snapshot: Snapshot) -> None:
        """Show `snapshot`."""


class StageProgress:
    """One stage's counter, in the unit of its work: bytes, layers, tokens."""

    def __init__(
        self,
        stage: Stage,
        total: float,
        publish: Callable[[Snapshot], None],
        clock: Callable[[], float],
    ) -> None:
        """Count to `total` units (0: not known yet, see `set_total`)."""
        self._stage = stage
        self._total = total
        self._publish = publish
        self._clock = clock
        self._started = clock()
        self._done = 0.0
        self._fraction = 0.0
        self._message = ""
        self._lock = threading.Lock()

    def set_total(self, total: float) -> None:
        """Say how much there is to do, once it is known or known better."""
        with self._lock:
            self._total = total
        self.advance(0)

    def advance(self, amount: float, message: str | None = None) -> None:
        """Count `amount` more units as done; `message` says at what, like "layer 14 of 32"."""
        with self._lock:
            self._done += amount
            if self._total > 0:
                self._fraction = max(self._fraction, min(1.0, self._done / self._total))
            if message is not None:
                self._message = message
            eta = None
            if self._fraction > 0:
                eta = (self._clock() - self._started) / self._fraction * (1 - self._fraction)
            self._publish(Snapshot(self._stage, self._fraction, eta, self._message, finished=False))

    def finish(self) -> None:
        """Say that the stage is complete."""
        with self._lock:
            self._fraction = 1.0
            self._publish(Snapshot(self._stage, 1.0, 0.0, self._message, finished=True))


class Progress:
    """The run's progress, handed to every stage."""

    def __init__(
        self, sinks: Sequence[Sink] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Show every snapshot in each of `sinks`."""
        self._sinks = tuple(sinks)
        self._clock = clock
        self._lock = threading.Lock()

    @contextmanager
    def stage(self, stage: Stage, total: float = 0) -> Iterator[StageProgress]:
        """Open `stage`; leaving the block without an exception finishes it."""
        progress = StageProgress(stage, total, self._show, self._clock)
        progress.advance(0)
        yield progress
        progress.finish()

    def _show(self, snapshot: Snapshot) -> None:
        with self._lock:
            for sink in self._sinks:
                sink.update(snapshot)
