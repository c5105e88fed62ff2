"""The RunReport: everything that a run measured, decided and published, as report.json holds it.

A report is a claim of the pod that wrote it: models here bound what a reader must hold, and nothing
more is believed. How a report is cut to fit a termination message stands in `termination`.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, StrictBool, StrictInt, StrictStr

from kubequant.api.base import Model
from kubequant.api.details import (
    BenchmarkDetail,
    DistillationDetail,
    DivergenceDetail,
    EngineDetail,
    Generation,
    PerformanceDetail,
    PerplexityDetail,
    SparsityDetail,
)
from kubequant.api.enums import Method
from kubequant.api.fields import (
    SHA256,
    AnyURI,
    ByteCount,
    MeasuredDecimal,
    RunDigest,
    Sentence,
    ShortText,
)
from kubequant.api.outcome import ExitCode, Outcome, Stage
from kubequant.api.params import DistillParameters, MethodParameters
from kubequant.api.pod import Pod
from kubequant.api.spec import MEMBERS, QuantizationJobSpec
from kubequant.api.status import (
    MAX_VARIANTS,
    Artifact,
    Count,
    Failure,
    Original,
    Resolved,
    Setting,
    Steps,
    Time,
    Usage,
    Variant,
    VariantName,
)

SCHEMA_VERSION: Final = 2
"""The version of the report's form: what a reader of version N must know to read all of it.

A new field that older readers may pass over needs no new version, but it is cheap: readers are
tolerant, say when a report is newer than they are, and read what is older.
"""

Role = Literal["calibration", "evaluation"]


class PublishedFile(Model):
    """One file of the artifact."""

    path: Annotated[StrictStr, Field(min_length=1, max_length=1024)]
    """Its path below the artifact's folder."""
    size_bytes: ByteCount
    """Its size."""
    sha256: SHA256
    """Its digest."""


Files = Annotated[tuple[PublishedFile, ...], Field(max_length=4096)]
Notes = Annotated[tuple[Sentence, ...], Field(max_length=256)]


class OriginalReport(Original):
    """The original's numbers, with how they were measured."""

    runtime: ShortText = ""
    """What loaded the model for measuring, like "llama.cpp (F16)"."""
    perplexity_detail: PerplexityDetail | None = None
    """How the perplexity was measured."""
    baseline_sha256: SHA256 | None = None
    """The digest of what decides the losses: the model's files, the tokens and the runtime."""
    performance_detail: PerformanceDetail | None = None
    """Speed and memory in full."""


class Expectation(Model):
    """What the method usually gives, to hold the measured numbers against."""

    size_reduction_percent: MeasuredDecimal | None = None
    """How much smaller than a 16-bit original the weights usually are."""
    most_perplexity_increase_percent: MeasuredDecimal | None = None
    """How much higher the perplexity may be before the result counts as worse than usual."""
    quality: ShortText = ""
    """The quality to expect, in words."""
    shortfalls: Annotated[tuple[Sentence, ...], Field(max_length=4)] = ()
    """Where the measured numbers fall short of it."""


class VariantReport(Variant):
    """A variant's numbers, with how they were measured, its files and its texts."""

    method: Method | None = None
    """The method that made it, also where the run escalated to another than the spec's."""
    setting: Setting = ""
    """How it was made, in a few words, like "4 bits in groups of 128"."""
    bits_per_weight: MeasuredDecimal | None = None
    """Bits of a quantized weight: a method's own, for a GGUF type its usual mean."""
    in_place_of: Annotated[tuple[VariantName, ...], Field(max_length=MAX_VARIANTS)] = ()
    """The variants of the spec for which it stands because their gates did not hold."""
    expected: Expectation | None = None
    """What the method usually gives."""
    embedding_bytes: ByteCount | None = None
    """Bytes of the token embeddings and the output matrix, which most methods leave wider."""

    sparsity_detail: SparsityDetail | None = None
    """What is zero in a pruned model."""
    distillation_detail: DistillationDetail | None = None
    """How a student learned, and what it was worth before."""
    engine_detail: EngineDetail | None = None
    """What a TensorRT-LLM engine was built on and for."""
    perplexity_detail: PerplexityDetail | None = None
    """How the perplexity was measured."""
    perplexity_increase_standard_error: MeasuredDecimal | None = None
    """The standard error of perplexityIncreasePercent, in percent: paired, since both models read
    the same windows."""
    divergence_detail: DivergenceDetail | None = None
    """How divergence and agreement were measured."""
    performance_detail: PerformanceDetail | None = None
    """Speed and memory in full."""
    speedup_standard_error: MeasuredDecimal | None = None
    """The standard error of speedup, from the spread of both models' repetitions."""
    benchmark_details: Annotated[tuple[BenchmarkDetail, ...], Field(max_length=256)] = ()
    """Every benchmark's metrics in full."""
    generations: Annotated[tuple[Generation, ...], Field(max_length=16)] = ()
    """Texts side by side."""
    files: Files = ()
    """The variant's files."""
    notes: Notes = ()
    """What was done otherwise than asked, like a tensor that fell back to another type."""

    def for_status(self) -> Variant:
        """Return the part that `status.variants` holds."""
        return Variant.model_validate({name: getattr(self, name) for name in Variant.model_fields})


