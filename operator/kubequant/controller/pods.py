"""One worker's pod as a small frozen value: what state it is in, and what Kubernetes said of it.

Pure, and the door where a pod's dictionary dies. An index may keep these values instead of bodies.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from kubernetes.aio.client import V1ContainerState, V1Pod, V1PodCondition, V1PodStatus

from kubequant.api.outcome import ExitCode
from kubequant.controller import names

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from kubernetes.aio.client import V1ContainerStateTerminated, V1ContainerStateWaiting

LONGEST_MESSAGE: Final = 4096

IMAGE_TROUBLE: Final = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
)
_ORDINARY_WAITING: Final = frozenset({"", "ContainerCreating", "PodInitializing"})


class PodState(StrEnum):
    """What there is to say of a pod, as far as a run is concerned."""

    PENDING = "Pending"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_NOT_FOUND = "ImageNotFound"
    CANNOT_START = "CannotStart"
    RUNNING = "Running"
    WORKER_ENDED = "WorkerEnded"
    """The worker's container has ended and another of the pod's has not: for Kubernetes it runs."""
    ENDING = "Ending"
    """Being deleted, and not yet gone: for Kubernetes it runs, or waits, until its node says so."""
    SUCCEEDED = "Succeeded"
    DISRUPTED = "Disrupted"
    """Ended from outside: evicted, preempted, its node lost, or told to stop; not the run's fault,
    and the Job does not count it."""
    FAILED = "Failed"


_WAITING: Final = frozenset(
    {PodState.PENDING, PodState.UNSCHEDULABLE, PodState.IMAGE_NOT_FOUND, PodState.CANNOT_START}
)
_FINISHED: Final = frozenset({PodState.SUCCEEDED, PodState.FAILED, PodState.DISRUPTED})


@dataclass(frozen=True, slots=True, kw_only=True)
class PodView:
    """A pod, as far as a run is concerned."""

    name: str
    job_uid: str
    state: PodState
    created: datetime
    uid: str = ""
    node: str = ""
    why: str = ""
    """Kubernetes' words for the state: the scheduler's, the kubelet's or the evictor's. Of a pod
    that is on its ordinary way they may be what its container waits for; of one whose worker has
    ended, which containers still run."""
    gone_by: datetime | None = None
    """Until when a pod that is being deleted has time to end; None where nobody deletes it."""
    started_at: datetime | None = None
    """When the worker's container started."""
    finished_at: datetime | None = None
    exit_code: int | None = None
    oom_killed: bool = False
    memory_limit: str = ""
    """The worker's limit as the pod has it, "8Gi"; empty where there is none."""
    evicted: bool = False
    """The kubelet ended it, and not for the node's sake: it used more disk than it may."""
    termination_message: str = ""
    """A report of the worker's, or the last lines of its log; at most 4,096 characters."""

    @property
    def is_finished(self) -> bool:
        """Say whether nothing runs in it any more."""
        return self.state in _FINISHED

    @property
    def is_waiting(self) -> bool:
        """Say whether its worker has yet to start, as far as anyone knows."""
        if self.state is PodState.ENDING:
            return self.started_at is None
        return self.state in _WAITING


def read_pod(body: Mapping[str, Any]) -> PodView:
    """Return what a pod's body says.

    Raises:
        ValueError: the body is no pod, which an API server never sends.
    """
    pod = V1Pod.from_dict(dict(body))
    created = pod.metadata.creation_timestamp if pod and pod.metadata else None
    if pod is None or pod.metadata is None or created is None:
        raise ValueError("a pod without metadata.creationTimestamp")
    metadata, status = pod.metadata, pod.status or V1PodStatus()
    state = _container_state(status)
    ended, waiting, running = state.terminated, state.waiting, state.running
    started_at = running.started_at if running else None
    kind, why = _classified(status, ended, waiting, is_running=running is not None)
    gone_by = None if kind in _FINISHED else metadata.deletion_timestamp
    # A worker that ended well is not undone by what then ends its pod.
    if gone_by is not None and not (ended is not None and ended.exit_code == 0):
        kind, why = PodState.ENDING, _disruption(status)
    return PodView(
        name=metadata.name or "",
        job_uid=_controller_uid(pod),
        state=kind,
        created=created,
        uid=metadata.uid or "",
        node=(pod.spec.node_name or "") if pod.spec else "",
        why=why[:LONGEST_MESSAGE],
        gone_by=gone_by,
        started_at=ended.started_at if ended else started_at,
        finished_at=ended.finished_at if ended else None,
        exit_code=ended.exit_code if ended else None,
        oom_killed=ended is not None and ended.reason == "OOMKilled",
        memory_limit=_memory_limit(pod),
        evicted=kind is PodState.FAILED and status.reason == "Evicted",
        # One character too many is kept, so that a reader sees that it was cut.
        termination_message=((ended.message or "") if ended else "")[: LONGEST_MESSAGE + 1],
    )


