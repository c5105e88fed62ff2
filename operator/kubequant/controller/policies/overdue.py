"""Deadlines, counted by us: over all attempts, and of a run that waits for its pod too.

Time in a queue counts against none of them; see `Case.started_at`.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from kubequant.api.outcome import FailureReason
from kubequant.controller.case import Answer, deleted
from kubequant.controller.conditions import Standing, Verdict
from kubequant.controller.failures import own_failure
from kubequant.controller.plan import Question
from kubequant.controller.pods import PodState
from kubequant.controller.policies import ending, podless
from kubequant.controller.reasons import Reason

if TYPE_CHECKING:
    from kubequant.controller.case import Case
    from kubequant.controller.observe import PodView

_NO_CONTROLLER: Final = (
    "Ask the cluster's administrator whether its Job controller works: it makes the pods."
)
_ON_THE_NODE: Final = (
    "Put right what the event names, or raise spec.pendingDeadlineSeconds where an image or a "
    "volume was on its way."
)


def overdue(case: Case) -> Answer | None:
    """End a run that took too long, or whose pod waited too long for its start."""
    pod = case.latest
    if pod is not None and pod.state in {PodState.SUCCEEDED, PodState.WORKER_ENDED}:
        # The worker has ended; that the Job does not say so yet is no delay of the run's.
        return None
    active, pending = active_until(case), pending_until(case)
    if active is not None and case.now >= active:
        words = (
            f"The run took longer than activeDeadlineSeconds {case.spec.active_deadline_seconds}."
        )
        advice = ""
        if refused := podless.refusal(case):
            words += f" Its next pod is refused: {refused}"
            advice = podless.ADVICE
        elif pod is not None and pod.state is PodState.ENDING:
            words += f" {ending.sentence(case, pod)}"
            advice = ending.ADVICE
        return _over(
            case, FailureReason.DEADLINE_EXCEEDED, words, advice, question=podless.question(case)
        )
    if pending is not None and case.now >= pending:
        return _not_started(case, pod)
    return None


def _not_started(case: Case, pod: PodView | None) -> Answer:
    seconds = case.spec.pending_deadline_seconds
    said = case.observed.last_event or ""
    words = f"The pod could not start within pendingDeadlineSeconds {seconds}: "
    reason, question, advice = FailureReason.PENDING_DEADLINE_EXCEEDED, None, ""
    if pod is None or pod.is_finished:
        question = podless.question(case)
        why = said and f"the API server takes none: {said}"
        advice = podless.ADVICE if said else _NO_CONTROLLER
        why = why or "none was made, and no event of the Job says why"
    elif pod.state is PodState.IMAGE_NOT_FOUND:
        reason, why = FailureReason.IMAGE_NOT_FOUND, pod.why
        image = case.job.image if case.job else ""
        words = f"The image {image} could not be had within {seconds} seconds: "
    elif pod.state is PodState.ENDING:
        why, advice = ending.sentence(case, pod), ending.ADVICE
    elif pod.state is PodState.PENDING:
        # A volume that cannot be had and an image on its way look the same but for the events.
        question = Question(uid=pod.uid)
        why = "; its last event: ".join(filter(None, (pod.why, said)))
        advice = _ON_THE_NODE if said else ""
    else:
        why = pod.why
    words += why or "Kubernetes does not say why"
    return _over(case, reason, words, advice, question=question)


def _over(
    case: Case,
    reason: FailureReason,
    message: str,
    advice: str = "",
    *,
    question: Question | None = None,
) -> Answer:
    failure = own_failure(reason, message, advice)
    return Answer(
        verdict=Verdict(Standing.FAILED, Reason(reason.value), message),
        status=case.with_run(failure=failure, completion_time=case.now),
        afterwards=deleted(case.job),
        question=question,
    )


def active_until(case: Case) -> datetime | None:
    """Return when the run is over, from the start of its first pod; None before, or where held."""
    started = case.started_at()
    return started and started + timedelta(seconds=case.spec.active_deadline_seconds)


def pending_until(case: Case) -> datetime | None:
    """Return how long the pod may wait for its start; None where none waits, or a queue holds it.

    A Job without any pod waits too: a quota may forbid the pod, and no pod says so. Between two
    attempts the Job controller makes a pause, which does not count, also where the pod that ended
    is gone.
    """
    since = _pending_since(case)
    return since and since + timedelta(seconds=case.spec.pending_deadline_seconds)


def _pending_since(case: Case) -> datetime | None:
    job, pod = case.job, case.latest
    if job is None or job.is_suspended or job.is_deleting or job.is_finished:
        return None
    if pod is not None and pod.is_waiting:
        return pod.created
    had_a_pod = pod is not None or (case.status.run is not None and case.status.run.pod_name)
    if had_a_pod and case.started_at() is not None:
        # Then the other deadline counts.
        return None
    if job.started_at is not None:
        return case.since_let_go(job.started_at)
    # A queue may have held a Job that does not say yet when it was started.
    return None if job.queue else case.since_let_go(job.created)
