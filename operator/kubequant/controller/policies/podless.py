"""A Job that was let go and has no pod on its way: what Kubernetes says of that, where it does.

A quota, a limit range, Pod Security, a webhook, a class or an account that is not there: the server
takes the Job, and refuses each of its pods. Only an event about the Job tells, which no watch of
ours brings, so the question is asked a while after the pod should be there, and then each minute.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from kubequant.controller.conditions import Standing, Verdict
from kubequant.controller.plan import Question
from kubequant.controller.pods import PodState
from kubequant.controller.reasons import Reason

if TYPE_CHECKING:
    from datetime import datetime

    from kubequant.controller.case import Case

PATIENCE: Final = timedelta(seconds=10)
"""So long a pod is on its ordinary way to be made; a Job controller pauses as long after one that
ended."""
_ASK_AGAIN: Final = timedelta(seconds=60)
ADVICE: Final = (
    "Correct spec.pod as these words say, or have what they name (a quota, a policy, an account, a "
    "class) put right."
)


def question(case: Case) -> Question | None:
    """Return what is to be asked about a Job whose pod should be there by now."""
    job, since = case.job, _podless_since(case)
    if job is None or since is None or case.now < since + PATIENCE:
        return None
    run = case.status.run
    before = case.latest.created if case.latest else run.pod_creation_time if run else None
    # What kept an earlier pod from being made keeps this one no more.
    return Question(uid=job.uid, reason="FailedCreate", since=before, job_name=job.name)


def refusal(case: Case) -> str:
    """Return the words by which the Job's next pod is refused; empty where none are known."""
    return (case.observed.last_event or "") if question(case) is not None else ""


def rejected(case: Case) -> Verdict | None:
    """Return the verdict on a Job whose pod is refused."""
    words = refusal(case)
    if not words:
        return None
    return Verdict(
        Standing.WORKING,
        Reason.POD_REJECTED,
        f"The API server takes no pod of the Job {case.job_name}: {words} - {ADVICE} Kubernetes "
        "goes on trying.",
    )


def look_again(case: Case) -> tuple[datetime, ...]:
    """Return when to ask, or to ask again."""
    since = _podless_since(case)
    if since is None:
        return ()
    due = since + PATIENCE
    return (due if case.now < due else case.now + _ASK_AGAIN,)


def _podless_since(case: Case) -> datetime | None:
    """Return since when a Job has no pod on its way; None where it has one, or is to have none."""
    job, pod = case.job, case.latest
    if job is None or job.is_suspended or job.is_deleting or job.is_finished:
        return None
    let_go = case.since_let_go(job.started_at or job.created)
    if pod is None:
        return let_go
    if not pod.is_finished or pod.state is PodState.SUCCEEDED:
        return None
    return max(filter(None, (let_go, pod.finished_at, pod.created)))
