"""Why an attempt failed, from what the worker said and how its process ended.

What a pod says is a claim: a report counts only where it is of this run and agrees with the exit
code, which the kubelet tells. Whether another attempt may help is read off the exit code alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kubequant.api.contract import Failure, RunReport, TerminationMessageError, decode_termination
from kubequant.api.outcome import ExitCode, FailureReason
from kubequant.controller.conditions import shortened
from kubequant.controller.manifest import ENDS_THE_JOB

if TYPE_CHECKING:
    from kubequant.controller.observe import JobView, PodView

_SENTENCE: Final = 1024
_LAST_WORDS: Final = 800
_CONTROL: Final = re.compile(r"[^\S\n]+|[\x00-\x09\x0b-\x1f\x7f-\x9f]")
_TOKEN: Final = re.compile(r"\b(hf_|ghp_|sk-|AKIA|ASIA)[-_A-Za-z0-9]{8,}")
_EXIT_CODE: Final = re.compile(r"exit code (\d{1,3})\b")
_SIGNALS: Final = 128
_KILLED: Final = frozenset({137, 143})
# Another pod like this one has as little memory and as small a disk, whatever the exit code says.
_HOPELESS: Final = frozenset({FailureReason.OUT_OF_MEMORY, FailureReason.DISK_FULL})

_REASONS: Final[dict[int, FailureReason]] = {
    ExitCode.BAD_REQUEST: FailureReason.INVALID_SPEC,
    ExitCode.GATE_FAILED: FailureReason.GATE_FAILED,
    ExitCode.ACCESS: FailureReason.ACCESS_DENIED,
    ExitCode.UNAVAILABLE: FailureReason.UNAVAILABLE,
    ExitCode.OUT_OF_MEMORY: FailureReason.OUT_OF_MEMORY,
    ExitCode.INTERRUPTED: FailureReason.INTERRUPTED,
}

ADVICE: Final[dict[FailureReason, str]] = {
    FailureReason.INVALID_SPEC: "Correct the spec; the pod's log says more.",
    FailureReason.NOT_PERMITTED: "Ask the operator's administrator to allow it.",
    FailureReason.METHOD_UNAVAILABLE: "Take a method that this version has an image for.",
    FailureReason.JOB_REJECTED: "Correct spec.pod as the server's words say.",
    FailureReason.MODEL_NOT_FOUND: "Correct spec.model.uri or its revision.",
    FailureReason.DATASET_NOT_FOUND: "Correct the dataset's address, revision or split.",
    FailureReason.BUCKET_NOT_FOUND: "Create the bucket, or correct the address in the spec.",
    FailureReason.ACCESS_DENIED: "Check the addresses and the Secrets that secretRef names.",
    FailureReason.UNSUPPORTED_MODEL: "Take another method, or a model of a known architecture.",
    FailureReason.UNSAFE_MODEL: "Take a model whose weights are safetensors.",
    FailureReason.UNUSABLE_DATASET: "Name a dataset with enough text, and its column.",
    FailureReason.DEVICE_NOT_FOUND: "Correct spec.device, spec.pod.gpu or the node it runs on.",
    FailureReason.OUT_OF_MEMORY: "Ask for more in spec.pod.resources.limits.memory, set "
    "spec.memory.lowMemory, or take a smaller model.",
    FailureReason.DISK_FULL: "Set spec.pod.scratch.size to about three times the model.",
    FailureReason.VERIFICATION_FAILED: "Take a more careful setting; the pod's log says more.",
    FailureReason.GATE_FAILED: "Choose a more careful setting, or relax spec.gates.",
    FailureReason.UNAVAILABLE: "Check that the model's source and the output's store are reachable "
    "from the pod.",
    FailureReason.INTERRUPTED: "Look at the node's events: something outside the run ended it.",
    FailureReason.ANOTHER_PUBLISHER: "Wait for the other run of the same spec to end.",
    FailureReason.IMAGE_NOT_FOUND: "Ask the operator's administrator to correct the image in its "
    "settings, or name the registry's Secret in spec.pod.imagePullSecrets.",
    FailureReason.DEADLINE_EXCEEDED: "Raise spec.activeDeadlineSeconds, or give the run more CPU.",
    FailureReason.PENDING_DEADLINE_EXCEEDED: "Ask for less in spec.pod, free or add nodes, or "
    "raise spec.pendingDeadlineSeconds.",
    FailureReason.BACKOFF_LIMIT_EXCEEDED: "Look at the last failure, put it right, and change the "
    "spec or set and unset spec.suspend to try again.",
    FailureReason.INTERNAL_ERROR: "This is a bug; report it with the pod's log.",
}
"""What can be done about a failure where the worker itself gives no advice."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a worker left: a report, or why there is none, and its last lines."""

    report: RunReport | None
    problem: str = ""
    last_words: str = ""


