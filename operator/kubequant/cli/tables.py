"""Shows reports on a terminal: one row a variant, and what a person should know beside it.

A column or a table in which nothing was measured is left out.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from kubequant.api.contract import Outcome
from kubequant_worker import readable
from kubequant_worker.page import tables as shared
from kubequant_worker.page.view import shortfalls

if TYPE_CHECKING:
    from rich.console import Console

    from kubequant.api.contract import OriginalReport, RunReport, VariantReport
    from kubequant_worker.comparison import Comparison


def print_report(report: RunReport, console: Console) -> None:
    """Print what became of a run: its tables, where the artifact is, notes, or the failure."""
    if report.variants:
        console.print(_numbers(report))
    for table in (
        shared.gates_table(report),
        shared.escalation_table(report),
        shared.benchmarks_table(report),
    ):
        if table:
            console.print(_table(table))
    for note in (*report.warnings, *shortfalls(report)):
        _say(console, f"[yellow]note:[/] {escape(note)}")
    if report.failure is not None:
        failure = report.failure
        _say(console, f"[red]{failure.reason.value}:[/] {escape(failure.message)}")
        if failure.advice:
            _say(console, escape(failure.advice))
        return
    _print_success(report, console)


def _print_success(report: RunReport, console: Console) -> None:
    for recommendation in report.recommendations:
        _say(console, f"[green]next:[/] {escape(recommendation)}")
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
    """Return what was measured, the original in the first row."""
    rows = [_original(report.original)] if report.original is not None else []
    rows += [_variant(report, variant) for variant in report.variants]
    head = (
        "type", "size", "smaller", "perplexity", "change", "mean KL", "same token", "tokens/s",
        "faster", "memory",
    )  # fmt: skip
    kept = [n for n in range(len(head)) if any(row[n] for row in rows)]
    table = Table(
        title=escape(f"{report.name}: {shared.method_name(report)}"), title_justify="left"
    )
    for index in kept:
        first = index == 0
        table.add_column(head[index], justify="left" if first else "right", no_wrap=not first)
    for place, row in enumerate(rows):
        table.add_row(
            *(escape(row[index]) for index in kept),
            end_section=place == 0 and report.original is not None,
        )
    return table


def _original(original: OriginalReport) -> tuple[str, ...]:
    return (
        "original",
        readable.size(original.size_bytes),
        "",
        readable.decimal(original.perplexity),
        "",
        "",
        "",
        readable.rate(original.tokens_per_second),
        "",
        readable.size(original.peak_memory_bytes),
    )


def _variant(report: RunReport, variant: VariantReport) -> tuple[str, ...]:
    marks = [" (gate failed)"] if variant.gates_passed is False else []
    marks += [" (recommended)"] if variant.name == report.recommended else []
    return (
        f"{variant.name}{''.join(marks)}",
        readable.size(variant.size_bytes),
        readable.percent(variant.size_reduction_percent),
        readable.decimal(variant.perplexity),
        readable.percent(variant.perplexity_increase_percent, 2, sign=True),
        readable.decimal(variant.mean_kl_divergence, 4),
        readable.percent(variant.top_token_agreement_percent),
        readable.rate(variant.tokens_per_second),
        readable.times(variant.speedup),
        readable.size(variant.peak_memory_bytes),
    )


def _compared(comparison: Comparison) -> Table:
    """Return the columns by which a person decides; the page has all."""
    rows = [
        (
            f"{row.key} *" if row.is_optimal else row.key,
            row.name,
            readable.size(row.variant.size_bytes),
            readable.percent(row.variant.size_reduction_percent),
            readable.percent(row.variant.perplexity_increase_percent, 2, sign=True),
            readable.decimal(row.variant.mean_kl_divergence, 4),
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
