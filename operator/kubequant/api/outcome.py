"""The words that a run ends with: exit codes, stages, outcomes and reasons of failure.

Enums only, so that status, report and contract can share them without importing one another.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum


class ExitCode(IntEnum):
    """How a worker process ends."""

    PUBLISHED = 0
    """The artifact is published, or was already."""
    BUG = 1
    """Ours: the traceback is in the log."""
    BAD_REQUEST = 10
    """The spec asks for what cannot be; never retried."""
    GATE_FAILED = 11
    """Measured, and not good enough; never retried."""
    ACCESS = 12
    """Model, dataset or bucket is not there, or not for these credentials; never retried."""
    UNAVAILABLE = 20
    """Network, store or hub; retried."""
    OUT_OF_MEMORY = 21
    """Caught before the kernel killed us; retried as policy says."""
    INTERRUPTED = 30
    """SIGTERM; work saved, retried."""


class Stage(StrEnum):
    """The stages of a run, in their order."""

    PREFLIGHT = "Preflight"
    FETCHING = "Fetching"
    MEASURING = "Measuring"
    QUANTIZING = "Quantizing"
    VERIFYING = "Verifying"
    EVALUATING = "Evaluating"
    GATING = "Gating"
    PUBLISHING = "Publishing"
    REPORTING = "Reporting"


class Outcome(StrEnum):
    """What became of a run, in one word."""

    PUBLISHED = "Published"
    ALREADY_PUBLISHED = "AlreadyPublished"
    FAILED = "Failed"


class FailureReason(StrEnum):
    """Why a run failed. Typed, because conditions, metrics and retries are decided by it."""

    INVALID_SPEC = "InvalidSpec"
    NOT_PERMITTED = "NotPermitted"
    METHOD_UNAVAILABLE = "MethodUnavailable"
    JOB_REJECTED = "JobRejected"
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
