"""The QuantizationJob as a whole, as a manifest or an API server's body has it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar, Final, Literal

from pydantic import ConfigDict, Field, StrictInt, StrictStr

from kubequant.api.base import Model, Rule
from kubequant.api.fields import ObjectName
from kubequant.api.problems import parse
from kubequant.api.spec import QuantizationJobSpec
from kubequant.api.status import QuantizationJobStatus

API_GROUP: Final = "kubequant.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = "kubequant.dev/v1alpha1"
KIND: Final = "QuantizationJob"
PLURAL: Final = "quantizationjobs"

# A run's Job is <name>-<digest8>, and a Job's name is a label value, which ends at 63 characters.
LONGEST_NAME: Final = 54


class Metadata(Model):
    """The parts of an object's metadata that we read; the rest is Kubernetes' own."""

    model_config = ConfigDict(extra="ignore")

    name: ObjectName
    """The object's name."""
    namespace: Annotated[StrictStr, Field(max_length=63)] | None = None
    """The object's namespace."""
    uid: Annotated[StrictStr, Field(max_length=64)] | None = None
    """The object's identity."""
    generation: StrictInt | None = None
    """The number of the spec's version."""
    labels: dict[StrictStr, StrictStr] = Field(default_factory=dict)
    """Labels, of which a queue's are handed to the Job."""
    annotations: dict[StrictStr, StrictStr] = Field(default_factory=dict)
    """Annotations, of which we read none."""
    creation_timestamp: datetime | None = None
    """When the object was created."""
    deletion_timestamp: datetime | None = None
    """When its deletion was asked for."""


class QuantizationJob(Model):
    """Turns a model into a smaller one, proves what was lost and won, and publishes it."""

    api_version: Literal["kubequant.dev/v1alpha1"]
    """The API's group and version."""
    kind: Literal["QuantizationJob"]
    """The kind of the object."""
    metadata: Metadata
    """Name, namespace and labels."""
    spec: QuantizationJobSpec
    """What to quantize, how, and where to publish it."""
    status: QuantizationJobStatus | None = None
    """What became of it; written by the operator alone."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            message=f"name must be at most {LONGEST_NAME} characters long: "
            "a run's Job adds a digest to it",
            holds=lambda job: len(job.metadata.name) <= LONGEST_NAME,
            cel=f"size(self.metadata.name) <= {LONGEST_NAME}",
            field="metadata",
        ),
    )


def read_manifest(body: object, *, local: bool = False) -> QuantizationJob:
    """Read a manifest or an API server's body; `local` permits file:// addresses.

    Raises:
        InvalidInputError: with a sentence for each problem.
    """
    return parse(QuantizationJob, body, local=local)
