"""Turns what was measured into what a report says of it; `record` decides where each stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kubequant.api.contract import (
    BatchThroughput,
    BenchmarkDetail,
    BenchmarkResult,
    DistillationDetail,
    DivergenceDetail,
    ModuleSparsity,
    PerformanceDetail,
    PublishedFile,
    SourceReport,
    SparsityDetail,
    TrainingPoint,
    UntrainedStudent,
)
from kubequant.api.fields import decimal_text
from kubequant.api.status import MAX_BENCHMARKS
from kubequant_worker.environment import cpu_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kubequant_worker.benchmarks.score import Pair
    from kubequant_worker.evaluation.performance import Performance
    from kubequant_worker.evaluation.perplexity import Comparison
    from kubequant_worker.file_digest import FileDigest
    from kubequant_worker.methods.distillation import Distillation
    from kubequant_worker.methods.sparsity import Sparsity
    from kubequant_worker.sources import FetchedModel

# What a report holds; a group of the harness may have hundreds of tasks.
MOST_BENCHMARKS: Final = 256
MOST_MODULES: Final = 4096
MOST_RESUMPTIONS: Final = 64
_LONGEST_MODULE: Final = 253
# Below this share of its threads' time, a process that computes on a CPU was kept from computing.
_BUSY_PERCENT: Final = 60

MEANWHILE: Final = (
    "Nothing else of this run went on meanwhile: no other model was loaded, no number computed, "
    "and uploads began afterwards."
)


def divergence_detail(comparison: Comparison) -> DivergenceDetail:
    """Return how divergence and agreement were measured."""
    return DivergenceDetail(
        tokens=comparison.compared_tokens,
        standard_error=decimal_text(comparison.kl_standard_error, 6),
        median=decimal_text(comparison.median_kl_divergence, 6),
        percentile99=decimal_text(comparison.kl_percentile99, 6),
        maximum=decimal_text(comparison.most_kl_divergence, 6),
        top_token_agreement_standard_error=decimal_text(comparison.agreement_standard_error, 3),
    )


def performance_detail(measured: Performance) -> PerformanceDetail:
    """Return speed and memory in full."""
    samples, first = measured.samples, measured.first_token_seconds
    prompt = measured.prompt_tokens_per_second
    return PerformanceDetail(
        prompt_tokens=samples.prompt_tokens,
        new_tokens=samples.new_tokens,
        repetitions=len(samples.generation_seconds),
        tokens_per_second_deviation=decimal_text(measured.tokens_per_second.deviation, 3),
        prompt_tokens_per_second=decimal_text(prompt.median, 3),
        prompt_tokens_per_second_deviation=decimal_text(prompt.deviation, 3),
        first_token_seconds=decimal_text(first.median, 6),
        first_token_seconds_deviation=decimal_text(first.deviation, 6),
        load_seconds=decimal_text(samples.load_seconds, 3),
        batches=tuple(
            BatchThroughput(
                batch_size=batch.size,
                tokens_per_second=decimal_text(batch.tokens_per_second.median, 3),
                tokens_per_second_deviation=decimal_text(batch.tokens_per_second.deviation, 3),
            )
            for batch in measured.batches
        ),
        peak_resident_memory_bytes=samples.peak_resident_bytes,
        library_memory_bytes=samples.library_bytes,
        peak_gpu_memory_bytes=samples.peak_gpu_bytes,
        cpu_percent=decimal_text(measured.cpu_percent, 1),
        threads=samples.threads,
        device=samples.gpu or cpu_name(),
        runtime=measured.runtime,
        process_id=samples.process_id,
        meanwhile=MEANWHILE,
        notes=(*samples.notes, *_disturbance(measured)),
    )


def _disturbance(measured: Performance) -> tuple[str, ...]:
    if measured.samples.gpu or measured.cpu_percent >= _BUSY_PERCENT:
        return ()
    sentence = (
        f"other work took part of the machine: the process had {measured.cpu_percent:.0f} % of its "
        "threads' time, so speeds are lower than they could be; memory is not touched by that"
    )
    return (sentence,)


def benchmark_results(benchmarks: Sequence[Pair]) -> tuple[BenchmarkResult, ...]:
    """Return what `status` holds of benchmarks, as many as it takes."""
    return tuple(
        BenchmarkResult(
            task=one.original.task,
            metric=one.original.metric,
            original=decimal_text(one.original.value, 6),
            quantized=decimal_text(one.quantized.value, 6),
            stderr=decimal_text(one.quantized.standard_error, 6),
        )
        for one in benchmarks[:MAX_BENCHMARKS]
    )


def benchmark_details(benchmarks: Sequence[Pair]) -> tuple[BenchmarkDetail, ...]:
    """Return every benchmark's metrics in full."""
    return tuple(
        BenchmarkDetail(
            task=one.original.task,
            metric=one.original.metric,
            higher_is_better=one.original.higher_is_better,
            original=decimal_text(one.original.value, 6),
            original_standard_error=decimal_text(one.original.standard_error, 6),
            quantized=decimal_text(one.quantized.value, 6),
            quantized_standard_error=decimal_text(one.quantized.standard_error, 6),
            samples=one.quantized.samples,
            few_shot=one.quantized.few_shot,
            version=one.quantized.version,
        )
        for one in benchmarks[:MOST_BENCHMARKS]
    )


