"""What is there, as frozen values: the resource, its Jobs, their pods, and what the server refused.

Pure, and the door where dictionaries die: bodies become models here and nowhere else. Nothing is
judged; that is `decide`'s.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kubernetes.aio.client import V1Job, V1JobCondition, V1JobStatus

from kubequant.api.problems import InvalidInputError, Problem, parse_json
from kubequant.api.resource import read_manifest
from kubequant.api.status import QuantizationJobStatus
from kubequant.controller import names
from kubequant.controller.pods import PodView, read_pod

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from kubernetes.aio.client import V1ObjectMeta

    from kubequant.api.spec import QuantizationJobSpec

__all__ = [
    "JobView",
    "Observed",
    "PodView",
    "Rejection",
    "Resource",
    "observe",
    "read_job",
    "read_pod",
    "read_resource",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """A QuantizationJob: its spec, or in sentences why this version cannot read it."""

    namespace: str
    name: str
    uid: str
    generation: int
    labels: Mapping[str, str] = field(default_factory=dict)
    is_deleting: bool = False
    spec: QuantizationJobSpec | None = None
    problems: tuple[Problem, ...] = ()
    status: QuantizationJobStatus | None = None
    """None where there is none, or none that can be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A Job, as far as a run is concerned."""

    name: str
    uid: str
    created: datetime
    owner_uid: str = ""
    owner: str = ""
    """The controlling owner as "Kind name", for people."""
    digest: str = ""
    image: str = ""
    template_digest: str = ""
    generation: str = ""
    memory_raised: bool = False
    handed_on: str = ""
    """The labels that it got of its resource when it was made; see `names.labels_text`."""
    queue: str = ""
    """The queue that it is in, whoever put it there."""
    is_deleting: bool = False
    is_suspended: bool = False
    started_at: datetime | None = None
    """When Kubernetes started it; a queue that evicts it makes this new."""
    finished_at: datetime | None = None
    is_complete: bool = False
    is_failed: bool = False
    failure: str = ""
    """The Job controller's words for a failed Job: its reason and message."""
    failed_pods: int = 0
    """How many pods the Job controller counts against backoffLimit."""

    @property
    def is_finished(self) -> bool:
        """Say whether no pod of it will run again."""
        return self.is_complete or self.is_failed


@dataclass(frozen=True, slots=True)
class Rejection:
    """The API server's answer to a Job that it did not take, or could not."""

    code: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What there is of a resource's in its namespace."""

    jobs: tuple[JobView, ...] = ()
    """The resource's own Jobs, by name."""
    strangers: tuple[JobView, ...] = ()
    """Jobs that the resource does not own."""
    pods: tuple[PodView, ...] = ()
    """The pods of the resource's own Jobs, the oldest first."""
    rejection: Rejection | None = None
    """Why the Job that the plan before asked for was not taken."""
    last_event: str | None = None
    """What the newest event says that the plan before asked for, empty where there is none; None
    where nothing was asked."""

    def job(self, name: str) -> JobView | None:
        """Return the resource's own Job of that name."""
        return next((job for job in self.jobs if job.name == name), None)

    def pods_of(self, job: JobView) -> tuple[PodView, ...]:
        """Return the pods of a Job, the oldest first."""
        return tuple(pod for pod in self.pods if pod.job_uid == job.uid)


def observe(
    resource: Resource,
    jobs: Iterable[JobView] = (),
    pods: Iterable[PodView] = (),
    *,
    rejection: Rejection | None = None,
    last_event: str | None = None,
) -> Observed:
    """Sort what an index holds for a resource's name into one value.

    `jobs` may hold Jobs of others, like one that was in the way of a create: they are told apart by
    the owner's UID, since a resource that was deleted and made again has the same name.
    """
    found = sorted(jobs, key=lambda job: job.name)
    own = tuple(job for job in found if job.owner_uid == resource.uid)
    uids = {job.uid for job in own}
    theirs = [pod for pod in pods if pod.job_uid in uids]
    return Observed(
        jobs=own,
        strangers=tuple(job for job in found if job.owner_uid != resource.uid),
        pods=tuple(sorted(theirs, key=lambda pod: (pod.created, pod.name))),
        rejection=rejection,
        last_event=last_event,
    )


