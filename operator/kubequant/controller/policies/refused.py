"""What is refused before anything runs: what the administrator, this version or the API forbids.

A refusal is decided again in every pass, so that it ends when settings or version change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kubequant.api.outcome import FailureReason
from kubequant.api.status import ConditionType, QuantizationJobStatus
from kubequant.controller.case import Answer
from kubequant.controller.conditions import Standing, Verdict, condition_of
from kubequant.controller.failures import own_failure
from kubequant.controller.history import was_refused
from kubequant.controller.reasons import Reason, Refusal

if TYPE_CHECKING:
    from datetime import datetime

    from kubequant.controller.case import Case
    from kubequant.controller.observe import Resource

_MOST_PROBLEMS: Final = 5


def refused(case: Case) -> Answer | None:
    """Refuse what is not to be run. A Job that is there was permitted when it was created."""
    if case.job is not None:
        return None
    order = case.order()
    if not isinstance(order, Refusal):
        return None
    # Without a run: what did not run is no run of history either.
    status = QuantizationJobStatus(resolved=case.resolved(), history=case.status.history)
    return _answer(case.resource, order, status, case.now)


def unreadable(resource: Resource, now: datetime) -> Answer | None:
    """Say why a spec cannot be read, and touch nothing: a newer operator may have started it.

    None where the resource is already over for this generation.
    """
    before = resource.status or QuantizationJobStatus()
    is_over = condition_of(before, ConditionType.COMPLETE) or (
        condition_of(before, ConditionType.FAILED) and not was_refused(before)
    )
    if is_over and before.observed_generation == resource.generation:
        return None
    told = [str(problem) for problem in resource.problems[:_MOST_PROBLEMS]]
    more = len(resource.problems) - len(told)
    refusal = Refusal(
        Reason.INVALID_SPEC,
        "; ".join(told) + (f"; and {more} more" if more else ""),
        "Correct the spec, or upgrade the operator if the manifest is written for a newer one.",
    )
    return _answer(resource, refusal, before, now)


def _answer(
    resource: Resource, refusal: Refusal, status: QuantizationJobStatus, now: datetime
) -> Answer:
    failure = own_failure(FailureReason(refusal.reason), refusal.message, refusal.advice)
    return Answer(
        verdict=Verdict(Standing.FAILED, refusal.reason, f"{refusal.message}. {refusal.advice}"),
        status=status.model_copy(
            update={"failure": failure, "completion_time": _since(resource, now)}
        ),
    )


def _since(resource: Resource, now: datetime) -> datetime:
    """Return when this generation was refused first."""
    before = resource.status
    if before is None or not was_refused(before) or before.completion_time is None:
        return now
    return before.completion_time if before.observed_generation == resource.generation else now
