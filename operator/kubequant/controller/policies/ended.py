"""A run that ended: remembered by the status, or told by its Job and the worker's report."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from kubequant.api.contract import artifact_uri, failed_uri
from kubequant.api.gating import gate_sentence
from kubequant.api.outcome import FailureReason, Outcome, Stage
from kubequant.api.status import Artifact, ConditionType, Original, Progress
from kubequant.controller.case import Answer, deleted
from kubequant.controller.conditions import Standing, Verdict, condition_of, reason_of
from kubequant.controller.failures import (
    Said,
    failure_of,
    failure_without_pod,
    worker_said,
)
from kubequant.controller.manifest import ENDS_THE_JOB, can_raise_memory
from kubequant.controller.plan import DeleteJob, EventType, PostEvent
from kubequant.controller.pods import PodState
from kubequant.controller.policies.replaced import replacing
from kubequant.controller.reasons import Reason

if TYPE_CHECKING:
    from datetime import datetime
    from typing import Any

    from kubequant.api.contract import RunReport
    from kubequant.api.status import Condition, Failure, QuantizationJobStatus, Resolved
    from kubequant.controller.case import Case
    from kubequant.controller.observe import JobView, PodView

_FOR_OTHERS: Final = timedelta(seconds=60)
"""So long other containers of a pod may go on after the worker: one that sends logs ends soon."""
_FOR_THE_POD: Final = timedelta(seconds=30)
"""A watch on Jobs may be ahead of the one on pods: so long we wait for the pod's last words."""


def remembered(case: Case) -> Answer | None:
    """Leave what is over as it is, and stop a Job that still runs for it."""
    complete = condition_of(case.status, ConditionType.COMPLETE)
    if complete is not None:
        verdict = _recalled(complete, Standing.COMPLETE, Reason.PUBLISHED)
        return Answer(verdict=verdict, status=case.status, afterwards=_stopped(case))
    failed = condition_of(case.status, ConditionType.FAILED)
    if failed is None:
        return None
    verdict = _recalled(failed, Standing.FAILED, Reason.INTERNAL_ERROR)
    return Answer(verdict=verdict, status=case.status, afterwards=_stopped(case))


def _stopped(case: Case) -> tuple[DeleteJob, ...]:
    """Return what ends a Job that would go on; one that is finished stays, for its pods' logs."""
    return deleted(case.job if case.job is not None and not case.job.is_finished else None)


def _recalled(condition: Condition, standing: Standing, otherwise: Reason) -> Verdict:
    # A newer version may have known more reasons.
    known = condition.reason in set(Reason)
    reason = Reason(condition.reason) if known else otherwise
    return Verdict(standing, reason, condition.message)


def ended(case: Case) -> Answer | None:
    """Take the result of a Job that is finished."""
    job = case.job
    if job is None or not job.is_finished or (job.is_failed and _was_stopped(case, job)):
        return None
    wanted = PodState.SUCCEEDED if job.is_complete else PodState.FAILED
    pod = next((pod for pod in reversed(case.pods) if pod.state is wanted), None)
    until = (job.finished_at or case.now) + _FOR_THE_POD
    if pod is None and case.now < until:
        words = "The Job has ended; the pod's last words are on their way."
        return Answer(
            verdict=Verdict(Standing.WORKING, Reason.FINISHING, words),
            status=case.with_run(),
            look_again=(until,),
        )
    if job.is_complete:
        return _published(case, job, pod)
    pod = pod or next((pod for pod in reversed(case.pods) if pod.is_finished), None)
    return failed(case, failure_of(pod, case.digest) if pod else failure_without_pod(job))


def _was_stopped(case: Case, job: JobView) -> bool:
    """Say whether a Job failed because it was asked to go, as far as anyone can tell."""
    held = case.spec.suspend and reason_of(case.status) == Reason.USER_SUSPENDED
    return job.is_deleting or held


def outlived(case: Case) -> Answer | None:
    """Take the result of a worker whose pod goes on without it, and end that.

    A container that somebody injected, such as a service mesh's, may never end by itself, and for
    Kubernetes the pod runs until it does. How the worker ended the kubelet says all the same.
    """
    job, pod = case.job, case.latest
    due = taken_at(pod) if pod else None
    if job is None or pod is None or due is None or case.now < due:
        return None
    if pod.exit_code == 0:
        return _published(case, job, pod)
    why = (
        f"The run was not tried again, since other containers of the pod ({pod.why}) still ran, "
        "and Kubernetes counts such a pod as running."
    )
    return failed(case, failure_of(pod, case.digest), not_tried=why)


def taken_at(pod: PodView) -> datetime | None:
    """Return when the result of a worker is taken though its pod still runs; None of any other."""
    if pod.state is not PodState.WORKER_ENDED or pod.finished_at is None:
        return None
    return pod.finished_at + _FOR_OTHERS


def hopeless(case: Case) -> Answer | None:
    """End a Job that would try again in vain.

    The Job controller sees only an exit code where the kernel killed the container for memory, or
    the kubelet evicted the pod for its use of disk.
    """
    pod = case.latest
    if case.job is None or pod is None or pod.state is not PodState.FAILED:
        return None
    failure = failure_of(pod, case.digest)
    if failure.retryable or pod.exit_code in ENDS_THE_JOB:
        return None
    return failed(case, failure)


