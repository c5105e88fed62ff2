"""What long work counts on, and how one part of a stage counts in a unit of its own."""

from __future__ import annotations

from typing import Protocol


class Meter(Protocol):
    """A counter of work done. `progress.StageProgress` is one."""

    def set_total(self, total: float) -> None:
        """Say how much there is to do."""

    def advance(self, amount: float, message: str | None = None) -> None:
        """Count `amount` more as done; `message` says at what."""


class Portion:
    """A part of another meter's work, counted in its own unit.

    Whatever its total is, the whole of it advances the other by `share`: a stage that converts
    (bytes) and then measures (tokens) gives each a portion.
    """

    def __init__(self, meter: Meter, share: float) -> None:
        """Be `share` units of `meter`."""
        self._meter = meter
        self._share = share
        self._total = 0.0
        self._told = 0.0

    def set_total(self, total: float) -> None:
        """Say how much there is to do, in this portion's unit."""
        self._total = total

    def advance(self, amount: float, message: str | None = None) -> None:
        """Count `amount` more of this portion's unit as done, never more than the whole share."""
        step = self._share * amount / self._total if self._total > 0 else 0.0
        step = min(step, self._share - self._told)
        self._told += step
        self._meter.advance(step, message)

    def finish(self) -> None:
        """Count what is left of the share as done."""
        left, self._told = self._share - self._told, self._share
        self._meter.advance(left)
