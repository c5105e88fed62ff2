"""What a pass wants: actions, the whole status, events, and when to look again.

What a watch does not tell, a pass may ask for: it then wants nothing else, and decides again.

The shell carries a plan out in that order, each create and delete meaning "make it so": a Job that
is there already and is ours was created, one that is gone was deleted. What must not happen before
the status says why comes last. Nothing here acts.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from datetime import datetime

    from kubernetes.aio.client import V1Job

    from kubequant.api.status import QuantizationJobStatus
    from kubequant.controller.reasons import Reason


@dataclass(frozen=True, slots=True)
class CreateJob:
    """Create this Job. Where the server refuses it, observe that and decide again."""

    manifest: V1Job


@dataclass(frozen=True, slots=True)
class DeleteJob:
    """Delete the Job of this name if it still has this UID, in the foreground.

    It then stays until its pods are gone, so that what follows finds nodes and volumes free.
    """

    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class DeleteResource:
    """Delete the QuantizationJob itself if it still has this UID, and then say so."""

    uid: str
    event: PostEvent


Action: TypeAlias = CreateJob | DeleteJob | DeleteResource


class EventType(StrEnum):
    """The two types of events that Kubernetes knows."""

    NORMAL = "Normal"
    WARNING = "Warning"


@dataclass(frozen=True, slots=True)
class PostEvent:
    """One event about the resource, for people; posted only after the status was written."""

    type: EventType
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What the newest event about an object says, asked only where something stands still."""

    uid: str
    """The object's."""
    reason: str = ""
    """Only of events of this reason; empty for all."""
    since: datetime | None = None
    """Only of events that are no older."""
    job_name: str = ""
    """Of whose pods the event may speak, each by a name that has never been before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a pass wants."""

    question: Question | None = None
    """To be asked before anything is done; with its answer observed the pass decides again."""
    actions: tuple[Action, ...] = ()
    status: QuantizationJobStatus | None = None
    """The whole status, to be written only if it differs; None where it is to be left alone."""
    events: tuple[PostEvent, ...] = ()
    afterwards: tuple[Action, ...] = ()
    """Done only once the status is written: what is gone could not tell the next pass why."""
    requeue_after_seconds: int | None = None
    """When to look again though nothing has changed; None where only a change matters."""