def failed(case: Case, failure: Failure, *, not_tried: str = "") -> Answer:
    """Return the answer for a run that failed so: over, or once more with more memory.

    `not_tried` says why it was not tried as often as its spec allows.
    """
    job = case.job
    if (
        failure.reason is FailureReason.OUT_OF_MEMORY
        and job is not None
        and not job.memory_raised
        and can_raise_memory(case.resolution.spec, case.settings)
    ):
        return _with_more_memory(case, job, failure)
    reason, message = Reason(failure.reason.value), failure.message
    if failure.retryable:
        reason = Reason.BACKOFF_LIMIT_EXCEEDED
        tried = (
            f"The run failed in every attempt that backoffLimit {case.spec.backoff_limit} allows."
        )
        last = f"The last: {failure.reason}: {failure.message}"
        message = f"{not_tried or tried} {last}"
    pod = case.latest
    report = worker_said(pod, case.digest).report if pod else None
    finished = (job.finished_at if job else None) or case.now
    if report is not None and report.failure is not None and report.failure.report_uri:
        failure = failure.model_copy(update={"report_uri": _failed_report(case)})
    return Answer(
        verdict=Verdict(Standing.FAILED, reason, message),
        status=case.with_run(
            **_measured(report),
            failure=failure,
            completion_time=finished,
            progress=_last_stage(case.status, report),
        ),
        afterwards=_stopped(case),
    )


def _with_more_memory(case: Case, job: JobView, failure: Failure) -> Answer:
    ceiling = case.settings.memory_ceiling
    words = f"The run was out of memory. It starts again with {ceiling}, the most that is allowed."
    return Answer(
        verdict=replacing(job),
        status=case.with_run(failure=failure.model_copy(update={"retryable": True}), progress=None),
        afterwards=deleted(job),
        events=(PostEvent(EventType.WARNING, Reason.MEMORY_RAISED, words),),
    )


def _published(case: Case, job: JobView, pod: PodView | None) -> Answer:
    finished = job.finished_at or (pod.finished_at if pod else None) or case.now
    said = worker_said(pod, case.digest) if pod else Said(None, "the worker's pod is gone")
    report = said.report
    if report is not None and report.outcome is Outcome.FAILED:
        report, said = None, Said(None, "the worker's report says that the run failed")
    status = case.with_run(
        **_measured(report),
        artifact=_artifact(case, report),
        failure=None,
        completion_time=finished,
        progress=_last_stage(case.status, report, done=finished),
    )
    resolved = status.resolved or case.resolved(job.image)
    if report is not None and report.resolved is not None:
        resolved = _told(resolved, report.resolved, escalated=bool(report.escalation))
    already = report is not None and report.outcome is Outcome.ALREADY_PUBLISHED
    loose = _loose_gates(status, report)
    return Answer(
        verdict=Verdict(
            Standing.COMPLETE,
            Reason.ALREADY_PUBLISHED if already else Reason.PUBLISHED,
            _published_words(status, said, loose),
        ),
        status=status.model_copy(update={"resolved": resolved}),
        afterwards=_stopped(case),
        events=(PostEvent(EventType.WARNING, Reason.GATE_FAILED, loose),) if loose else (),
    )


def _told(resolved: Resolved, told: Resolved, *, escalated: bool) -> Resolved:
    """Return what was decided with what the worker tells; method and reason where it escalated."""
    changed = {"method": told.method or resolved.method, "reason": told.reason or resolved.reason}
    return resolved.model_copy(
        update={
            "engine": told.engine or resolved.engine,
            "model_revision": told.model_revision,
            **(changed if escalated else {}),
        }
    )


def _loose_gates(status: QuantizationJobStatus, report: RunReport | None) -> str:
    """Return which gates do not hold of what was published all the same, empty where all do."""
    loose = [variant.name for variant in status.variants if variant.gates_passed is False]
    if not loose:
        return ""
    failed = [gate_sentence(gate) for gate in report.gates if not gate.passed] if report else []
    which = "; ".join(failed) or "report.json says which and by how much"
    return f"Gates do not hold for {', '.join(loose)}; onGateFailure is not Fail. {which}."


def _published_words(status: QuantizationJobStatus, said: Said, loose: str) -> str:
    uri = status.artifact.uri if status.artifact else ""
    words = f"The artifact is published at {uri}."
    if loose:
        words += f" {loose}"
    steps = {step.in_place_of: step for step in status.escalation if step.gates_passed}
    for asked, step in steps.items():
        words += f" {step.variant} ({step.setting}) stands in place of {asked}, whose gates failed."
    if said.report is None:
        words += f" Its numbers are only in report.json there: {said.problem}."
    return words


def _failed_report(case: Case) -> str:
    # That there is one the worker says; where, follows from the spec, as an artifact's address.
    return f"{failed_uri(case.spec.output.uri, case.resource.name, case.digest)}report.json"


def _artifact(case: Case, report: RunReport | None) -> Artifact:
    # The address follows from the spec; a report is not asked for it.
    uri = artifact_uri(case.spec.output.uri, case.resource.name, case.digest)
    told = report.artifact if report else None
    return Artifact(
        uri=uri,
        manifest_sha256=told.manifest_sha256 if told else None,
        report_uri=f"{uri}report.json",
    )


def _measured(report: RunReport | None) -> dict[str, Any]:
    """Return what a report has for the status; a run that failed may have measured much."""
    if report is None:
        return {}
    told = report.original
    original = told and Original(**{name: getattr(told, name) for name in Original.model_fields})
    return {
        "original": original,
        "variants": tuple(variant.for_status() for variant in report.variants),
        "recommended": report.recommended,
        "escalation": report.escalation,
        "usage": report.usage,
        "recommendations": report.recommendations,
    }


def _last_stage(
    before: QuantizationJobStatus, report: RunReport | None, *, done: datetime | None = None
) -> Progress | None:
    if done is not None:
        return Progress(stage=Stage.REPORTING, percent=100, updated_at=done)
    if report is None or not report.stages:
        return before.progress
    last = report.stages[-1]
    if before.progress is not None and before.progress.stage is last.stage:
        return before.progress
    return Progress(stage=last.stage, updated_at=last.started_at)
