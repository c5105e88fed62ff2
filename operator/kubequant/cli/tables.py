"""Shows reports on a terminal: one row a variant, and what a person should know beside it.

A column or a table in which nothing was measured is left out.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from kubequant.api.outcome import Outcome
from kubequant_worker import readable
from kubequant_worker.page import tables as shared
from kubequant_worker.page.gates import gates_table
from kubequant_worker.page.method_tables import trainings
from kubequant_worker.page.view import shortfalls

if TYPE_CHECKING:
    from rich.console import Console

    from kubequant.api.contract import OriginalReport, RunReport, UntrainedStudent, VariantReport
    from kubequant_worker.comparison import Comparison


def print_report(report: RunReport, console: Console) -> None:
    """Print what became of a run: its tables, where the artifact is, notes, or the failure."""
    _print_variants(report, console)
    for table in (
        gates_table(report),
        shared.escalation_table(report),
        shared.benchmarks_table(report),
    ):
        if table:
            console.print(_table(table))
    for sentence in trainings(report):
        _say(console, f"trained: {escape(sentence)}")
    for note in (*report.warnings, *shortfalls(report)):
        _say(console, f"[yellow]note:[/] {escape(note)}")
    if report.failure is not None:
        failure = report.failure
        _say(console, f"[red]{failure.reason.value}:[/] {escape(failure.message)}")
        if failure.advice:
            _say(console, escape(failure.advice))
    for recommendation in report.recommendations:
        _say(console, f"[green]next:[/] {escape(recommendation)}")
    if report.failure is None:
        _print_success(report, console)


def _print_variants(report: RunReport, console: Console) -> None:
    if report.variants:
        console.print(_numbers(report))
    if shared.has_speed(report):
        console.print(_speeds(report))
    if report.recommended:
        _say(console, "* recommended")
    if any(one.gates_passed is False for one in report.variants):
        _say(console, "! a gate does not hold")


def _print_success(report: RunReport, console: Console) -> None:
    word = {
        Outcome.PUBLISHED: "published",
        Outcome.ALREADY_PUBLISHED: "already published, nothing done",
    }.get(report.outcome, str(report.outcome))
    if report.artifact is not None:
        console.print(f"{word}: {escape(report.artifact.uri)}", soft_wrap=True, highlight=False)
    if report.usage is not None:
        console.print(f"load it: {escape(report.usage.command)}", soft_wrap=True, highlight=False)


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print one row a variant, the best trade-offs of size and quality marked."""
    console.print(_compared(comparison))
    if comparison.measure:
        _say(
            console,
            f"* no other is both smaller and closer to its original, by {comparison.measure}",
        )
    for place, rows in groupby(comparison.rows, key=lambda row: row.place):
        keys = ", ".join(row.key for row in rows)
        console.print(f"{keys}: {escape(place)}", soft_wrap=True, highlight=False)
    for warning in comparison.warnings:
        _say(console, f"[yellow]note:[/] {escape(warning)}")


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False)


def _numbers(report: RunReport) -> Table:
    """Return sizes and losses, the original in the first row, the variant to serve with a star."""
    original = report.original
    rows = []
    if original is not None:
        before = (readable.size(original.size_bytes), "", readable.decimal(original.perplexity))
        rows.append(("original", *before, "", "", ""))
    for one in report.variants:
        sizes = (readable.size(one.size_bytes), readable.percent(one.size_reduction_percent))
        detail = one.distillation_detail
        if detail is not None and detail.untrained is not None:
            rows.append((shared.UNTRAINED, *sizes, *_losses(detail.untrained)))
        rows.append((_name(report, one), *sizes, *_losses(one)))
    head = ("variant", "size", "smaller", "perplexity", "change", "mean KL", "same token")
    title = f"{report.name}: {shared.method_name(report)}"
    return _before_and_after(report, shared.table(title, head, rows, words=1))


def _losses(one: VariantReport | UntrainedStudent) -> tuple[str, str, str, str]:
    return (
        readable.decimal(one.perplexity),
        readable.percent(one.perplexity_increase_percent, 2, sign=True),
        readable.divergence(one.mean_kl_divergence),
        readable.percent(one.top_token_agreement_percent),
    )


def _speeds(report: RunReport) -> Table:
    """Return speed and memory, the original in the first row."""
    rows = [_speed(_name(report, one), one, readable.times(one.speedup)) for one in report.variants]
    if report.original is not None:
        rows.insert(0, _speed("original", report.original, ""))
    head = ("variant", "tokens/s", "factor", "first token", "memory")
    return _before_and_after(report, shared.table("Speed", head, rows, words=1))


def _speed(name: str, one: OriginalReport | VariantReport, factor: str) -> tuple[str, ...]:
    detail = one.performance_detail
    return (
        name,
        readable.rate(one.tokens_per_second),
        factor,
        readable.seconds(detail.first_token_seconds) if detail else "",
        readable.size(one.peak_memory_bytes),
    )


def _name(report: RunReport, variant: VariantReport) -> str:
    failed = " !" if variant.gates_passed is False else ""
    return f"{variant.name}{' *' if variant.name == report.recommended else ''}{failed}"


def _before_and_after(report: RunReport, one: shared.Table) -> Table:
    """Return a table without empty columns, a line below the original."""
    one = shared.without_empty_columns(one)
    table = Table(title=escape(one.caption), title_justify="left")
    for index, name in enumerate(one.head):
        first = index == 0
        table.add_column(escape(name), justify="left" if first else "right", no_wrap=not first)
    for place, row in enumerate(one.rows):
        ends = place == 0 and report.original is not None
        table.add_row(*map(escape, row.cells), end_section=ends)
    return table


def _compared(comparison: Comparison) -> Table:
    """Return the columns by which a person decides; the page has all."""
    rows = [
        (
            f"{row.key} *" if row.is_optimal else row.key,
            row.name,
            readable.size(row.variant.size_bytes),
            readable.percent(row.variant.size_reduction_percent),
            readable.percent(row.variant.perplexity_increase_percent, 2, sign=True),
            readable.divergence(row.variant.mean_kl_divergence),
            readable.rate(row.variant.tokens_per_second),
            "no" if row.variant.gates_passed is False else "",
        )
        for row in comparison.rows
    ]
    head = ("", "model", "size", "smaller", "change", "mean KL", "tokens/s", "gates hold")
    return _table(shared.without_empty_columns(shared.table("", head, rows, words=2)))


def _table(one: shared.Table) -> Table:
    """Return a table of the page's for a terminal."""
    table = Table(title=escape(one.caption) or None, title_justify="left")
    for index, name in enumerate(one.head):
        word = index < one.words
        table.add_column(escape(name), justify="left" if word else "right", overflow="fold")
    for row in one.rows:
        table.add_row(*map(escape, row.cells))
    return table
