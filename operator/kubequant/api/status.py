"""What became of a QuantizationJob: its `status`, small enough for etcd whatever a worker reports.

Every list and string is bounded: all of them full, a status stays far below the 1.5 MB that etcd
takes. The parts that a worker measures (`Variant`, `Original`, ...) are the base of what `report`
holds in full.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictInt, StrictStr

from kubequant.api.base import Model
from kubequant.api.enums import Device, Method
from kubequant.api.fields import (
    SHA256,
    AnyURI,
    ByteCount,
    MeasuredDecimal,
    RunDigest,
    Sentence,
    ShortText,
)
from kubequant.api.outcome import FailureReason, Stage

Count = Annotated[StrictInt, Field(ge=0, le=2**31 - 1)]
Percent = Annotated[StrictInt, Field(ge=0, le=100)]
Time = Annotated[datetime, Field(json_schema_extra={"format": "date-time"})]
VariantName = Annotated[StrictStr, Field(min_length=1, max_length=63)]
Setting = Annotated[StrictStr, Field(max_length=96)]

MAX_VARIANTS = 16
MAX_HISTORY = 10
MAX_STEPS = 56
"""More than the longest ladders of all sixteen GGUF types together have rungs."""
MAX_BENCHMARKS = 16


class Phase(StrEnum):
    """Where a QuantizationJob is, in one word for people; conditions are the truth."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    SUSPENDED = "Suspended"


class ConditionType(StrEnum):
    """The conditions of a QuantizationJob."""

    COMPLETE = "Complete"
    FAILED = "Failed"
    SUSPENDED = "Suspended"
    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class Condition(Model):
    """One condition, as in Kubernetes' metav1.Condition."""

    type: ConditionType
    """What the condition is about."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Annotated[
        StrictStr, Field(min_length=1, max_length=128, pattern="^[A-Za-z][A-Za-z0-9]*$")
    ]
    """Why, in one CamelCase word."""
    message: Annotated[StrictStr, Field(max_length=2048)] = ""
    """Why, in a sentence."""
    last_transition_time: Time
    """When the status of the condition last changed."""
    observed_generation: Count | None = None
    """The generation of the spec that the condition is about."""


class Run(Model):
    """The run of the present spec."""

    digest: RunDigest
    """What the spec asks for, as eight hexadecimal digits."""
    job_name: ShortText = ""
    """The Job that runs it."""
    attempts: Count = 0
    """How many pods were started for it."""
    pod_name: ShortText = ""
    """The latest pod that started."""
    node_name: ShortText = ""
    """The node of that pod."""
    pod_creation_time: Time | None = None
    """When that pod was created."""


class Resolved(Model):
    """What the spec left open, as it was decided."""

    method: Method | None = None
    """The method, also where the spec says Auto."""
    engine: ShortText = ""
    """The library that quantizes, with its version."""
    image: Annotated[StrictStr, Field(max_length=512)] = ""
    """The worker's image."""
    device: Device | None = None
    """What the run computes on."""
    model_revision: Annotated[StrictStr, Field(max_length=128)] = ""
    """The commit of the model's repository."""
    reason: Sentence = ""
    """Why it was decided so."""


class Progress(Model):
    """How far the run is, by work done."""

    stage: Stage
    """The stage that runs."""
    percent: Percent = 0
    """How much of the stage's work is done."""
    eta_seconds: Count | None = None
    """How long the stage will take yet, where that is known."""
    message: Annotated[StrictStr, Field(max_length=256)] = ""
    """At what the stage is, like "layer 14 of 32"."""
    updated_at: Time | None = None
    """When the worker said so."""


class Original(Model):
    """Numbers of the model before quantization, by the same runtime and on the same tokens."""

    size_bytes: ByteCount | None = None
    """Bytes of weights on disk."""
    perplexity: MeasuredDecimal | None = None
    """Perplexity over the evaluation text."""
    taken_from: AnyURI = ""
    """The earlier run's report that the perplexity was taken from; empty where it was measured."""
    tokens_per_second: MeasuredDecimal | None = None
    """Generated tokens per second, one text at a time: the median of the repetitions."""
    peak_memory_bytes: ByteCount | None = None
    """The most memory that the model's process took while it was loaded and its speed measured: of
    the GPU where the run computes on one, else resident memory."""


class BenchmarkResult(Model):
    """One benchmark's result, before and after."""

    task: Annotated[StrictStr, Field(min_length=1, max_length=128)]
    """The task's name."""
    metric: Annotated[StrictStr, Field(max_length=64)] = ""
    """The task's metric, like acc_norm, and after a comma the filter that took the answer from the
    text, where there is one."""
    original: MeasuredDecimal | None = None
    """The original's value."""
    quantized: MeasuredDecimal | None = None
    """The variant's value."""
    stderr: MeasuredDecimal | None = None
    """The standard error of the variant's value."""