class DatasetReport(Model):
    """A text that was used."""

    role: Role
    """For what it was used."""
    bundled: StrictBool = False
    """Whether it is the text that comes with kubequant; own data would do better."""
    uri: AnyURI = ""
    """Where it came from; empty for the bundled text."""
    revision: Annotated[StrictStr, Field(max_length=128)] = ""
    """The commit it was read at."""
    sha256: SHA256 | None = None
    """The digest of the text that was used."""
    samples: Count = 0
    """How many samples were taken."""
    tokens: Count = 0
    """How many tokens those have."""


class SourceCard(Model):
    """What the source's own model card says and a derived model's card passes on."""

    license: ShortText = ""
    """The licence's identifier, as the Hub writes it."""
    license_name: ShortText = ""
    """The name of a licence that has no identifier there."""
    license_link: AnyURI = ""
    """Where that licence can be read."""
    languages: Annotated[tuple[ShortText, ...], Field(max_length=64)] = ()
    """The languages of its text."""
    pipeline_tag: ShortText = ""
    """The task that the Hub files it under, like text-generation."""


class EarlierStep(Model):
    """One step that made the source out of another model, by the source's own provenance.json."""

    method: ShortText
    """The method."""
    setting: ShortText = ""
    """How, in a few words."""
    run: ShortText = ""
    """The digest of its run."""
    uri: AnyURI = ""
    """Where the model came from that it was made of."""


class SourceReport(Model):
    """The model as it was fetched."""

    uri: AnyURI
    """Where it came from."""
    revision: Annotated[StrictStr, Field(max_length=128)] = ""
    """The commit it was fetched at."""
    architecture: ShortText = ""
    """Its architecture, like LlamaForCausalLM."""
    card: SourceCard | None = None
    """What its model card says; absent where it has none."""
    steps: Annotated[tuple[EarlierStep, ...], Field(max_length=16)] = ()
    """How it was made itself, the first step first, where kubequant made it."""
    files: Files = ()
    """Its files, with their digests."""


class StageTiming(Model):
    """How long a stage took."""

    stage: Stage
    """The stage."""
    started_at: Time
    """When it started."""
    seconds: MeasuredDecimal
    """How long it took."""


class Library(Model):
    """A program or library that took part."""

    name: Annotated[StrictStr, Field(min_length=1, max_length=128)]
    """Its name."""
    version: Annotated[StrictStr, Field(max_length=128)] = ""
    """Its version."""


class GPU(Model):
    """One GPU, by its driver's words."""

    name: ShortText
    """Its name."""
    memory_bytes: ByteCount | None = None
    """How much memory it has."""


class Environment(Model):
    """Where the run took place."""

    image: Annotated[StrictStr, Field(max_length=512)] = ""
    """The worker's image; empty outside a cluster."""
    platform: ShortText = ""
    """Operating system and machine."""
    cpu: ShortText = ""
    """The processor's name."""
    threads: Count = 0
    """How many threads computed."""
    memory_bytes: ByteCount | None = None
    """How much memory the run might use."""
    gpus: Annotated[tuple[GPU, ...], Field(max_length=64)] = ()
    """The GPUs that the run saw."""
    versions: Annotated[tuple[Library, ...], Field(max_length=128)] = ()
    """Programs and libraries with their versions."""


class GateResult(Model):
    """One gate, held against one variant. The verdict is by the value alone."""

    gate: Count = 0
    """The gate's place in spec.gates."""
    variant: Annotated[StrictStr, Field(min_length=1, max_length=63)]
    """The variant."""
    metric: Annotated[StrictStr, Field(min_length=1, max_length=64)]
    """The number that was held."""
    task: Annotated[StrictStr, Field(max_length=128)] = ""
    """The benchmark's task, where the number is a benchmark's."""
    value: MeasuredDecimal | None = None
    """The number; absent where it could not be measured, which fails the gate."""
    standard_error: MeasuredDecimal | None = None
    """The number's standard error; absent where it is exact or its error is not known."""
    max: MeasuredDecimal | None = None
    """The largest value that passes."""
    min: MeasuredDecimal | None = None
    """The smallest value that passes."""
    passed: StrictBool
    """Whether the gate holds."""
    margin: MeasuredDecimal | None = None
    """How far the number is inside its nearest bound; negative where it is beyond."""
    certain: StrictBool | None = None
    """Whether the margin is two standard errors or more, so that another text would hardly turn
    the verdict; absent without a standard error."""


