"""The tables of report.html, as rows of text.

A column in which no model has anything is left out, so that what was not measured takes no room.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kubequant.api.contract import BenchmarkDetail, PerformanceDetail
from kubequant_worker import readable
from kubequant_worker.evaluation.estimates import benchmark_change
from kubequant_worker.serving import served_variant

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from kubequant.api.contract import (
        BenchmarkResult,
        OriginalReport,
        RunReport,
        UntrainedStudent,
        VariantReport,
    )
    from kubequant_worker.comparison import Comparison

NOT_MEASURED: Final = "not measured"
DO_NOT_HOLD: Final = "do not hold"
DOES_NOT_HOLD: Final = "does not hold"
FALLS_SHORT: Final = "falls short"
UNTRAINED: Final = "untrained"
FAULTS: Final = frozenset({DO_NOT_HOLD, DOES_NOT_HOLD, FALLS_SHORT})


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table; `kind` is what sets it apart: original or best."""

    cells: tuple[str, ...]
    kind: str = ""
    badge: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table. The first `words` columns hold words, the others numbers.

    `faults` are the cells that say that something is not as it should be.
    """

    caption: str
    head: tuple[str, ...]
    rows: tuple[Row, ...]
    words: int = 1
    faults: frozenset[str] = FAULTS

    def __bool__(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.rows)


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], words: int) -> Table:
    """Return a table of plain rows."""
    return Table(caption, tuple(head), tuple(Row(tuple(cells)) for cells in rows), words)


def method_name(report: RunReport) -> str:
    """Return the method that was used, also where the spec says Auto."""
    if report.resolved is not None and report.resolved.method is not None:
        return report.resolved.method.value
    return report.settings.method.value if report.settings else "a method"


def setting(report: RunReport, variant: VariantReport) -> str:
    """Return how many bits a variant has and how, as far as the report says; "" where not."""
    if variant.setting:
        # The name of a GGUF type says all of it.
        return "" if variant.setting == variant.name else variant.setting
    settings = report.settings
    bits = getattr(settings.parameters(), "bits", None) if settings else None
    known = {"INT4": 4, "INT8": 8, "FP8": 8}
    bits = bits or known.get(method_name(report))
    return f"{bits} bits" if bits else ""


def variants_table(report: RunReport) -> Table:
    """Return one row a variant with what decides between them, where there are several."""
    best = served_variant(report)
    rows = []
    for one in report.variants:
        named = one is best and len(report.variants) > 1 and report.recommended == one.name
        held = {True: "hold", False: DO_NOT_HOLD, None: ""}[one.gates_passed]
        cells = (
            one.name,
            setting(report, one),
            readable.size(one.size_bytes),
            readable.percent(one.size_reduction_percent),
            readable.percent(one.perplexity_increase_percent, 2, sign=True),
            readable.percent(one.top_token_agreement_percent),
            readable.times(one.speedup),
            held,
        )
        rows.append(Row(cells, "best" if named else "", "recommended" if named else ""))
    head = (
        "variant", "setting", "size", "smaller", "perplexity", "same top token", "speed", "gates",
    )  # fmt: skip
    return without_empty_columns(
        Table("What was made", head, tuple(rows) if len(rows) > 1 else (), words=2)
    )


def escalation_table(report: RunReport) -> Table:
    """Return the settings that were tried one after another because gates did not hold."""
    rows = tuple(
        Row(
            (
                step.in_place_of,
                step.variant,
                step.setting,
                readable.percent(step.size_reduction_percent),
                readable.percent(step.perplexity_increase_percent, 2, sign=True),
                "hold" if step.gates_passed else step.missed or DO_NOT_HOLD,
            )
        )
        for step in report.escalation
    )
    head = ("in place of", "tried", "setting", "smaller", "perplexity", "gates")
    return without_empty_columns(Table("What was tried until gates held", head, rows, words=3))


def quality_table(report: RunReport) -> Table:
    """Return perplexity, divergence and agreement with their errors."""
    original = report.original
    if original is None or original.perplexity is None:
        return Table("", (), ())
    detail = original.perplexity_detail
    error = detail.standard_error if detail else None
    cells = (
        "original", readable.with_error(readable.decimal(original.perplexity), error), "", "", "",
    )  # fmt: skip
    rows = [Row(cells, "original")]
    for one in report.variants:
        before = one.distillation_detail.untrained if one.distillation_detail else None
        rows += [Row(_untrained(before))] if before else []
        rows.append(Row(_quality(one)))
    head = ("", "perplexity", "change", "mean KL divergence, nats", "same top token")
    return Table("Measured on the same tokens; ± is one standard error", head, tuple(rows))


def _untrained(one: UntrainedStudent) -> tuple[str, ...]:
    return (
        UNTRAINED,
        readable.with_error(readable.decimal(one.perplexity), one.perplexity_standard_error),
        readable.percent(one.perplexity_increase_percent, 2, sign=True),
        readable.divergence(one.mean_kl_divergence),
        readable.percent(one.top_token_agreement_percent),
    )


def _quality(one: VariantReport) -> tuple[str, ...]:
    detail, divergence = one.perplexity_detail, one.divergence_detail
    return (
        one.name,
        readable.with_error(
            readable.decimal(one.perplexity), detail.standard_error if detail else None
        ),
        readable.with_error(
            readable.percent(one.perplexity_increase_percent, 2, sign=True),
            one.perplexity_increase_standard_error,
        ),
        readable.with_error(
            readable.divergence(one.mean_kl_divergence),
            divergence.standard_error if divergence else None,
        ),
        readable.with_error(
            readable.percent(one.top_token_agreement_percent),
            divergence.top_token_agreement_standard_error if divergence else None,
        ),
    )


def expectation_table(report: RunReport) -> Table:
    """Return what the method usually gives beside what was measured."""
    rows = []
    for one in report.variants:
        if (expected := one.expected) is None:
            continue
        most = expected.most_perplexity_increase_percent
        rows.append(
            Row(
                (
                    one.name,
                    readable.percent(expected.size_reduction_percent),
                    readable.percent(one.size_reduction_percent) or NOT_MEASURED,
                    f"at most +{most} %" if most else expected.quality,
                    readable.percent(one.perplexity_increase_percent, 2, sign=True) or NOT_MEASURED,
                    expected.quality if most else "",
                    FALLS_SHORT if expected.shortfalls else "as expected",
                )
            )
        )
    head = (
        "variant", "size: expected", "size: measured", "perplexity: expected",
        "perplexity: measured", "in words", "verdict",
    )  # fmt: skip
    return without_empty_columns(Table("Expected beside measured", head, tuple(rows)))


def benchmarks_table(report: RunReport) -> Table:
    """Return the benchmarks before and after, with their errors; a gain below 0 is a loss."""
    rows = [row for one in report.variants for row in _benchmarks(one)]
    head = ("variant", "task", "metric", "original", "quantized", "gain", "questions")
    return without_empty_columns(table("Benchmarks", head, rows, words=3))


def _benchmarks(one: VariantReport) -> Iterator[tuple[str, ...]]:
    """Yield what is known in full, then what an older report knows in short."""
    known = {(found.task, found.metric) for found in one.benchmark_details}
    for found in one.benchmark_details:
        before, after = readable.decimal(found.original, 4), readable.decimal(found.quantized, 4)
        yield (
            one.name,
            found.task,
            found.metric,
            readable.with_error(before, found.original_standard_error),
            readable.with_error(after, found.quantized_standard_error),
            _gain(found),
            f"{found.samples:,}" if found.samples else "",
        )
    for result in one.benchmarks:
        if (result.task, result.metric) in known:
            continue
        yield (
            one.name,
            result.task,
            result.metric,
            readable.decimal(result.original, 4),
            readable.with_error(readable.decimal(result.quantized, 4), result.stderr),
            _gain(_in_full(result)),
            "",
        )


def _in_full(short: BenchmarkResult) -> BenchmarkDetail:
    values = {name: getattr(short, name) for name in ("task", "metric", "original", "quantized")}
    return BenchmarkDetail(**values)


def _gain(detail: BenchmarkDetail) -> str:
    change = benchmark_change(detail)
    if change is None:
        return ""
    error = None if change.standard_error is None else f"{change.standard_error:.6f}"
    return readable.with_error(readable.signed(f"{change.value:.4f}", 4), error)


def performance_table(report: RunReport) -> Table:
    """Return speed and memory before and after, with the repetitions' deviations."""
    rows = [Row(_speed(one.name, one, readable.times(one.speedup))) for one in report.variants]
    if report.original is not None:
        rows.insert(0, Row(_speed("original", report.original, ""), "original"))
    head = (
        "", "weights", "generation, tokens/s", "factor", "prompt, tokens/s", "first token",
        "loading", "peak memory",
    )  # fmt: skip
    speed = "; speeds are medians, ± their standard deviation over the repetitions"
    caption = f"Before and after{speed if has_speed(report) else ''}"
    return without_empty_columns(Table(caption, head, tuple(rows)))