class Variant(Model):
    """One quantized model and its numbers: one per GGUF type, one for the other methods."""

    name: VariantName
    """The GGUF type, or the method."""
    uri: AnyURI = ""
    """Where the variant is published."""
    sha256: SHA256 | None = None
    """The digest of the variant's file, where it is one file."""
    size_bytes: ByteCount | None = None
    """Bytes of weights on disk."""
    size_reduction_percent: MeasuredDecimal | None = None
    """How much smaller the weights are than the original's."""
    perplexity: MeasuredDecimal | None = None
    """Perplexity over the evaluation text."""
    perplexity_increase_percent: MeasuredDecimal | None = None
    """How much higher the perplexity is than the original's; negative where it is lower."""
    mean_kl_divergence: MeasuredDecimal | None = None
    """Mean Kullback-Leibler divergence from the original's next-token distribution, in nats."""
    top_token_agreement_percent: MeasuredDecimal | None = None
    """How often both models hold the same token most likely."""
    tokens_per_second: MeasuredDecimal | None = None
    """Generated tokens per second, one text at a time: the median of the repetitions."""
    speedup: MeasuredDecimal | None = None
    """Tokens per second over the original's."""
    peak_memory_bytes: ByteCount | None = None
    """The most memory that the model's process took while it was loaded and its speed measured: of
    the GPU where the run computes on one, else resident memory."""
    benchmarks: Annotated[tuple[BenchmarkResult, ...], Field(max_length=MAX_BENCHMARKS)] = ()
    """Benchmark results, one for each task and metric; those beyond are in the report alone."""
    gates_passed: StrictBool | None = None
    """Whether every gate of the spec holds for the variant."""


class EscalationStep(Model):
    """One setting that was tried because gates did not hold."""

    variant: VariantName
    """What was made: the GGUF type, or the method."""
    in_place_of: VariantName
    """The variant that the spec asks for; the first step is that one itself."""
    method: Method | None = None
    """The method that made it."""
    setting: Setting = ""
    """How, in a few words, like "4 bits in groups of 128"."""
    size_reduction_percent: MeasuredDecimal | None = None
    """How much smaller its weights are than the original's."""
    perplexity_increase_percent: MeasuredDecimal | None = None
    """How much higher its perplexity is than the original's."""
    mean_kl_divergence: MeasuredDecimal | None = None
    """Its mean divergence from the original, in nats."""
    gates_passed: StrictBool
    """Whether every gate holds for it."""
    missed: ShortText = ""
    """Which gates do not hold and by how much, or why it could not be made."""


Steps = Annotated[tuple[EscalationStep, ...], Field(max_length=MAX_STEPS)]


class Artifact(Model):
    """What was published."""

    uri: AnyURI
    """The folder of the artifact, named by the run's digest."""
    manifest_sha256: SHA256 | None = None
    """The digest of manifest.json, which names every file with its own digest."""
    report_uri: AnyURI = ""
    """The whole report."""


class Usage(Model):
    """How to serve what was published."""

    runtime: ShortText
    """The program that loads the artifact."""
    command: Sentence = ""
    """A command that starts it."""


class Failure(Model):
    """Why a run failed, and what can be done."""

    reason: FailureReason
    """Why, in one word."""
    message: Sentence = ""
    """Why, in a sentence that names the field, the value and the way out."""
    exit_code: Annotated[StrictInt, Field(ge=0, le=255)] | None = None
    """How the worker's process ended."""
    retryable: StrictBool = False
    """Whether trying again may help."""
    advice: Sentence = ""
    """What can be done."""
    report_uri: AnyURI = ""
    """The whole report, where the run published nothing else."""


class HistoryEntry(Model):
    """One run that ended."""

    digest: RunDigest
    """What its spec asked for."""
    job_name: ShortText = ""
    """The Job that ran it."""
    phase: Phase
    """How it ended."""
    reason: Annotated[StrictStr, Field(max_length=128)] = ""
    """Why it ended so, in one word."""
    start_time: Time | None = None
    """When it started."""
    completion_time: Time | None = None
    """When it ended."""
    artifact_uri: AnyURI = ""
    """What it published."""


class QuantizationJobStatus(Model):
    """What the operator observed and the worker reported."""

    observed_generation: Annotated[StrictInt, Field(ge=-1)] | None = None
    """The generation of the spec that the status is about; -1 until the first visit."""
    phase: Phase | None = None
    """Where the job is, in one word; conditions are the truth."""
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            max_length=16,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
            },
        ),
    ] = ()
    """Complete, Failed, Suspended, Ready, Reconciling and Stalled."""
    start_time: Time | None = None
    """When the run started."""
    completion_time: Time | None = None
    """When the run ended."""
    run: Run | None = None
    """The run of the present spec."""
    resolved: Resolved | None = None
    """What the spec left open, as it was decided."""
    progress: Progress | None = None
    """How far the run is."""
    original: Original | None = None
    """Numbers of the model before quantization."""
    variants: Annotated[
        tuple[Variant, ...],
        Field(
            max_length=MAX_VARIANTS,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        ),
    ] = ()
    """The quantized models and their numbers."""
    recommended: Annotated[StrictStr, Field(max_length=63)] = ""
    """The variant to serve, by what was measured, where there are several."""
    escalation: Steps = ()
    """The settings that onGateFailure: Escalate tried, in their order; empty where all gates held
    at once."""
    artifact: Artifact | None = None
    """What was published."""
    usage: Usage | None = None
    """How to serve what was published."""
    recommendations: Annotated[tuple[Sentence, ...], Field(max_length=16)] = ()
    """What would do better next time."""
    failure: Failure | None = None
    """Why the run failed."""
    history: Annotated[tuple[HistoryEntry, ...], Field(max_length=MAX_HISTORY)] = ()
    """The runs before, newest first."""