def worker_said(pod: PodView, digest: str) -> Said:
    """Return what the worker in a finished pod said about the run `digest`."""
    message = pod.termination_message
    if not message:
        return Said(None, "the worker left no report")
    try:
        report = decode_termination(message)
    except TerminationMessageError as error:
        # With FallbackToLogsOnError this is the end of the log.
        words = presentable(message)[-_LAST_WORDS:]
        return Said(None, f"the worker left no report ({error})", words)
    if report.digest != digest:
        return Said(None, f"the worker's report is of another run ({report.digest})")
    if report.exit_code != pod.exit_code:
        return Said(
            None,
            f"the worker's report says exit code {report.exit_code}, and Kubernetes "
            f"{pod.exit_code}",
        )
    return Said(report)


def presentable(text: str) -> str:
    """Return text of others, fit for a status: no control characters, nothing like a token."""
    return _TOKEN.sub(r"\1…", _CONTROL.sub(" ", text)).strip()


def is_retryable(exit_code: int | None) -> bool:
    """Say whether another attempt may help after a worker ended so."""
    return exit_code is None or exit_code not in ENDS_THE_JOB


def failure_of(pod: PodView, digest: str) -> Failure:
    """Return why the attempt in a failed pod failed."""
    said = worker_said(pod, digest)
    if said.report is not None and said.report.failure is not None:
        claimed = said.report.failure
        return claimed.model_copy(
            update={
                "exit_code": _shown(pod.exit_code),
                "retryable": _may_heal(claimed.reason, pod.exit_code),
                "advice": claimed.advice or ADVICE.get(claimed.reason, ""),
                # An address is never taken from a pod; see `policies.ended`.
                "report_uri": "",
            }
        )
    if pod.evicted:
        return _failure(
            FailureReason.DISK_FULL, f"The pod {pod.name} was evicted: {pod.why}", pod.exit_code
        )
    if pod.oom_killed:
        limit = f" at its limit of {pod.memory_limit}" if pod.memory_limit else ""
        words = (
            f"The container of pod {pod.name} was killed by the kernel for lack of memory{limit}."
        )
        return _failure(FailureReason.OUT_OF_MEMORY, words, pod.exit_code)
    return _by_exit_code(pod, said)


def _by_exit_code(pod: PodView, said: Said) -> Failure:
    code = pod.exit_code
    if code is None:
        why = pod.why or "Kubernetes does not say why"
        return _failure(FailureReason.UNAVAILABLE, f"The pod {pod.name} failed: {why}", code)
    if code in _KILLED:
        return _failure(
            FailureReason.INTERRUPTED,
            f"The worker was killed (signal {code - _SIGNALS}) before it could report."
            f"{_quoted(said.last_words)}",
            code,
        )
    reason = _REASONS.get(code, FailureReason.INTERNAL_ERROR)
    return _failure(
        reason,
        f"The worker ended with exit code {code}, and {said.problem or 'its report says no why'}."
        f"{_quoted(said.last_words)}",
        code,
    )


def failure_without_pod(job: JobView) -> Failure:
    """Return why a Job failed whose pods are gone, from the Job controller's own words."""
    found = _EXIT_CODE.search(job.failure)
    code = int(found[1]) if found else None
    reason = FailureReason.BACKOFF_LIMIT_EXCEEDED
    if job.failure.startswith("DeadlineExceeded"):
        reason = FailureReason.DEADLINE_EXCEEDED
    elif code is not None:
        reason = _REASONS.get(code, FailureReason.INTERNAL_ERROR)
    return _failure(
        reason, f"The Job {job.name} failed, and its pods are gone. {job.failure}", code
    )


def own_failure(reason: FailureReason, message: str, advice: str = "") -> Failure:
    """Return a failure that no worker caused: a deadline, an image, a refusal."""
    return Failure(
        reason=reason,
        message=shortened(message, _SENTENCE),
        advice=shortened(advice or ADVICE.get(reason, ""), _SENTENCE),
    )


def _failure(reason: FailureReason, message: str, code: int | None) -> Failure:
    return Failure(
        reason=reason,
        message=shortened(message, _SENTENCE),
        exit_code=_shown(code),
        retryable=_may_heal(reason, code),
        advice=ADVICE.get(reason, ""),
    )


def _may_heal(reason: FailureReason, code: int | None) -> bool:
    return is_retryable(code) and reason not in _HOPELESS


def _shown(code: int | None) -> int | None:
    # An exit code that no Unix has (Windows, a hostile kubelet) has no place in the status.
    return code if code is not None and 0 <= code <= 255 else None  # noqa: PLR2004 -- a byte


def _quoted(last_words: str) -> str:
    return f" Its last lines:\n{last_words}" if last_words else ""
