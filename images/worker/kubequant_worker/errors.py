"""What can go wrong in a run, as values with an exit code, a reason and a way out.

    WorkerError
    ├── BadRequestError      10  the spec asks for what cannot be
    ├── GateFailedError      11  measured, and not good enough
    ├── AccessError          12  model, dataset or bucket not there, or not for these credentials
    ├── UnavailableError     20  network, store or hub; a later try may work
    └── MemoryExhaustedError 21  caught before the kernel killed us
    InterruptedRunError      30  SIGTERM; work saved

InterruptedRunError is no WorkerError and no Exception, as KeyboardInterrupt is none: it may come
anywhere, and whoever goes on after trouble, ours or a library, must not go on after it.

Anything else that is raised is a bug of ours (exit code 1). No message ever holds a secret.
"""

from __future__ import annotations

import errno
from typing import ClassVar, Final

from kubequant.api.outcome import ExitCode, FailureReason

DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""The numbers of an OSError where a disk, a quota or the largest file there can be is full."""


class WorkerError(Exception):
    """Trouble that a run can end with. `message` names field, value and way out in a sentence."""

    exit_code: ClassVar[ExitCode] = ExitCode.BUG
    default_reason: ClassVar[FailureReason] = FailureReason.INTERNAL_ERROR

    def __init__(
        self, message: str, *, reason: FailureReason | None = None, advice: str = ""
    ) -> None:
        """Keep the sentence, the typed reason (default: the class's) and what the user can do."""
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.advice = advice


class BadRequestError(WorkerError):
    """The spec asks for what cannot be; trying again cannot help."""

    exit_code = ExitCode.BAD_REQUEST
    default_reason = FailureReason.INVALID_SPEC


class GateFailedError(WorkerError):
    """The model was quantized and measured, and a gate does not hold."""

    exit_code = ExitCode.GATE_FAILED
    default_reason = FailureReason.GATE_FAILED


class AccessError(WorkerError):
    """A model, dataset or bucket is not there, or not for these credentials."""

    exit_code = ExitCode.ACCESS
    default_reason = FailureReason.ACCESS_DENIED


class UnavailableError(WorkerError):
    """The network, the store or the hub failed for longer than the retries lasted."""

    exit_code = ExitCode.UNAVAILABLE
    default_reason = FailureReason.UNAVAILABLE


class MemoryExhaustedError(WorkerError):
    """An allocation failed, or Preflight computed that one will."""

    exit_code = ExitCode.OUT_OF_MEMORY
    default_reason = FailureReason.OUT_OF_MEMORY


class InterruptedRunError(BaseException):
    """SIGTERM came: the pod is being moved or the run was suspended."""

    exit_code: ClassVar[ExitCode] = ExitCode.INTERRUPTED
    reason: ClassVar[FailureReason] = FailureReason.INTERRUPTED

    def __init__(self, message: str) -> None:
        """Keep the sentence."""
        super().__init__(message)
        self.message = message
