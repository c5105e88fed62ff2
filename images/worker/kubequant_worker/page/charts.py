"""Which plots report.html has: each with its title, and only where at least one number is there.

How they are drawn stands in `plots`; the same numbers stand in the tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kubequant_worker import readable
from kubequant_worker.page.plots import Bar, Line, bars, dots, lines

if TYPE_CHECKING:
    from collections.abc import Callable

    from kubequant.api.contract import (
        DistillationDetail,
        OriginalReport,
        RunReport,
        VariantReport,
    )

    Reading = Callable[[OriginalReport | VariantReport], tuple[str | int | None, str]]


@dataclass(frozen=True, slots=True)
class Chart:
    """A plot as an SVG element, what it shows, and which way is better."""

    title: str
    hint: str
    svg: str


def quality_charts(report: RunReport) -> tuple[Chart, ...]:
    """Return perplexity with its errors, and its change with the smaller error of a pair."""
    found: list[Chart] = []
    rows: list[Bar] = []
    for name, one in _models(report):
        if one.perplexity is None:
            continue
        detail = one.perplexity_detail
        error = float(detail.standard_error or 0) if detail else 0.0
        text = readable.decimal(one.perplexity)
        rows += _untrained(one, "perplexity")
        rows.append(Bar(name, float(one.perplexity), text, error, name == "original"))
    if rows:
        title = "Perplexity"
        found.append(Chart(title, "lower is better", dots(title, rows, zero=False)))
    rows = [
        Bar(
            one.name,
            float(one.perplexity_increase_percent),
            readable.percent(one.perplexity_increase_percent, 2, sign=True),
            float(one.perplexity_increase_standard_error or 0),
        )
        for one in report.variants
        if one.perplexity_increase_percent is not None
    ]
    if rows:
        title = "Change of perplexity in percent"
        found.append(Chart(title, "paired error; lower is better", dots(title, rows, zero=True)))
    rows = []
    for one in report.variants:
        rows += _untrained(one, "mean_kl_divergence")
        if (value := one.mean_kl_divergence) is not None:
            rows.append(Bar(one.name, float(value), readable.divergence(value)))
    if rows:
        title = "Mean KL divergence, nats"
        found.append(Chart(title, "lower is better", bars(title, rows)))
    return tuple(found)


def _untrained(one: OriginalReport | VariantReport, number: str) -> list[Bar]:
    """Return a row for a student before it learned, where there was one."""
    detail: DistillationDetail | None = getattr(one, "distillation_detail", None)
    before = detail.untrained if detail else None
    value: str | None = getattr(before, number, None)
    if before is None or value is None:
        return []
    error = before.perplexity_standard_error if number == "perplexity" else None
    text = readable.decimal(value)
    return [Bar("untrained", float(value), text, float(error or 0), is_original=True)]


def training_charts(report: RunReport) -> tuple[Chart, ...]:
    """Return the losses and the learning rate over the steps of a student's training."""
    found = []
    for one in report.variants:
        points = one.distillation_detail.points if one.distillation_detail else ()
        if not points:
            continue
        steps = [point.step for point in points]
        series = [
            Line("loss", steps, [float(point.loss) for point in points]),
            Line("divergence", steps, [float(point.divergence) for point in points]),
            Line("hard labels", steps, [float(point.hard_loss) for point in points]),
        ]
        title = "Loss, nats a token"
        found.append(Chart(title, "lower is better", lines(title, series, x="step")))
        rates = [float(point.learning_rate or 0) for point in points]
        title = "Learning rate"
        drawing = lines(title, [Line("learning rate", steps, rates)], x="step")
        found.append(Chart(title, "rises, then falls along a cosine", drawing))
    return tuple(found)


def performance_charts(report: RunReport) -> tuple[Chart, ...]:
    """Return bars before and after for size, speed and memory."""
    charts = (
        _bars(report, "Weights", "smaller is better", lambda m: (
            m.size_bytes, readable.size(m.size_bytes))),
        _bars(report, "Generation, tokens per second", "longer is better", lambda m: (
            m.tokens_per_second, readable.rate(m.tokens_per_second))),
        _bars(report, "Prompt, tokens per second", "longer is better", lambda m: (
            (d.prompt_tokens_per_second, readable.rate(d.prompt_tokens_per_second))
            if (d := m.performance_detail) else (None, ""))),
        _bars(report, "Time to the first token", "shorter is better", lambda m: (
            (d.first_token_seconds, readable.seconds(d.first_token_seconds))
            if (d := m.performance_detail) else (None, ""))),
        _bars(report, "Peak memory", "shorter is better", lambda m: (
            m.peak_memory_bytes, readable.size(m.peak_memory_bytes))),
    )  # fmt: skip
    return tuple(chart for chart in charts if chart is not None)


def _models(report: RunReport) -> tuple[tuple[str, OriginalReport | VariantReport], ...]:
    original = [("original", report.original)] if report.original else []
    return (*original, *((one.name, one) for one in report.variants))


def _bars(report: RunReport, title: str, hint: str, read: Reading) -> Chart | None:
    rows: list[Bar] = []
    for name, one in _models(report):
        value, text = read(one)
        if value is not None:
            rows.append(Bar(name, float(value), text, is_original=one is report.original))
    return Chart(title, hint, bars(title, rows)) if rows else None
