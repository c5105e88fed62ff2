"""The Job that is missing is created, unless its name is taken or the server refuses it."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from kubequant.api.outcome import FailureReason
from kubequant.controller.case import Answer
from kubequant.controller.conditions import Standing, Verdict
from kubequant.controller.failures import own_failure
from kubequant.controller.manifest import worker_job
from kubequant.controller.plan import CreateJob, EventType, PostEvent
from kubequant.controller.policies.podless import PATIENCE
from kubequant.controller.policies.running import waiting
from kubequant.controller.reasons import Reason, Refusal

if TYPE_CHECKING:
    from kubequant.controller.case import Case
    from kubequant.controller.observe import Rejection

_ASK_AGAIN: Final = timedelta(seconds=60)
_NEVER_TAKEN: Final = frozenset({400, 422})
"""Bad request and unprocessable: what the server says of a Job that it will never take."""
_NO_POD: Final = {"pod_name": "", "node_name": "", "pod_creation_time": None}
_ADMISSION: Final = re.compile(
    r"""admission webhook "[^"]*" denied the request|(Validating|Mutating)AdmissionPolicy '"""
)
"""The words of what somebody put before the server, whose code is the rule's to choose: a webhook
that names none answers 400, a policy 422."""


def created(case: Case) -> Answer | None:
    """Create the Job where there is none."""
    if case.job is not None:
        return None
    if case.observed.rejection is not None:
        return _rejected(case, case.observed.rejection)
    if any(job.name == case.job_name for job in case.observed.strangers):
        return _name_taken(case)
    memory_raised = case.is_to_get_more_memory
    order = case.order(memory_raised=memory_raised)
    if isinstance(order, Refusal):  # `refused` was asked before
        return None
    job = worker_job(order, case.settings)
    status = case.status.model_copy(
        update={
            # No pod of this Job has started yet.
            "run": case.run().model_copy(update=_NO_POD),
            "resolved": case.resolved(order.image),
            "progress": None,
            "completion_time": None,
            "failure": case.status.failure if memory_raised else None,
        }
    )
    return Answer(
        verdict=waiting(case),
        status=status,
        actions=(CreateJob(job),),
        # Where the Job controller is down, nothing else wakes this run.
        look_again=(case.now + PATIENCE,),
        events=_told(case),
    )


def _told(case: Case) -> tuple[PostEvent, ...]:
    """Tell of a Job that follows another; of the first the status tells enough."""
    before = case.resource.status
    if before is None or before.run is None:
        return ()
    words = f"Created the Job {case.job_name}."
    return (PostEvent(EventType.NORMAL, Reason.JOB_CREATED, words),)


def _name_taken(case: Case) -> Answer:
    stranger = next(job for job in case.observed.strangers if job.name == case.job_name)
    owner = stranger.owner or "nobody"
    words = (
        f"There is a Job {case.job_name} already, which belongs to {owner} (UID "
        f"{stranger.owner_uid or 'none'}). The run starts when it is gone."
    )
    # Most often it is what a deleted resource of the same name left, and will be gone at once.
    standing = Standing.WORKING if stranger.is_deleting else Standing.STUCK
    return Answer(
        verdict=Verdict(standing, Reason.JOB_NAME_TAKEN, words),
        status=case.status,
        look_again=(case.now + _ASK_AGAIN,),
    )


def _rejected(case: Case, rejection: Rejection) -> Answer:
    words = f"The API server does not take the Job {case.job_name}: {rejection.message}"
    if rejection.code in _NEVER_TAKEN and not _ADMISSION.search(rejection.message):
        failure = own_failure(
            FailureReason.JOB_REJECTED, words, "Correct spec.pod as the server's words say."
        )
        return Answer(
            verdict=Verdict(Standing.FAILED, Reason.JOB_REJECTED, words),
            status=case.status.model_copy(update={"failure": failure, "completion_time": case.now}),
        )
    # A quota or an admission rule: it may be taken later.
    return Answer(
        verdict=Verdict(Standing.WORKING, Reason.JOB_REJECTED, words),
        status=case.status,
        look_again=(case.now + _ASK_AGAIN,),
    )
