"""The words of conditions and events: one enum, so that documents and alerts can list them all.

Also `Refusal`, which is what a check answers with where a spec cannot run. No sentence for users is
composed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Reason(StrEnum):
    """Why a resource stands where it stands, in one word."""

    # On the way.
    PENDING = "Pending"
    """The Job is there and its pod is not yet running."""
    UNSCHEDULABLE = "Unschedulable"
    """The scheduler finds no node for the pod."""
    CANNOT_START = "CannotStart"
    """The pod has a node and its container cannot be started."""
    POD_REJECTED = "PodRejected"
    """The API server took the Job and does not take its pod."""
    RUNNING = "Running"
    """The worker runs."""
    RETRYING = "Retrying"
    """An attempt failed and another follows."""
    DISRUPTED = "Disrupted"
    """The pod was evicted, preempted or interrupted, and another follows."""
    FINISHING = "Finishing"
    """The worker ended, and Kubernetes has not yet said how the Job did."""
    REPLACING = "Replacing"
    """A Job must be gone before the next can start."""
    # Held.
    USER_SUSPENDED = "UserSuspended"
    """`spec.suspend` is set."""
    QUEUED = "Queued"
    """A queue holds the Job."""
    # Stuck, or refused before anything ran.
    JOB_NAME_TAKEN = "JobNameTaken"
    """A Job of the run's name belongs to something else."""
    JOB_REJECTED = "JobRejected"
    """The API server did not take the Job."""
    NOT_PERMITTED = "NotPermitted"
    """The spec asks for what the administrator did not allow."""
    METHOD_UNAVAILABLE = "MethodUnavailable"
    """This version has no image for the method."""
    # Ended well.
    PUBLISHED = "Published"
    ALREADY_PUBLISHED = "AlreadyPublished"
    # Ended badly: the words of the API's FailureReason.
    INVALID_SPEC = "InvalidSpec"
    MODEL_NOT_FOUND = "ModelNotFound"
    DATASET_NOT_FOUND = "DatasetNotFound"
    BUCKET_NOT_FOUND = "BucketNotFound"
    ACCESS_DENIED = "AccessDenied"
    UNSUPPORTED_MODEL = "UnsupportedModel"
    UNSAFE_MODEL = "UnsafeModel"
    UNUSABLE_DATASET = "UnusableDataset"
    DEVICE_NOT_FOUND = "DeviceNotFound"
    OUT_OF_MEMORY = "OutOfMemory"
    DISK_FULL = "DiskFull"
    VERIFICATION_FAILED = "VerificationFailed"
    GATE_FAILED = "GateFailed"
    UNAVAILABLE = "Unavailable"
    INTERRUPTED = "Interrupted"
    ANOTHER_PUBLISHER = "AnotherPublisher"
    IMAGE_NOT_FOUND = "ImageNotFound"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    PENDING_DEADLINE_EXCEEDED = "PendingDeadlineExceeded"
    BACKOFF_LIMIT_EXCEEDED = "BackoffLimitExceeded"
    INTERNAL_ERROR = "InternalError"
    # Only in history and events.
    SUPERSEDED = "Superseded"
    """Another spec took the run's place before it ended."""
    JOB_CREATED = "JobCreated"
    MEMORY_RAISED = "MemoryRaised"
    """A run that ran out of memory starts again with the administrator's ceiling."""
    EXPIRED = "Expired"
    """`ttlSecondsAfterFinished` has passed."""


REFUSALS: Final = frozenset({Reason.INVALID_SPEC, Reason.NOT_PERMITTED, Reason.METHOD_UNAVAILABLE})
"""What is decided from spec and settings alone, and so decided again in every pass."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a spec is not run: a sentence that names the field, and what can be done.

    `reason` is one of `REFUSALS`, which are words of the API's FailureReason too.
    """

    reason: Reason
    message: str
    advice: str = ""