class RunReport(Model):
    """What a run did: all of it in report.json, what fits in the termination message."""

    schema_version: Annotated[StrictInt, Field(ge=1, le=2**31 - 1)] = 1
    """The version of this document's form (`SCHEMA_VERSION`); the first did not name itself."""
    digest: RunDigest
    """The run's digest."""
    namespace: ShortText = ""
    """The QuantizationJob's namespace."""
    name: ShortText = ""
    """The QuantizationJob's name."""
    outcome: Outcome
    """What became of the run."""
    exit_code: ExitCode
    """How the worker's process ends."""
    failure: Failure | None = None
    """Why the run failed."""
    resolved: Resolved | None = None
    """What the spec left open, as it was decided."""
    original: OriginalReport | None = None
    """The original's numbers."""
    variants: Annotated[tuple[VariantReport, ...], Field(max_length=MAX_VARIANTS)] = ()
    """The quantized models and their numbers."""
    gates: Annotated[tuple[GateResult, ...], Field(max_length=256)] = ()
    """Every gate against every variant."""
    escalation: Steps = ()
    """The settings that onGateFailure: Escalate tried, in their order."""
    recommended: Annotated[StrictStr, Field(max_length=63)] = ""
    """The variant to serve, by what was measured, where there are several."""
    artifact: Artifact | None = None
    """What was published."""
    usage: Usage | None = None
    """How to serve what was published."""
    recommendations: Annotated[tuple[Sentence, ...], Field(max_length=16)] = ()
    """What would do better next time."""
    warnings: Notes = ()
    """What a reader should know before trusting the numbers."""
    source: SourceReport | None = None
    """The model as it was fetched."""
    student: SourceReport | None = None
    """The student of method Distill as it was fetched, where the spec names one."""
    datasets: Annotated[tuple[DatasetReport, ...], Field(max_length=8)] = ()
    """The texts that were used."""
    settings: QuantizationJobSpec | None = None
    """The spec with every default written out, without pod and secretRefs: see `settings_of`."""
    files: Files = ()
    """Every file of the artifact but report and manifest themselves."""
    stages: Annotated[tuple[StageTiming, ...], Field(max_length=64)] = ()
    """How long each stage took; some stand again for each setting that was tried."""
    environment: Environment | None = None
    """Where the run took place."""
    started_at: Time | None = None
    """When the run started."""
    finished_at: Time | None = None
    """When the run ended."""
    omitted: Annotated[tuple[ShortText, ...], Field(max_length=32)] = ()
    """What was left out to fit a termination message; empty in report.json."""


def settings_of(spec: QuantizationJobSpec) -> QuantizationJobSpec:
    """Return what the run was told, fit to be published.

    Defaults are written out; pod and the names of Secrets are left out.
    """
    members = {} if spec.method is Method.AUTO else {MEMBERS[spec.method][0]: _public(spec)}
    calibration, perplexity = spec.calibration, spec.evaluation.perplexity
    bare = {"secret_ref": None}
    if calibration.dataset is not None:
        calibration = calibration.model_copy(
            update={"dataset": calibration.dataset.model_copy(update=bare)}
        )
    if perplexity.dataset is not None:
        perplexity = perplexity.model_copy(
            update={"dataset": perplexity.dataset.model_copy(update=bare)}
        )
    files = spec.evaluation.task_files
    evaluation = spec.evaluation.model_copy(
        update={
            "perplexity": perplexity,
            "task_files": None if files is None else files.model_copy(update=bare),
        }
    )
    return spec.model_copy(
        update={
            **members,
            "model": spec.model.model_copy(update=bare),
            "device": spec.effective_device(),
            "calibration": calibration,
            "evaluation": evaluation,
            "output": spec.output.model_copy(update=bare),
            "pod": Pod(),
        }
    )


def _public(spec: QuantizationJobSpec) -> MethodParameters:
    """Return the method's parameters, without the name of the student's Secret."""
    parameters = spec.parameters()
    if not isinstance(parameters, DistillParameters) or parameters.student is None:
        return parameters
    student = parameters.student.model_copy(update={"secret_ref": None})
    return parameters.model_copy(update={"student": student})