def has_speed(report: RunReport) -> bool:
    """Return whether the speed of any variant was measured."""
    return any(is_timed(one) for one in report.variants)


def is_timed(variant: VariantReport) -> bool:
    """Return whether the speed of this variant was measured."""
    return variant.performance_detail is not None or variant.tokens_per_second is not None


def _speed(name: str, one: OriginalReport | VariantReport, factor: str) -> tuple[str, ...]:
    detail = one.performance_detail or PerformanceDetail()
    return (
        name,
        readable.size(one.size_bytes),
        readable.with_error(
            readable.rate(one.tokens_per_second), detail.tokens_per_second_deviation
        ),
        factor,
        readable.with_error(
            readable.rate(detail.prompt_tokens_per_second),
            detail.prompt_tokens_per_second_deviation,
        ),
        readable.seconds(detail.first_token_seconds),
        readable.seconds(detail.load_seconds),
        readable.size(one.peak_memory_bytes),
    )


def batches_table(report: RunReport) -> Table:
    """Return the throughput of several texts at once, one column a number of texts."""
    details = [("original", report.original.performance_detail if report.original else None)]
    details += [(one.name, one.performance_detail) for one in report.variants]
    sizes = sorted({b.batch_size for _, d in details if d for b in d.batches})
    rows = []
    for name, detail in details:
        if detail is None or not detail.batches:
            continue
        by_size = {b.batch_size: readable.rate(b.tokens_per_second) for b in detail.batches}
        cells = (name, *(by_size.get(size, "") for size in sizes))
        rows.append(Row(cells, "original" if name == "original" else ""))
    head = ("", *(f"{size} texts" for size in sizes))
    return Table("Tokens per second of several texts at once", head, tuple(rows))


