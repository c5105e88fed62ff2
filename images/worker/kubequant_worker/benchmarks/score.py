"""What crosses between us and the harness's child, and the scores that come of it. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Question:
    """A benchmark as the manifest asks for it; `field` is its place there.

    `gate` is the place of the first gate that holds it, "" where none does.
    """

    field: str
    task: str
    few_shot: int
    limit: int | None
    gate: str = ""


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


def scores(question: Question, tasks: Sequence[str], results: Mapping[str, Any]) -> Iterator[Score]:
    """Yield the scores in the harness's `results` for a question that stands for `tasks`.

    Of a task its own numbers; of a group its own, or else its tasks'; of a tag its tasks'.
    """
    found = results["results"]
    names = [question.task] if _numbers(found.get(question.task, {})) else tasks
    for name in names:
        values = found.get(name, {})
        members = [name] if name in results["n-samples"] else tasks
        samples = sum(results["n-samples"][one]["effective"] for one in members)
        better = results["higher_is_better"].get(name) or {}
        for key, value in _numbers(values).items():
            metric, _, kind = key.partition(",")
            error = values.get(f"{metric}_stderr,{kind}")
            yield Score(
                task=name,
                metric=metric if kind == "none" else key,
                value=value,
                standard_error=float(error) if _is_number(error) else None,
                samples=samples,
                few_shot=question.few_shot,
                higher_is_better=better.get(metric),
                version=str(results["versions"].get(name) or "")[:32],
            )


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in values.items()
        if "," in key and "_stderr," not in key and _is_number(value)
    }


def _is_number(value: object) -> bool:
    try:
        return not isinstance(value, str) and math.isfinite(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
