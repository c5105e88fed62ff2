"""Shows a report on a terminal: one row a variant, and what a person should know beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from kubequant.api.contract import Outcome

if TYPE_CHECKING:
    from rich.console import Console

    from kubequant.api.contract import RunReport, VariantReport
    from kubequant.api.status import Original

MIB = 2**20


def print_report(report: RunReport, console: Console) -> None:
    """Print what became of a run: its table, where the artifact is, warnings, or the failure."""
    if report.variants:
        console.print(_table(report))
        if (benchmarks := _benchmarks(report)) is not None:
            console.print(benchmarks)
    for warning in report.warnings:
        console.print(f"[yellow]note:[/] {escape(warning)}", highlight=False)
    if report.failure is not None:
        failure = report.failure
        console.print(f"[red]{failure.reason.value}:[/] {escape(failure.message)}", highlight=False)
        if failure.advice:
            console.print(escape(failure.advice), highlight=False)
        return
    word = {
        Outcome.PUBLISHED: "published",
        Outcome.ALREADY_PUBLISHED: "already published, nothing done",
    }.get(report.outcome, str(report.outcome))
    if report.artifact is not None:
        console.print(f"{word}: {escape(report.artifact.uri)}", soft_wrap=True, highlight=False)
    if report.usage is not None:
        console.print(f"load it: {escape(report.usage.command)}", soft_wrap=True, highlight=False)


def _table(report: RunReport) -> Table:
    """Return the numbers, the original in the first row."""
    method = report.settings.method.value if report.settings else ""
    table = Table(title=escape(f"{report.name}: {method}"), title_justify="left")
    table.add_column("type")
    for name in ("size", "smaller", "perplexity", "change", "mean KL", "same token"):
        table.add_column(name, justify="right", no_wrap=True)
    original = report.original
    timed = original is not None and original.tokens_per_second is not None
    if timed:
        table.add_column("tokens/s", justify="right", no_wrap=True)
        table.add_column("memory", justify="right", no_wrap=True)
    if original is not None:
        row = ("original", _mib(original.size_bytes), "", _cut(original.perplexity), "", "", "")
        table.add_row(*row, *_speed(original, timed=timed))
        table.add_section()
    for variant in report.variants:
        table.add_row(*_row(variant, timed=timed))
    return table


def _speed(numbers: Original | VariantReport, *, timed: bool) -> tuple[str, ...]:
    """Return the cells of speed and memory, none where nothing was timed."""
    if not timed:
        return ()
    faster = getattr(numbers, "speedup", None)
    times = f" ({float(faster):.2f}x)" if faster else ""
    return f"{_cut(numbers.tokens_per_second, 1)}{times}", _mib(numbers.peak_memory_bytes)


def _benchmarks(report: RunReport) -> Table | None:
    """Return the benchmarks' results, a row for each metric of each variant."""
    rows = [
        (variant.name, one.task, one.metric, _cut(one.original, 4), _cut(one.quantized, 4))
        for variant in report.variants
        for one in variant.benchmarks
    ]
    if not rows:
        return None
    table = Table(title="benchmarks", title_justify="left")
    for name in ("type", "task", "metric"):
        table.add_column(name)
    for name in ("original", "quantized"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _row(variant: VariantReport, *, timed: bool) -> tuple[str, ...]:
    mark = "" if variant.gates_passed is not False else " (gate failed)"
    return (
        f"{variant.name}{mark}",
        _mib(variant.size_bytes),
        _with(_cut(variant.size_reduction_percent, 1), " %"),
        _cut(variant.perplexity),
        _with(_signed(_cut(variant.perplexity_increase_percent)), " %"),
        _cut(variant.mean_kl_divergence, 4),
        _with(_cut(variant.top_token_agreement_percent, 1), " %"),
        *_speed(variant, timed=timed),
    )


def _mib(size_bytes: int | None) -> str:
    return "" if size_bytes is None else f"{size_bytes / MIB:.1f} MiB"


def _cut(decimal: str | None, places: int = 2) -> str:
    return "" if decimal is None else f"{float(decimal):.{places}f}"


def _signed(decimal: str) -> str:
    if not decimal or float(decimal) == 0:
        return decimal.removeprefix("-")
    return decimal if decimal.startswith("-") else f"+{decimal}"


def _with(text: str, unit: str) -> str:
    return f"{text}{unit}" if text else ""
