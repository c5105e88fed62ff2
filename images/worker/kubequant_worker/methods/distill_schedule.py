"""What a training step sees and how large it is, and the curve that the steps leave. Pure.

All follows from the number of the step, so that a training that was interrupted goes on with the
very sequences and rates that it would have had.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

WARM_UP_SHARE: Final = 0.05
MOST_WARM_UP_STEPS: Final = 1000
LAST_SHARE: Final = 0.1
"""The learning rate rises over the first steps, then falls along a cosine to this share of it."""
MOST_POINTS: Final = 200

# Step, loss, divergence, hard loss, learning rate.
Point: TypeAlias = tuple[int, float, float, float, float]


def learning_rate(step: int, *, steps: int, peak: float) -> float:
    """Return the rate of a step, counted from 0 (Loshchilov and Hutter 2017, with a warm-up)."""
    warm_up = min(MOST_WARM_UP_STEPS, math.ceil(WARM_UP_SHARE * steps))
    if step < warm_up:
        return peak * (step + 1) / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return peak * (LAST_SHARE + (1 - LAST_SHARE) * (1 + math.cos(math.pi * done)) / 2)


@dataclass(frozen=True, slots=True)
class Order:
    """The order of `sequences` in steps of `batch`: all of them in each epoch, shuffled anew."""

    sequences: int
    batch: int
    seed: int

    def batch_of(self, step: int) -> npt.NDArray[np.int64]:
        """Return the numbers of the sequences that a step, counted from 0, sees."""
        first = step * self.batch
        places = range(first, first + self.batch)
        epochs = {place // self.sequences for place in places}
        shuffled = {epoch: self._epoch(epoch) for epoch in epochs}
        picked = [shuffled[at // self.sequences][at % self.sequences] for at in places]
        return np.array(picked, np.int64)

    def _epoch(self, epoch: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng((self.seed, epoch)).permutation(self.sequences)


@dataclass(slots=True)
class Curve:
    """The training curve in at most `MOST_POINTS` points, each the mean of as many steps."""

    steps: int
    points: list[Point] = field(default_factory=list)
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    waiting: int = 0

    @property
    def steps_a_point(self) -> int:
        """Return how many steps a point is the mean of; the last may have fewer."""
        return math.ceil(self.steps / MOST_POINTS)

    def add(self, step: int, losses: tuple[float, float, float], rate: float) -> None:
        """Count step number `step`, from 1, with its loss, divergence and hard loss."""
        self.sums = [total + loss for total, loss in zip(self.sums, losses, strict=True)]
        self.waiting += 1
        if self.waiting == self.steps_a_point or step == self.steps:
            loss, divergence, hard = (total / self.waiting for total in self.sums)
            self.points.append((step, loss, divergence, hard, rate))
            self.sums, self.waiting = [0.0, 0.0, 0.0], 0

    def to_json(self) -> dict[str, Any]:
        """Return the curve as a checkpoint keeps it."""
        return {"points": self.points, "sums": self.sums, "waiting": self.waiting}

    @classmethod
    def from_json(cls, steps: int, value: dict[str, Any]) -> Curve:
        """Return the curve that a checkpoint kept."""
        points = [(int(p[0]), *(float(n) for n in p[1:])) for p in value["points"]]
        sums = [float(total) for total in value["sums"]]
        return cls(steps, points, sums, int(value["waiting"]))  # type: ignore[arg-type] # five numbers each
