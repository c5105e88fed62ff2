"""What a run has found out so far, and the RunReport made of it at any moment.

A run that fails half-way still reports what it had measured. Nothing is computed here but shares
of what stands in the record.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kubequant.api.base import LOCAL
from kubequant.api.contract import (
    SCHEMA_VERSION,
    DatasetReport,
    EscalationStep,
    Failure,
    GateResult,
    Generation,
    OriginalReport,
    PerplexityDetail,
    Resolved,
    RunReport,
    RunRequest,
    StageTiming,
    Usage,
    VariantReport,
    settings_of,
)
from kubequant.api.enums import Metric
from kubequant.api.fields import decimal_text
from kubequant.api.gating import listed
from kubequant.api.outcome import ExitCode, FailureReason, Outcome
from kubequant_worker.advice import advised
from kubequant_worker.details import (
    benchmark_details,
    benchmark_results,
    distillation_detail,
    divergence_detail,
    performance_detail,
    published_files,
    source_report,
    sparsity_detail,
)
from kubequant_worker.environment import environment
from kubequant_worker.evaluation.baseline import reported_losses
from kubequant_worker.evaluation.estimates import estimates
from kubequant_worker.evaluation.performance import speedup

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kubequant.api.contract import Artifact
    from kubequant.api.enums import Method
    from kubequant_worker.benchmarks.score import Pair, Score
    from kubequant_worker.evaluation.gates import Numbers
    from kubequant_worker.evaluation.generations import SideBySide
    from kubequant_worker.evaluation.performance import Performance
    from kubequant_worker.evaluation.perplexity import Comparison, Perplexity
    from kubequant_worker.file_digest import FileDigest
    from kubequant_worker.ladder import Rung
    from kubequant_worker.methods import ProducedVariant
    from kubequant_worker.sources import FetchedModel

# How many characters a step of an escalation and any other sentence may have.
_STEP_CHARACTERS = 253
SENTENCE_CHARACTERS = 1024
RETRYABLE = frozenset({ExitCode.BUG, ExitCode.UNAVAILABLE, ExitCode.INTERRUPTED})


def now() -> dt.datetime:
    """Return the moment, in UTC and whole seconds, as Kubernetes writes times."""
    return dt.datetime.now(tz=dt.UTC).replace(microsecond=0)


@dataclass(slots=True)
class MeasuredVariant:
    """One variant and what is known of it so far."""

    produced: ProducedVariant
    notes: list[str] = field(default_factory=list)
    comparison: Comparison | None = None
    comparison_before: Comparison | None = None
    """The same of what it was made of and is measured beside it: a student before it learned."""
    performance: Performance | None = None
    benchmarks: tuple[Pair, ...] = ()
    generations: tuple[SideBySide, ...] = ()
    gates: tuple[GateResult, ...] = ()
    usage: Usage | None = None
    method: Method | None = None
    setting: str = ""
    bits: float | None = None
    in_place_of: tuple[str, ...] = ()


@dataclass(slots=True)
class Record:
    """Everything that a run has found out so far."""

    request: RunRequest
    started_at: dt.datetime = field(default_factory=now)
    stages: list[StageTiming] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    engine: str = ""
    engine_reason: str = ""
    revision: str = ""
    architecture: str = ""
    threads: int = 0
    source: FetchedModel | None = None
    fetched: dict[str, FetchedModel] = field(default_factory=dict)
    """What was fetched, by role: the model, and a student that the spec names."""
    datasets: list[DatasetReport] = field(default_factory=list)
    runtime: str = ""
    original_perplexity: Perplexity | None = None
    baseline_sha256: str | None = None
    taken_from: str = ""
    original_performance: Performance | None = None
    original_scores: list[Score] = field(default_factory=list)
    context_length: int = 0
    variants: list[MeasuredVariant] = field(default_factory=list)
    files: tuple[FileDigest, ...] = ()
    method: Method | None = None
    """The method at work last; None until one was, then the spec's or one that it escalated to."""
    steps: list[EscalationStep] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    """Why something else stands than the spec asked for."""
    left_at: str = ""
    """Where the report of a run was left that published nothing."""

    def report(
        self,
        *,
        outcome: Outcome,
        exit_code: ExitCode,
        failure: Failure | None = None,
        artifact: Artifact | None = None,
    ) -> RunReport:
        """Return the report of a run that ends now."""
        spec, student = self.request.spec, self.fetched.get("student")
        content = {
            "schema_version": SCHEMA_VERSION,
            "digest": self.request.digest,
            "namespace": self.request.namespace,
            "name": self.request.name,
            "outcome": outcome,
            "exit_code": exit_code,
            "failure": failure and failure.model_copy(update={"report_uri": self.left_at}),
            "resolved": Resolved(
                method=self.method or spec.method,
                engine=self.engine,
                image=self.request.image,
                device=spec.effective_device(),
                model_revision=self.revision,
                reason=_cut(
                    " ".join(filter(None, (self.request.reason, self.engine_reason, *self.reasons)))
                ),
            ),
            "original": self._original(),
            "variants": tuple(self._variant(variant, artifact) for variant in self.variants),
            "gates": tuple(gate for variant in self.variants for gate in variant.gates),
            "artifact": artifact,
            "escalation": tuple(self.steps),
            "usage": next((v.usage for v in self.variants if v.usage and artifact), None),
            "warnings": tuple(self.warnings),
            "source": source_report(self.source, self.architecture) if self.source else None,
            "student": source_report(student) if student else None,
            "datasets": tuple(self.datasets),
            "settings": settings_of(spec),
            "files": published_files(self.files),
            "stages": tuple(self.stages),
            "environment": environment(self.request.image, self.threads),
            "started_at": self.started_at,
            "finished_at": now(),
        }
        # Who wrote the request knew where it runs, so addresses on this machine are permitted.
        report = RunReport.model_validate(content, context=LOCAL)
        served = {v.produced.name: v.usage for v in self.variants if artifact}
        return advised(report, usage=served)

    def estimates(self, variant: MeasuredVariant) -> Numbers:
        """Return what was measured of a variant, with its errors, by what gates name."""
        return estimates(self._variant(variant, None), self._exact(variant))

    def _exact(self, variant: MeasuredVariant) -> dict[Metric, float | int]:
        """Return numbers that the report rounds."""
        size_bytes = variant.produced.size_bytes
        numbers: dict[Metric, float | int] = {Metric.SIZE_BYTES: size_bytes}
        if self.source is not None and self.source.size_bytes:
            share = 1 - size_bytes / self.source.size_bytes
            numbers[Metric.SIZE_REDUCTION_PERCENT] = 100 * share
        compared = variant.comparison
        if compared is not None:
            numbers |= {
                Metric.PERPLEXITY: compared.perplexity.value,
                Metric.PERPLEXITY_INCREASE_PERCENT: compared.perplexity_increase_percent,
                Metric.MEAN_KL_DIVERGENCE: compared.mean_kl_divergence,
                Metric.TOP_TOKEN_AGREEMENT_PERCENT: compared.top_token_agreement_percent,
            }
        if variant.performance is not None:
            numbers |= {
                Metric.TOKENS_PER_SECOND: variant.performance.tokens_per_second.median,
                Metric.PEAK_MEMORY_BYTES: variant.performance.peak_memory_bytes,
            }
        if (faster := self._speedup(variant)) is not None:
            numbers[Metric.SPEEDUP] = faster[0]
        return numbers

    def _speedup(self, variant: MeasuredVariant) -> tuple[float, float | None] | None:
        if variant.performance is None or self.original_performance is None:
            return None
        return speedup(self.original_performance, variant.performance)

    def note_gates(self, results: Iterable[GateResult]) -> None:
        """Keep the results of all gates, each with its variant."""
        found = tuple(results)
        for variant in self.variants:
            variant.gates = tuple(one for one in found if one.variant == variant.produced.name)

    def note_dataset(self, dataset: DatasetReport) -> None:
        """Keep what a text was used for, once for each role."""
        self.datasets = [one for one in self.datasets if one.role != dataset.role] + [dataset]

    def note_step(
        self,
        asked: str,
        rung: Rung,
        setting: str,
        made: MeasuredVariant | None,
        missed: Sequence[str] = (),
    ) -> None:
        """Keep one setting that was tried in place of `asked`, and what it missed."""
        told = self._variant(made, None) if made else None
        self.steps.append(
            EscalationStep(
                variant=rung.variant,
                in_place_of=asked,
                method=rung.method,
                setting=setting,
                size_reduction_percent=told.size_reduction_percent if told else None,
                perplexity_increase_percent=told.perplexity_increase_percent if told else None,
                mean_kl_divergence=told.mean_kl_divergence if told else None,
                gates_passed=not missed,
                missed=listed(missed, _STEP_CHARACTERS),
            )
        )

    def note_generations(self, variant: MeasuredVariant, texts: tuple[SideBySide, ...]) -> None:
        """Keep a variant's texts, and warn of those that only the quantization broke."""
        variant.generations = texts
        broken = [t.degenerate for t in texts if t.degenerate and not t.original_degenerate]
        if broken:
            kinds = ", ".join(sorted({kind.value.lower() for kind in broken}))
            self.warnings.append(
                f"{variant.produced.name}: of {len(texts)} generated texts {len(broken)} "
                f"{'is' if len(broken) == 1 else 'are'} degenerate ({kinds}) where the original's "
                "is not; look at them in report.html."
            )

    def _original(self) -> OriginalReport | None:
        if self.source is None:
            return None
        measured, timed = self.original_perplexity, self.original_performance
        return OriginalReport(
            size_bytes=self.source.size_bytes,
            perplexity=decimal_text(measured.value) if measured else None,
            taken_from=self.taken_from,
            tokens_per_second=decimal_text(timed.tokens_per_second.median, 3) if timed else None,
            peak_memory_bytes=timed.peak_memory_bytes if timed else None,
            runtime=self.runtime,
            perplexity_detail=self._perplexity(measured, losses=True),
            baseline_sha256=self.baseline_sha256 if measured else None,
            performance_detail=performance_detail(timed) if timed else None,
        )

    def _perplexity(
        self, measured: Perplexity | None, *, losses: bool = False
    ) -> PerplexityDetail | None:
        if measured is None:
            return None
        return PerplexityDetail(
            window_losses=reported_losses(measured) if losses else (),
            standard_error=decimal_text(measured.standard_error),
            tokens=measured.tokens,
            windows=len(measured.window_losses),
            context_length=self.context_length,
            mean_log_likelihood=decimal_text(-measured.mean_loss, 6),
        )

    def _variant(self, variant: MeasuredVariant, artifact: Artifact | None) -> VariantReport:
        produced, comparison = variant.produced, variant.comparison
        names = {path.as_posix() for path in produced.files}
        files = [file for file in self.files if file.path in names]
        single = files[0] if len(files) == 1 else None
        folder = artifact.uri if artifact else ""
        timed, faster = variant.performance, self._speedup(variant)
        return VariantReport(
            name=produced.name,
            uri=f"{folder}{single.path if single else ''}" if folder else "",
            sha256=single.sha256 if single else None,
            size_bytes=produced.size_bytes,
            size_reduction_percent=decimal_text(
                self._exact(variant).get(Metric.SIZE_REDUCTION_PERCENT), 2
            ),
            perplexity=decimal_text(comparison.perplexity.value) if comparison else None,
            perplexity_increase_percent=_text(comparison, "perplexity_increase_percent", 3),
            perplexity_increase_standard_error=_text(
                comparison, "perplexity_increase_standard_error", 3
            ),
            mean_kl_divergence=_text(comparison, "mean_kl_divergence", 6),
            top_token_agreement_percent=_text(comparison, "top_token_agreement_percent", 2),
            tokens_per_second=decimal_text(timed.tokens_per_second.median, 3) if timed else None,
            speedup=decimal_text(faster[0], 3) if faster else None,
            speedup_standard_error=decimal_text(faster[1], 3) if faster else None,
            peak_memory_bytes=timed.peak_memory_bytes if timed else None,
            performance_detail=performance_detail(timed) if timed else None,
            benchmarks=benchmark_results(variant.benchmarks),
            benchmark_details=benchmark_details(variant.benchmarks),
            gates_passed=all(gate.passed for gate in variant.gates) if variant.gates else None,
            perplexity_detail=self._perplexity(comparison.perplexity if comparison else None),
            divergence_detail=divergence_detail(comparison) if comparison else None,
            generations=tuple(_generation(one) for one in variant.generations),
            files=published_files(files),
            notes=(*produced.notes, *variant.notes),
            method=variant.method,
            setting=variant.setting,
            bits_per_weight=decimal_text(variant.bits, 2),
            in_place_of=variant.in_place_of,
            embedding_bytes=produced.embedding_bytes,
            sparsity_detail=sparsity_detail(produced.sparsity) if produced.sparsity else None,
            distillation_detail=distillation_detail(
                produced.distillation, variant.comparison_before, comparison
            )
            if produced.distillation
            else None,
            engine_detail=produced.engine,
        )