def comparison_table(comparison: Comparison) -> Table:
    """Return one row a variant of several reports, the best trade-offs marked."""
    rows = []
    for one in comparison.rows:
        variant, report = one.variant, one.report
        held = {True: "hold", False: DO_NOT_HOLD, None: ""}[variant.gates_passed]
        cells = (
            one.key,
            one.name,
            setting(report, variant),
            readable.size(variant.size_bytes),
            readable.percent(variant.size_reduction_percent),
            readable.with_error(
                readable.percent(variant.perplexity_increase_percent, 2, sign=True),
                variant.perplexity_increase_standard_error,
            ),
            readable.divergence(variant.mean_kl_divergence),
            readable.percent(variant.top_token_agreement_percent),
            readable.rate(variant.tokens_per_second),
            held,
        )
        rows.append(Row(cells, "best", "best trade-off") if one.is_optimal else Row(cells))
    head = (
        "", "model", "setting", "size", "smaller", "perplexity", "mean KL", "same top token",
        "tokens/s", "gates",
    )  # fmt: skip
    return without_empty_columns(Table("Every variant", head, tuple(rows), words=3))


def without_empty_columns(table: Table) -> Table:
    """Return a table without the columns in which no row has anything."""
    kept = [
        index for index in range(len(table.head)) if any(row.cells[index] for row in table.rows)
    ]
    return Table(
        table.caption,
        tuple(table.head[index] for index in kept),
        tuple(
            Row(tuple(row.cells[index] for index in kept), row.kind, row.badge)
            for row in table.rows
        ),
        sum(index < table.words for index in kept),
    )
