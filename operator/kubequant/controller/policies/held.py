"""What holds a run back: its user's `suspend`, or a queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kubequant.controller.case import Answer, deleted
from kubequant.controller.conditions import Standing, Verdict
from kubequant.controller.reasons import Reason

if TYPE_CHECKING:
    from kubequant.controller.case import Case


def suspended(case: Case) -> Answer | None:
    """Hold what its user suspended: its Job goes, and a new one is made when it is resumed.

    The Job's own `suspend` is a queue's to write. The time before does not count after a resume.
    """
    if not case.spec.suspend:
        return None
    return Answer(
        verdict=Verdict(
            Standing.SUSPENDED, Reason.USER_SUSPENDED, "spec.suspend is set; nothing runs."
        ),
        status=case.status.model_copy(
            update={
                "run": case.run(),
                "start_time": None,
                "completion_time": None,
                "progress": None,
                "failure": None,
            }
        ),
        actions=deleted(case.job),
    )


def queued(case: Case) -> Answer | None:
    """Show that a queue holds the Job."""
    job = case.job
    if job is None or not job.is_suspended:
        return None
    holder = f"The queue {job.queue} holds the Job" if job.queue else "Something suspended the Job"
    return Answer(
        verdict=Verdict(Standing.QUEUED, Reason.QUEUED, f"{holder} {job.name}; it has yet to run."),
        status=case.with_run(progress=None),
    )