def _controller_uid(pod: V1Pod) -> str:
    owners = (pod.metadata.owner_references or []) if pod.metadata else []
    return next((owner.uid for owner in owners if owner.controller and owner.kind == "Job"), "")


def _memory_limit(pod: V1Pod) -> str:
    for container in pod.spec.containers if pod.spec else ():
        if container.name == names.CONTAINER and container.resources is not None:
            return (container.resources.limits or {}).get("memory", "")
    return ""


def _container_state(status: V1PodStatus) -> V1ContainerState:
    for container in status.container_statuses or ():
        if container.name == names.CONTAINER and container.state is not None:
            return container.state
    return V1ContainerState()


def _condition(status: V1PodStatus, kind: str) -> V1PodCondition | None:
    return next((found for found in status.conditions or () if found.type == kind), None)


def _classified(
    status: V1PodStatus,
    ended: V1ContainerStateTerminated | None,
    waiting: V1ContainerStateWaiting | None,
    *,
    is_running: bool,
) -> tuple[PodState, str]:
    if status.phase == "Succeeded":
        return PodState.SUCCEEDED, ""
    if status.phase == "Failed":
        return _failed(status, ended)
    if ended is not None:
        return PodState.WORKER_ENDED, ", ".join(_still_running(status)) or "none that it names"
    if is_running:
        return PodState.RUNNING, ""
    return _yet_to_start(status, waiting)


def _yet_to_start(
    status: V1PodStatus, waiting: V1ContainerStateWaiting | None
) -> tuple[PodState, str]:
    why = ": ".join(part for part in (waiting.reason, waiting.message) if part) if waiting else ""
    if waiting is not None and (waiting.reason or "") not in _ORDINARY_WAITING:
        trouble = waiting.reason in IMAGE_TROUBLE
        return PodState.IMAGE_NOT_FOUND if trouble else PodState.CANNOT_START, why
    scheduled = _condition(status, "PodScheduled")
    if scheduled is not None and scheduled.status == "False":
        return PodState.UNSCHEDULABLE, scheduled.message or scheduled.reason or ""
    return PodState.PENDING, why


def _still_running(status: V1PodStatus) -> list[str]:
    containers = (*(status.init_container_statuses or ()), *(status.container_statuses or ()))
    return [one.name for one in containers if one.state is not None and one.state.running]


def _disruption(status: V1PodStatus) -> str:
    """Return who ends a pod from outside and why, in Kubernetes' words; empty where nobody does."""
    disruption = _condition(status, "DisruptionTarget")
    if disruption is None or disruption.status != "True":
        return ""
    words = ": ".join(part for part in (disruption.reason, disruption.message) if part)
    return words or "DisruptionTarget"


def _failed(status: V1PodStatus, ended: V1ContainerStateTerminated | None) -> tuple[PodState, str]:
    # In the order of the Job's podFailurePolicy, so that we and the Job controller count alike.
    if why := _disruption(status):
        return PodState.DISRUPTED, why
    if ended is not None and ended.exit_code == ExitCode.INTERRUPTED:
        return PodState.DISRUPTED, "the worker was told to stop"
    why = ": ".join(part for part in (status.reason, status.message) if part)
    return PodState.FAILED, why