def sparsity_detail(found: Sparsity) -> SparsityDetail:
    """Return the zeros of a pruned model; of too many modules those farthest from what was asked.

    A name that is too long for a report loses its beginning.
    """
    shown = found.matrices
    if len(shown) > MOST_MODULES:
        farthest = sorted(shown, key=lambda one: -abs(one.share - found.asked))[:MOST_MODULES]
        kept = {one.module for one in farthest}
        shown = tuple(one for one in shown if one.module in kept)
    return SparsityDetail(
        asked_percent=decimal_text(100 * found.asked, 2),
        percent=decimal_text(100 * found.share, 2),
        two_of_four=all(one.is_two_of_four for one in found.matrices),
        module_count=len(found.matrices),
        modules=tuple(
            ModuleSparsity(
                module=one.module[-_LONGEST_MODULE:],
                weights=one.weights,
                zeros=one.zeros,
                percent=decimal_text(100 * one.share, 2),
            )
            for one in shown
        ),
    )


def published_files(files: Iterable[FileDigest]) -> tuple[PublishedFile, ...]:
    """Return digests as the report writes them."""
    return tuple(
        PublishedFile(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256)
        for file in files
    )


def source_report(model: FetchedModel, architecture: str = "") -> SourceReport:
    """Return a model as it was fetched."""
    return SourceReport(
        uri=model.uri,
        revision=model.revision or "",
        architecture=architecture,
        card=model.card,
        steps=model.steps,
        files=published_files(model.files),
    )


def distillation_detail(
    found: Distillation, before: Comparison | None, after: Comparison | None
) -> DistillationDetail:
    """Return how a student learned, with what it was worth `before` held against `after`."""
    cut = found.cut
    return DistillationDetail(
        kept_layers=cut.kept if cut else (),
        teacher_layers=cut.teacher_layers if cut else 0,
        steps=found.steps,
        sequences=found.sequences,
        sequence_length=found.sequence_length,
        tokens=found.tokens,
        sequences_at_once=found.sequences_at_once,
        precision=found.precision,
        resumed_at=found.resumed_at[-MOST_RESUMPTIONS:],
        points=tuple(
            TrainingPoint(
                step=step,
                loss=decimal_text(loss, 6) or "0",
                divergence=decimal_text(divergence, 6) or "0",
                hard_loss=decimal_text(hard, 6) or "0",
                learning_rate=decimal_text(rate, 9),
            )
            for step, loss, divergence, hard, rate in found.points
        ),
        untrained=_untrained(before, after) if before else None,
    )


def _untrained(before: Comparison, after: Comparison | None) -> UntrainedStudent:
    return UntrainedStudent(
        perplexity=decimal_text(before.perplexity.value),
        perplexity_standard_error=decimal_text(before.perplexity.standard_error),
        perplexity_increase_percent=decimal_text(before.perplexity_increase_percent, 3),
        mean_kl_divergence=decimal_text(before.mean_kl_divergence, 6),
        top_token_agreement_percent=decimal_text(before.top_token_agreement_percent, 2),
        perplexity_reduction_percent=_reduction(
            before.perplexity.value, after.perplexity.value if after else None
        ),
        divergence_reduction_percent=_reduction(
            before.mean_kl_divergence, after.mean_kl_divergence if after else None
        ),
    )


def _reduction(before: float, after: float | None) -> str | None:
    """Return by how many percent `after` is smaller."""
    return None if after is None or not before else decimal_text(100 * (1 - after / before), 2)