def read_resource(body: Mapping[str, Any]) -> Resource:
    """Return what a QuantizationJob's body says, also where this version cannot read its spec.

    Raises:
        KeyError: the body has no name or UID, which an API server never sends.
    """
    metadata = body["metadata"]
    spec: QuantizationJobSpec | None = None
    problems: tuple[Problem, ...] = ()
    without_status = {key: value for key, value in body.items() if key != "status"}
    try:
        spec = read_manifest(without_status).spec
    except InvalidInputError as error:
        problems = error.problems
    return Resource(
        namespace=metadata.get("namespace", ""),
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata.get("generation", 0),
        labels=dict(metadata.get("labels") or {}),
        is_deleting=bool(metadata.get("deletionTimestamp")),
        spec=spec,
        problems=problems,
        status=_status(body.get("status")),
    )


def _status(value: object) -> QuantizationJobStatus | None:
    if not value:
        return None
    try:
        # Fields of a newer version are passed over; the next write leaves them out.
        return parse_json(QuantizationJobStatus, json.dumps(value), tolerant=True)
    except InvalidInputError:
        return None


def read_job(body: Mapping[str, Any]) -> JobView:
    """Return what a Job's body says.

    Raises:
        ValueError: the body is no Job, which an API server never sends.
    """
    job = V1Job.from_dict(dict(body))
    created = job.metadata.creation_timestamp if job and job.metadata else None
    if job is None or job.metadata is None or created is None:
        raise ValueError("a Job without metadata.creationTimestamp")
    metadata, status = job.metadata, job.status or V1JobStatus()
    labels, annotations = metadata.labels or {}, metadata.annotations or {}
    owner_uid, owner = _owner(metadata)
    complete, failed = _condition(status, "Complete"), _condition(status, "Failed")
    ended = complete or failed
    containers = job.spec.template.spec.containers if job.spec and job.spec.template.spec else ()
    return JobView(
        name=metadata.name or "",
        uid=metadata.uid or "",
        created=created,
        owner_uid=owner_uid,
        owner=owner,
        digest=labels.get(names.DIGEST_LABEL, ""),
        image=next((c.image or "" for c in containers if c.name == names.CONTAINER), "")[:512],
        template_digest=annotations.get(names.TEMPLATE_ANNOTATION, ""),
        generation=annotations.get(names.GENERATION_ANNOTATION, ""),
        memory_raised=annotations.get(names.MEMORY_ANNOTATION) == "true",
        # Jobs of an operator before this annotation: then the live labels have to do.
        handed_on=annotations.get(
            names.HANDED_ON_ANNOTATION, names.labels_text(names.handed_on(labels))
        ),
        queue=labels.get(names.QUEUE_NAME_LABEL, ""),
        is_deleting=metadata.deletion_timestamp is not None,
        is_suspended=bool(job.spec and job.spec.suspend),
        started_at=status.start_time,
        finished_at=status.completion_time or (ended.last_transition_time if ended else None),
        is_complete=complete is not None,
        is_failed=failed is not None,
        failure=": ".join(part for part in (failed.reason, failed.message) if part)
        if failed
        else "",
        failed_pods=status.failed or 0,
    )


def _owner(metadata: V1ObjectMeta) -> tuple[str, str]:
    for owner in metadata.owner_references or ():
        if owner.controller:
            return owner.uid, f"{owner.kind} {owner.name}"
    return "", ""


def _condition(status: V1JobStatus, kind: str) -> V1JobCondition | None:
    found = (one for one in status.conditions or () if one.type == kind and one.status == "True")
    return next(found, None)
