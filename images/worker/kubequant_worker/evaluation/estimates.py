"""The numbers of a variant that gates can hold, each with its standard error where one is known.

Read from what the report says of the variant, so that a gate can hold whatever is reported. Pure.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from kubequant.api.enums import Metric
from kubequant.api.evaluation import BENCHMARKED
from kubequant_worker.evaluation.gates import Estimate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kubequant.api.contract import BenchmarkDetail, VariantReport
    from kubequant_worker.evaluation.gates import Numbers

# The standard error of a median over that of a mean, for what spreads normally.
_MEDIAN: Final = math.sqrt(math.pi / 2)


def _speed_error(told: VariantReport) -> float | None:
    """Return the error of a median of repetitions, from their deviation."""
    detail = told.performance_detail
    deviation = _number(detail.tokens_per_second_deviation) if detail else None
    if detail is None or deviation is None or not detail.repetitions:
        return None
    return _MEDIAN * deviation / math.sqrt(detail.repetitions)


# Where the error of each metric stands; sizes are exact, and of memory only the peak is known.
_ERRORS: Final[dict[Metric, Callable[[VariantReport], float | None]]] = {
    Metric.PERPLEXITY: lambda v: _number(
        v.perplexity_detail.standard_error if v.perplexity_detail else None
    ),
    Metric.PERPLEXITY_INCREASE_PERCENT: lambda v: _number(v.perplexity_increase_standard_error),
    Metric.MEAN_KL_DIVERGENCE: lambda v: _number(
        v.divergence_detail.standard_error if v.divergence_detail else None
    ),
    Metric.TOP_TOKEN_AGREEMENT_PERCENT: lambda v: _number(
        v.divergence_detail.top_token_agreement_standard_error if v.divergence_detail else None
    ),
    Metric.TOKENS_PER_SECOND: _speed_error,
    Metric.SPEEDUP: lambda v: _number(v.speedup_standard_error),
}


def estimates(told: VariantReport, exact: Mapping[Metric, float | int]) -> Numbers:
    """Return what is known of a variant, by metric and task.

    `exact` has values at full precision, which the report rounds.
    """
    values = told.to_json()
    numbers: Numbers = {}
    for metric in Metric:
        if metric in BENCHMARKED:
            continue
        value = exact.get(metric, _number(values.get(metric[0].lower() + metric[1:])))
        if value is not None:
            error = _ERRORS[metric](told) if metric in _ERRORS else None
            numbers[metric, ""] = Estimate(value, error)
    return numbers | _benchmarks(told)


def _benchmarks(told: VariantReport) -> Numbers:
    """Return each task's score and change, by the first metric that the task has."""
    numbers: Numbers = {}
    for detail in told.benchmark_details:
        score = _number(detail.quantized)
        if score is None or (Metric.BENCHMARK_SCORE, detail.task) in numbers:
            continue
        error = _number(detail.quantized_standard_error)
        numbers[Metric.BENCHMARK_SCORE, detail.task] = Estimate(score, error)
        change = benchmark_change(detail)
        if change is not None:
            numbers[Metric.BENCHMARK_CHANGE, detail.task] = change
    return numbers


def benchmark_change(detail: BenchmarkDetail) -> Estimate | None:
    """Return by how much the variant is better than the original, in the metric's own unit.

    Negative where it is worse, whichever way is better; where the task does not say, more is. None
    where one of them has no value.
    """
    after, before = _number(detail.quantized), _number(detail.original)
    if after is None or before is None:
        return None
    errors = _number(detail.quantized_standard_error), _number(detail.original_standard_error)
    # Both models answer the same questions, so the true error is smaller than this.
    both = None if errors[0] is None or errors[1] is None else math.hypot(errors[0], errors[1])
    return Estimate(before - after if detail.higher_is_better is False else after - before, both)


def _number(text: object) -> float | None:
    return None if text is None else float(str(text))
