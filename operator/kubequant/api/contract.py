"""The contract between operator and worker: what a run is told, and what it says.

The words (exit codes, stages, reasons) stand in `outcome`, the report in `report`, its short form
in `termination`; all their names can be had from here.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, StrictInt, StrictStr

from kubequant.api.base import Model
from kubequant.api.details import (
    BatchThroughput,
    BenchmarkDetail,
    DistillationDetail,
    DivergenceDetail,
    EngineDetail,
    Generation,
    ModuleSparsity,
    PerformanceDetail,
    PerplexityDetail,
    SparsityDetail,
    TrainingPoint,
    UntrainedStudent,
)
from kubequant.api.fields import ObjectName, RunDigest, Sentence
from kubequant.api.outcome import Stage
from kubequant.api.problems import parse_json
from kubequant.api.report import (
    GPU,
    SCHEMA_VERSION,
    DatasetReport,
    EarlierStep,
    Environment,
    Expectation,
    GateResult,
    Library,
    OriginalReport,
    PublishedFile,
    RunReport,
    SourceCard,
    SourceReport,
    StageTiming,
    VariantReport,
    settings_of,
)
from kubequant.api.spec import QuantizationJobSpec
from kubequant.api.status import (
    Artifact,
    BenchmarkResult,
    EscalationStep,
    Failure,
    Resolved,
    Usage,
)
from kubequant.api.termination import (
    LIMIT_BYTES,
    TerminationMessageError,
    decode_termination,
    encode_termination,
)

__all__ = [
    "GPU",
    "LIMIT_BYTES",
    "SCHEMA_VERSION",
    "Artifact",
    "BatchThroughput",
    "BenchmarkDetail",
    "BenchmarkResult",
    "DatasetReport",
    "DistillationDetail",
    "DivergenceDetail",
    "EarlierStep",
    "EngineDetail",
    "Environment",
    "EscalationStep",
    "Expectation",
    "Failure",
    "GateResult",
    "Generation",
    "Library",
    "ModuleSparsity",
    "OriginalReport",
    "PerformanceDetail",
    "PerplexityDetail",
    "ProgressMessage",
    "PublishedFile",
    "Resolved",
    "RunReport",
    "RunRequest",
    "SourceCard",
    "SourceReport",
    "SparsityDetail",
    "StageTiming",
    "TerminationMessageError",
    "TrainingPoint",
    "UntrainedStudent",
    "Usage",
    "VariantReport",
    "artifact_uri",
    "checkpoints_uri",
    "decode_termination",
    "encode_termination",
    "failed_uri",
    "settings_of",
]


class RunRequest(Model):
    """What a worker is told, as JSON in KUBEQUANT_RUN.

    Unknown fields are refused: an older worker must not pass over what a newer operator asks for.
    """

    namespace: Annotated[StrictStr, Field(max_length=63)] = ""
    """The QuantizationJob's namespace; empty outside a cluster."""
    name: ObjectName
    """The QuantizationJob's name, which is part of the artifact's address."""
    digest: RunDigest
    """The digest of the spec as its user wrote it, which is part of the artifact's address."""
    spec: QuantizationJobSpec
    """What to do. Method Auto is resolved."""
    reason: Sentence = ""
    """Why the method is this one, for the report; see `auto.resolve`."""
    image: Annotated[StrictStr, Field(max_length=512)] = ""
    """The worker's image, for the report; empty outside a cluster."""

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read KUBEQUANT_RUN.

        Addresses on this machine are permitted: who wrote the request knew where it runs.

        Raises:
            InvalidInputError: with a sentence for each problem.
        """
        return parse_json(cls, text, local=True)

    @property
    def artifact_uri(self) -> str:
        """The artifact's folder: <output.uri>/<name>/<digest>/."""
        return artifact_uri(self.spec.output.uri, self.name, self.digest)


def artifact_uri(output_uri: str, name: str, digest: str) -> str:
    """Return the address of an artifact's folder."""
    return f"{output_uri.rstrip('/')}/{name}/{digest}/"


def failed_uri(output_uri: str, name: str, digest: str) -> str:
    """Return the address of the folder for the report of a run that published nothing else.

    It stands beside the artifact's, never in it: a digest has no dot, so it can be no artifact's.
    """
    return f"{output_uri.rstrip('/')}/{name}/{digest}.failed/"


def checkpoints_uri(output_uri: str, name: str, digest: str) -> str:
    """Return the address of the folder for what a run may go on from, should its pod be killed.

    Beside the artifact's, as `failed_uri`; it is empty once the artifact is published.
    """
    return f"{output_uri.rstrip('/')}/{name}/{digest}.checkpoints/"


class ProgressMessage(Model):
    """What a worker posts while it runs."""

    digest: RunDigest
    """The run's digest."""
    stage: Stage
    """The stage that runs."""
    percent: Annotated[StrictInt, Field(ge=0, le=100)]
    """How much of the stage's work is done."""
    eta_seconds: Annotated[StrictInt, Field(ge=0, le=31_536_000)] | None = None
    """How long the stage will take yet, where that is known."""
    message: Annotated[StrictStr, Field(max_length=256)] = ""
    """At what the stage is, like "layer 14 of 32"."""