def _cut(words: str) -> str:
    return listed([words], SENTENCE_CHARACTERS)


def _text(comparison: Comparison | None, name: str, places: int) -> str | None:
    return decimal_text(getattr(comparison, name), places) if comparison else None


def _generation(one: SideBySide) -> Generation:
    return Generation(
        prompt=one.prompt,
        original=one.original,
        quantized=one.quantized,
        first_difference=one.first_difference,
        degenerate=one.degenerate is not None,
        degenerate_reason=str(one.degenerate or ""),
        original_degenerate=one.original_degenerate is not None,
    )


def failure_of(
    exit_code: ExitCode, reason: FailureReason, message: str, advice: str = ""
) -> Failure:
    """Return why a run failed, cut to what a report holds."""
    return Failure(
        reason=reason,
        message=_cut(message),
        exit_code=int(exit_code),
        retryable=exit_code in RETRYABLE,
        advice=_cut(advice),
    )


def failed_report(
    request: RunRequest,
    exit_code: ExitCode,
    reason: FailureReason,
    message: str,
    advice: str = "",
) -> RunReport:
    """Return the report of a run that could not write its own."""
    return Record(request).report(
        outcome=Outcome.FAILED,
        exit_code=exit_code,
        failure=failure_of(exit_code, reason, message, advice),
    )
