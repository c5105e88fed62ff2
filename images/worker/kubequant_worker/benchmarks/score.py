"""What crosses between us and the harness's child, and the scores that come of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Question:
    """A benchmark as the manifest asks for it; `field` is its place there."""

    field: str
    task: str
    few_shot: int
    limit: int | None


@dataclass(frozen=True, slots=True)
class Speaker:
    """What the harness has to know of a model.

    `opening` is the id that the tokenizer opens every text with, None where it does not; `prefix`
    the one that a text without a context is predicted from; `length` the longest window in tokens.
    """

    opening: int | None
    prefix: int
    length: int


@dataclass(frozen=True, slots=True)
class Score:
    """One metric of one task for one model; `standard_error` is None where the harness has none."""

    task: str
    metric: str
    value: float
    standard_error: float | None
    samples: int
    few_shot: int
    higher_is_better: bool | None
    version: str


@dataclass(frozen=True, slots=True)
class Pair:
    """The same metric of the original and of a variant."""

    original: Score
    quantized: Score


def pairs(original: Sequence[Score], quantized: Sequence[Score]) -> tuple[Pair, ...]:
    """Return what both have, in the original's order."""
    by_name = {(score.task, score.metric): score for score in quantized}
    return tuple(
        Pair(score, by_name[score.task, score.metric])
        for score in original
        if (score.task, score.metric) in by_name
    )
