"""What is to be done about a resource: one pure function, idempotent, over policies asked in turn.

Applying the plan and deciding again yields no action and the same status. How to read the order: a
run that is over stays over; a Job that ended is believed; then comes what forbids or holds the run,
what must be gone before it, what has taken too long; and only then a Job is made or watched.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from kubequant.api.status import ConditionType
from kubequant.controller.case import Answer, Case, deleted
from kubequant.controller.conditions import (
    Standing,
    condition_of,
    conditions,
    phase_of,
    reason_of,
    shortened_to_bytes,
)
from kubequant.controller.plan import CreateJob, DeleteResource, EventType, Plan, PostEvent
from kubequant.controller.policies.created import created
from kubequant.controller.policies.ended import ended, hopeless, outlived, remembered
from kubequant.controller.policies.held import queued, suspended
from kubequant.controller.policies.overdue import active_until, overdue, pending_until
from kubequant.controller.policies.refused import refused, unreadable
from kubequant.controller.policies.replaced import (
    going,
    not_started,
    of_another_spec,
    of_another_try,
)
from kubequant.controller.policies.running import running
from kubequant.controller.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from kubequant.api.status import QuantizationJobStatus
    from kubequant.controller.conditions import Verdict
    from kubequant.controller.observe import Observed, Resource
    from kubequant.controller.settings import Settings

_POLICIES: Final[tuple[Callable[[Case], Answer | None], ...]] = (
    remembered,
    of_another_try,
    ended,
    refused,
    suspended,
    of_another_spec,
    going,
    outlived,
    overdue,
    created,
    hopeless,
    not_started,
    queued,
    running,
)

_OVER: Final = {
    Standing.COMPLETE: ConditionType.COMPLETE,
    Standing.FAILED: ConditionType.FAILED,
}
"""The standings that are ends, with the condition that shows each."""
_LONGEST_NOTE: Final = 1024
"""How many bytes an API server takes as an event's message."""

_TOLD: Final[dict[Reason, EventType]] = {
    Reason.DISRUPTED: EventType.NORMAL,
    Reason.QUEUED: EventType.NORMAL,
    Reason.USER_SUSPENDED: EventType.NORMAL,
    Reason.REPLACING: EventType.NORMAL,
    Reason.PUBLISHED: EventType.NORMAL,
    Reason.ALREADY_PUBLISHED: EventType.NORMAL,
    Reason.RETRYING: EventType.WARNING,
    Reason.UNSCHEDULABLE: EventType.WARNING,
    Reason.IMAGE_NOT_FOUND: EventType.WARNING,
    Reason.CANNOT_START: EventType.WARNING,
    Reason.JOB_NAME_TAKEN: EventType.WARNING,
    Reason.JOB_REJECTED: EventType.WARNING,
    Reason.POD_REJECTED: EventType.WARNING,
}
"""Verdicts that are worth an event when a resource comes to them, besides every failure."""


def decide(resource: Resource, observed: Observed, *, now: datetime, settings: Settings) -> Plan:
    """Return what is to be done about `resource`, given what there is, at `now` (UTC)."""
    now = now.replace(microsecond=0)
    if resource.is_deleting:
        # Its Jobs go with it, by their owner references.
        return Plan()
    if resource.spec is None:
        answer = unreadable(resource, now)
        return Plan() if answer is None else _plan(resource, answer, now=now)
    case = Case.of(resource, resource.spec, observed, now=now, settings=settings)
    answer = next(answer for policy in _POLICIES if (answer := policy(case)) is not None)
    if answer.question is not None and observed.last_event is None:
        return Plan(question=answer.question)
    return _plan(resource, _with_common(case, answer), now=now)


def _with_common(case: Case, answer: Answer) -> Answer:
    """Add what holds whatever a policy said: other Jobs go, deadlines and the TTL are kept."""
    # What became of a run before is in history before its Job goes.
    afterwards = (*answer.afterwards, *(go for job in case.other_jobs for go in deleted(job)))
    look_again = [*answer.look_again]
    if answer.verdict.standing not in _OVER:
        look_again += [due for due in (active_until(case), pending_until(case)) if due is not None]
    elif case.spec.ttl_seconds_after_finished is not None:
        ended = answer.status.completion_time or case.now
        ttl = case.spec.ttl_seconds_after_finished
        due = ended + timedelta(seconds=ttl)
        look_again.append(due)
        if case.now >= due and _is_written(case, answer):
            words = f"Deleted {ttl} seconds after it finished; what is published stays."
            event = PostEvent(EventType.NORMAL, Reason.EXPIRED, words)
            afterwards = (*afterwards, DeleteResource(case.resource.uid, event))
    return Answer(
        verdict=answer.verdict,
        status=answer.status,
        actions=answer.actions,
        afterwards=afterwards,
        events=answer.events,
        look_again=tuple(look_again),
    )


def _is_written(case: Case, answer: Answer) -> bool:
    """Say whether everybody can see how this generation ended; else the end is never shown."""
    condition = condition_of(case.resource.status, _OVER[answer.verdict.standing])
    return condition is not None and condition.observed_generation == case.resource.generation


def _plan(resource: Resource, answer: Answer, *, now: datetime) -> Plan:
    before = resource.status
    made = conditions(answer.verdict, before, now=now, generation=resource.generation)
    status = answer.status.model_copy(
        update={
            "observed_generation": resource.generation,
            "phase": phase_of(made),
            "conditions": made,
        }
    )
    waits = [math.ceil((due - now).total_seconds()) for due in answer.look_again]
    return Plan(
        actions=answer.actions,
        status=status,
        events=_events(before, answer),
        afterwards=answer.afterwards,
        requeue_after_seconds=max(1, min(waits)) if waits else None,
    )


def _events(before: QuantizationJobStatus | None, answer: Answer) -> tuple[PostEvent, ...]:
    """Return what people should be told: only what is new, so that a pass repeated says nothing."""
    verdict = answer.verdict
    is_new = reason_of(before) != verdict.reason
    beside = answer.events
    if not is_new and any(isinstance(action, CreateJob) for action in answer.actions):
        # The index may not know yet of a Job that the pass before created.
        beside = ()
    told = _event(verdict) if is_new else None
    events = (*beside, told) if told else beside
    return tuple(
        PostEvent(event.type, event.reason, shortened_to_bytes(event.message, _LONGEST_NOTE))
        for event in events
    )


def _event(verdict: Verdict) -> PostEvent | None:
    if verdict.standing is Standing.FAILED:
        return PostEvent(EventType.WARNING, verdict.reason, verdict.message)
    kind = _TOLD.get(verdict.reason)
    return PostEvent(kind, verdict.reason, verdict.message) if kind else None
