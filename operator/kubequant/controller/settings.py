"""What the administrator decides, as one frozen value that pure code receives.

How it is read from the environment stands in `environment`.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictStr, ValidationInfo, field_validator

from kubequant import __version__
from kubequant.api.base import Pattern
from kubequant.api.fields import ByteQuantity, ObjectName
from kubequant.api.pod import SAFE_TO_EVICT, ResourceRequirements
from kubequant.controller.catalog import ImageKey

ImageName = Annotated[
    StrictStr,
    Field(min_length=1, max_length=512),
    Pattern(
        r"[A-Za-z0-9][-A-Za-z0-9_.:/]*(@sha256:[0-9a-f]{64})?",
        "an image's name, like example.com/kubequant/gguf:1.0 or one with @sha256:...",
    ),
]
Registry = Annotated[
    StrictStr,
    Field(max_length=256),
    Pattern(
        r"([A-Za-z0-9][-A-Za-z0-9_.:/]*)?",
        "a registry and what comes before an image's name in it, like example.com/team",
    ),
]
Namespace = Annotated[
    StrictStr,
    Field(min_length=1, max_length=63),
    Pattern("[a-z0-9]([-a-z0-9]*[a-z0-9])?", "a namespace's name"),
]
VariableName = Annotated[
    StrictStr,
    Field(min_length=1, max_length=128),
    Pattern(
        r"[A-Za-z_][A-Za-z0-9_]*\*?",
        "a variable's name: letters, digits and '_', and at its end a '*' for all that begin so",
    ),
]

AnnotationKey = Annotated[
    StrictStr,
    Field(min_length=1, max_length=317),
    Pattern(
        r"[A-Za-z0-9][-A-Za-z0-9_./]*\*?",
        "an annotation's key, like example.com/name, and at its end a '*' for all that begin so",
    ),
]

LabelKey = Annotated[
    StrictStr,
    Field(min_length=1, max_length=317),
    Pattern(
        r"[A-Za-z0-9][-A-Za-z0-9_./]*\*?",
        "a label's key, like example.com/name, and at its end a '*' for all that begin so",
    ),
]

DEFAULT_LABELS: Final = ("cost-center", "cost-centre", "department", "owner", "project", "team")
"""Labels that say whose a pod is and who pays for it; no injector or cloud agent acts on them.
Where a Service or a network policy selects by one, an administrator takes it out."""
DEFAULT_ANNOTATIONS: Final = (SAFE_TO_EVICT, "karpenter.sh/do-not-disrupt", "prometheus.io/*")
"""Well-known annotations by which a pod is only left alone or looked at."""
DEFAULT_IMAGES: Final = {key: f"kubequant/{key.value}:{__version__}" for key in ImageKey}


class Settings(BaseModel):
    """The administrator's settings; each has a default that is safe."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True
    )

    namespaces: tuple[Namespace, ...] = ()
    """The namespaces to watch; where empty, all of them."""
    image_registry: Registry = ""
    """What comes before the name of each image that `images` does not give, like
    example.com/team."""
    images: dict[ImageKey, ImageName] = Field(default={}, validate_default=True)
    """The images, each by the name of its folder; where one is not given, it is
    kubequant/<folder>:<version>."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When the worker's image is pulled."""
    cpu_resources: ResourceRequirements = ResourceRequirements(
        requests={"cpu": "1", "memory": "8Gi"}, limits={"memory": "8Gi"}
    )
    """What a run on CPUs gets where its spec does not say."""
    gpu_resources: ResourceRequirements = ResourceRequirements(
        requests={"cpu": "4", "memory": "32Gi"}, limits={"memory": "32Gi"}
    )
    """What a run on GPUs gets where its spec does not say, beside the GPUs."""
    memory_ceiling: ByteQuantity | None = None
    """What a run may ask for when it ran out of memory that its spec did not choose. Where absent,
    such a run is not tried again."""
    allow_remote_code: bool = False
    """Whether spec.model.trustRemoteCode may be set."""
    allow_pickle: bool = False
    """Whether spec.model.allowPickle may be set."""
    allowed_service_accounts: tuple[ObjectName, ...] = ()
    """The service accounts that spec.pod.serviceAccountName may name besides default."""
    allowed_env: tuple[VariableName, ...] = ()
    """Variables that spec.pod.env may set beside the harmless ones (see `permissions`); a name may
    end with * for all that begin so."""
    allowed_annotations: tuple[AnnotationKey, ...] = DEFAULT_ANNOTATIONS
    """The annotations that spec.pod.annotations may hold; a key may end with * for all that begin
    so."""
    allowed_labels: tuple[LabelKey, ...] = DEFAULT_LABELS
    """The labels that spec.pod.labels may hold; a key may end with * for all that begin so."""
    run_as_user: Annotated[int, Field(ge=0, le=2**31 - 1)] = 65_532
    """The user and group that workers run as; 0 leaves the choice to the cluster, as OpenShift
    wants it. Workers never run as root."""
    log_format: Literal["JSON", "Text"] = "JSON"
    """How the operator writes its log."""
    concurrency: Annotated[int, Field(ge=1, le=200)] = 20
    """How many resources are worked on at once."""

    probe_port: Annotated[int, Field(ge=1, le=65_535)] = 8081
    """The port of /healthz and /readyz."""

    @field_validator("images", mode="after")
    @classmethod
    def _every_image(cls, images: dict[ImageKey, str], info: ValidationInfo) -> dict[ImageKey, str]:
        registry = str(info.data.get("image_registry", ""))
        prefix = f"{registry.rstrip('/')}/" if registry else ""
        return {key: images.get(key, f"{prefix}{name}") for key, name in DEFAULT_IMAGES.items()}
