"""What a user may say about the worker's pod: an allow-list of overrides, no raw pod template.

What an administrator must allow besides (service accounts, remote code) is held by the controller.
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, StrictInt, StrictStr

from kubequant.api.affinity import Affinity
from kubequant.api.base import Model, Pattern, Rule
from kubequant.api.fields import (
    QUALIFIED,
    ByteQuantity,
    LabelValue,
    ObjectName,
    OptionalObjectName,
    QualifiedName,
    Quantity,
)

RESERVED_KEY: Final = re.compile(r"(^|\.)(kubernetes\.io|k8s\.io|kubequant\.dev)/")
"""Label and annotation keys that are ours or Kubernetes' own."""

SAFE_TO_EVICT: Final = "cluster-autoscaler.kubernetes.io/safe-to-evict"
"""The one key of Kubernetes' that users are meant to set on pods, as an annotation."""

CREDENTIAL_NAMES: Final = (
    "HF_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)
"""The keys of a `secretRef`, which must not stand in a manifest as plain text."""

_RESERVED_MESSAGE: Final = (
    "must not set keys of kubernetes.io, k8s.io or kubequant.dev; labels of the QuantizationJob "
    "itself, such as a queue's, are handed on"
)
Resources = Annotated[dict[QualifiedName, Quantity], Field(max_length=16)]
Labels = Annotated[dict[QualifiedName, LabelValue], Field(max_length=32)]
Annotations = Annotated[
    dict[QualifiedName, Annotated[StrictStr, Field(max_length=4096)]], Field(max_length=32)
]


OptionalTaintKey = Annotated[
    StrictStr,
    Field(max_length=317),
    Pattern(f"({QUALIFIED})?", "a taint's key, like example.com/name"),
]


class ResourceRequirements(Model):
    """CPU, memory and other resources of the worker's container."""

    requests: Resources = Field(default_factory=dict)
    """What the scheduler reserves, like cpu and memory."""
    limits: Resources = Field(default_factory=dict)
    """What the container may use at most. The worker runs as many threads as its CPU limit."""


class GPU(Model):
    """The accelerators that a run asks for."""

    resource_name: QualifiedName = "nvidia.com/gpu"
    """The extended resource that the device plugin offers."""
    count: Annotated[StrictInt, Field(ge=1, le=64)] = 1
    """How many of them."""


class Toleration(Model):
    """One taint that the pod accepts, as in a pod's spec."""

    key: OptionalTaintKey = ""
    """The taint's key; empty, with operator Exists, for every taint."""
    operator: Literal["Equal", "Exists"] = "Equal"
    """Whether the value must be equal or the key alone counts."""
    value: LabelValue = ""
    """The taint's value."""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    """The taint's effect; empty for all."""
    toleration_seconds: Annotated[StrictInt, Field(ge=0, le=31_536_000)] | None = None
    """How long a NoExecute taint is accepted; where absent, for ever."""


class ImagePullSecret(Model):
    """A Secret in the same namespace with a registry's credentials."""

    name: ObjectName
    """The Secret's name."""


class EnvVar(Model):
    """One environment variable with a literal value."""

    name: Annotated[
        StrictStr,
        Field(min_length=1, max_length=128),
        Pattern("[A-Za-z_][A-Za-z0-9_]*", "a variable's name: letters, digits and '_'"),
        Rule(
            message="must not be a variable of kubequant's own (KUBEQUANT_...)",
            holds=lambda name: not name.startswith("KUBEQUANT_"),
            cel="!self.startsWith('KUBEQUANT_')",
        ),
        Rule(
            message="must not be a credential, which anyone who may read the manifest could read; "
            "put it in a Secret and name that by secretRef",
            holds=lambda name: name not in CREDENTIAL_NAMES,
            cel=f"!(self in {list(CREDENTIAL_NAMES)})",
        ),
    ]
    """The variable's name."""
    value: Annotated[StrictStr, Field(max_length=4096)] = ""
    """The variable's value, as plain text."""


class Scratch(Model):
    """The working space, as an ephemeral volume."""

    size: ByteQuantity
    """How large the volume is; about three times the model."""
    storage_class_name: OptionalObjectName = ""
    """The volume's storage class; empty for the cluster's default."""


class ModelCache(Model):
    """A volume on which downloaded models are kept between runs."""

    claim_name: ObjectName
    """The PersistentVolumeClaim, in the same namespace."""


class Pod(Model):
    """Overrides for the worker's pod."""

    resources: ResourceRequirements = ResourceRequirements()
    """CPU, memory and other resources; where absent, the administrator's defaults for the
    method."""
    gpu: GPU | None = None
    """The accelerators; where absent and the device is a GPU, one nvidia.com/gpu."""
    node_selector: Labels = Field(default_factory=dict)
    """Labels that the node must have."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=16)] = ()
    """Taints that the pod accepts."""
    affinity: Affinity | None = None
    """Rules for the choice of the node, as in a pod's spec."""
    service_account_name: OptionalObjectName = ""
    """The service account, for cloud identity; the administrator must list it. Its token is never
    mounted."""
    priority_class_name: OptionalObjectName = ""
    """The pod's priority class."""
    runtime_class_name: OptionalObjectName = ""
    """The pod's runtime class, like nvidia."""
    image_pull_secrets: Annotated[tuple[ImagePullSecret, ...], Field(max_length=8)] = ()
    """Secrets for the registry of the worker images."""
    labels: Labels = Field(default_factory=dict)
    """Labels for the pod, beside ours, of those that the administrator lists: other controllers act
    on some, and Services and network policies select by them."""
    annotations: Annotations = Field(default_factory=dict)
    """Annotations for the pod, beside ours, of those that the administrator lists: other
    controllers act on some."""
    env: Annotated[
        tuple[EnvVar, ...],
        Field(
            max_length=64,
            json_schema_extra={
                "x-kubernetes-list-map-keys": ["name"],
                "x-kubernetes-list-type": "map",
            },
        ),
    ] = ()
    """Environment variables with literal values, of those that change no code and lead nowhere
    else, like OMP_NUM_THREADS; others the administrator must list. Credentials belong in a
    Secret."""
    scratch: Scratch | None = None
    """The working space; where absent, an emptyDir on the node."""
    model_cache: ModelCache | None = None
    """A volume that keeps downloaded models between runs."""

    rules: ClassVar[tuple[Rule, ...]] = (
        # A map's keys have no bound that CEL's cost estimate could use, so these two are held by
        # the models alone.
        Rule(
            message=_RESERVED_MESSAGE,
            holds=lambda p: not any(RESERVED_KEY.search(key) for key in p.labels),
            cel=None,
            field="labels",
        ),
        Rule(
            message=_RESERVED_MESSAGE,
            holds=lambda p: (
                not any(RESERVED_KEY.search(key) for key in p.annotations if key != SAFE_TO_EVICT)
            ),
            cel=None,
            field="annotations",
        ),
        Rule(
            message="must name each variable once",
            holds=lambda p: len({e.name for e in p.env}) == len(p.env),
            cel=None,
            field="env",
        ),
    )
