"""A Job that is on its way: what its youngest pod says, in words for people."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from kubequant.api.outcome import Stage
from kubequant.api.status import Progress
from kubequant.controller.case import Answer
from kubequant.controller.conditions import Standing, Verdict
from kubequant.controller.failures import failure_of
from kubequant.controller.manifest import ENDS_THE_JOB
from kubequant.controller.pods import PodState
from kubequant.controller.policies.ended import taken_at
from kubequant.controller.policies.ending import disrupted, late_from
from kubequant.controller.policies.podless import look_again, question, rejected
from kubequant.controller.reasons import Reason

if TYPE_CHECKING:
    from datetime import datetime

    from kubequant.api.status import Failure
    from kubequant.controller.case import Case
    from kubequant.controller.observe import PodView

_FOR_THE_JOB: Final = timedelta(seconds=10)

_SAYS: Final[dict[PodState, tuple[Reason, str]]] = {
    PodState.UNSCHEDULABLE: (Reason.UNSCHEDULABLE, "No node takes the pod {pod}: {why}"),
    PodState.IMAGE_NOT_FOUND: (
        Reason.IMAGE_NOT_FOUND,
        "The image of the pod {pod} cannot be had: {why}",
    ),
    PodState.CANNOT_START: (Reason.CANNOT_START, "The pod {pod} cannot start: {why}"),
    PodState.WORKER_ENDED: (
        Reason.FINISHING,
        "The worker in pod {pod} ended, and other containers of the pod still run: {why}.",
    ),
}


def running(case: Case) -> Answer:
    """Say how far the Job is."""
    pod = case.latest
    failure = _last_failure(case)
    verdict = rejected(case) or (waiting(case) if pod is None else _verdict(case, pod, failure))
    same_pod = pod is not None and pod.name[:253] == _known_pod(case)
    progress = case.status.progress if same_pod else None
    if pod is not None and pod.state is PodState.RUNNING and progress is None:
        # More the pod's state does not tell: the first stage has begun.
        progress = Progress(stage=Stage.PREFLIGHT, updated_at=pod.started_at)
    until = _next_news(case, pod) if pod is not None else None
    resolved = case.status.resolved or case.resolved(case.job.image if case.job else "")
    return Answer(
        verdict=verdict,
        status=case.with_run(
            failure=failure, progress=progress, resolved=resolved, completion_time=None
        ),
        look_again=(*((until,) if until else ()), *look_again(case)),
        question=question(case),
    )


def waiting(case: Case) -> Verdict:
    """Return the verdict for a Job whose pod is on its ordinary way."""
    return Verdict(
        Standing.WORKING, Reason.PENDING, f"The Job {case.job_name} waits for its pod to start."
    )


def _next_news(case: Case, pod: PodView) -> datetime | None:
    """Return when there is something else to tell of a pod that does not change by itself."""
    due = [_finishing_until(case, pod), taken_at(pod), late_from(pod)]
    return min((one for one in due if one is not None and case.now < one), default=None)


def _finishing_until(case: Case, pod: PodView) -> datetime | None:
    """Return until when a pod that did its work is told of as running.

    The Job controller says so within a second or two, and then there is more to tell.
    """
    is_done = pod.state in {PodState.SUCCEEDED, PodState.WORKER_ENDED}
    if not is_done or pod.finished_at is None:
        return None
    until = pod.finished_at + _FOR_THE_JOB
    return until if case.now < until else None


def _known_pod(case: Case) -> str:
    return case.status.run.pod_name if case.status.run else ""


def _last_failure(case: Case) -> Failure | None:
    """Return why the last attempt that counted failed, or why this one has more memory."""
    failed = [pod for pod in case.pods if pod.state is PodState.FAILED]
    if failed:
        return failure_of(failed[-1], case.digest)
    return case.status.failure if case.job is not None and case.job.memory_raised else None


def _verdict(case: Case, pod: PodView, failure: Failure | None) -> Verdict:
    if pod.state is PodState.RUNNING or _finishing_until(case, pod):
        node = f" on node {pod.node}" if pod.node else ""
        words = f"The pod {pod.name} runs{node}."
        return Verdict(Standing.WORKING, Reason.RUNNING, words)
    if pod.is_finished:
        return _after(case, pod, failure)
    if pod.state is PodState.ENDING:
        return disrupted(case, pod)
    if pod.state in _SAYS:
        reason, words = _SAYS[pod.state]
        return Verdict(Standing.WORKING, reason, words.format(pod=pod.name, why=pod.why))
    return waiting(case)


def _after(case: Case, pod: PodView, failure: Failure | None) -> Verdict:
    """Return the verdict between the end of a pod and what follows."""
    if pod.state is PodState.DISRUPTED:
        words = (
            f"The pod {pod.name} was ended from outside ({pod.why}). Another follows, which does "
            "not count against backoffLimit."
        )
        return Verdict(Standing.WORKING, Reason.DISRUPTED, words)
    failures = sum(one.state is PodState.FAILED for one in case.pods)
    counted = max(failures, case.job.failed_pods if case.job else 0)
    limit = case.spec.backoff_limit
    may_follow = pod.exit_code not in ENDS_THE_JOB and counted <= limit
    if pod.state is PodState.FAILED and failure is not None and may_follow:
        words = (
            f"Attempt {counted} of {limit + 1} failed: {failure.reason}: {failure.message} "
            "Another follows after a pause."
        )
        return Verdict(Standing.WORKING, Reason.RETRYING, words)
    words = f"The worker in pod {pod.name} ended; the Job {case.job_name} is about to say how."
    return Verdict(Standing.WORKING, Reason.FINISHING, words)
