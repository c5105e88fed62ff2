"""Jobs that must go before the run can start: of another spec, of another try, or already going.

A running Job is never replaced because `pod` was edited: what it has computed is worth more. One
that has yet to start is, since the edit may be what it waits for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kubequant.controller import names
from kubequant.controller.case import Answer, deleted
from kubequant.controller.conditions import Standing, Verdict, reason_of
from kubequant.controller.manifest import template_digest, worker_job
from kubequant.controller.pods import PodState
from kubequant.controller.policies.held import suspended
from kubequant.controller.policies.podless import refusal
from kubequant.controller.reasons import Reason, Refusal

if TYPE_CHECKING:
    from kubequant.controller.case import Case
    from kubequant.controller.observe import JobView


def of_another_try(case: Case) -> Answer | None:
    """Make the failed Job of an earlier try go.

    The status knows of that try where the spec was changed since; the Job itself where its pod was
    edited on its way; and where we asked already, the index may lag behind.
    """
    job = case.job
    if job is None:
        return None
    was_edited = _is_of_another_generation(case, job) and job.is_failed and _differs(case, job)
    was_asked = reason_of(case.status) == Reason.REPLACING and (
        job.is_failed or (case.is_to_get_more_memory and not job.memory_raised)
    )
    if not (case.starts_anew or was_edited or was_asked):
        return None
    return suspended(case) or _replaced(case, job)


def of_another_spec(case: Case) -> Answer | None:
    """Wait until the run of the spec before has stopped; `decide` makes its Job go.

    Two runs at once would fight for the same node, cache or quota.
    """
    running = [job for job in case.other_jobs if not job.is_finished]
    return Answer(verdict=replacing(running[0]), status=case.status) if running else None


def going(case: Case) -> Answer | None:
    """Wait for a Job of ours that is being deleted, by whomever: its name is not free yet."""
    job = case.job
    return _replaced(case, job) if job is not None and job.is_deleting else None


def not_started(case: Case) -> Answer | None:
    """Replace a Job that has yet to start and was made from words that have changed since.

    Where only the administrator's settings changed, a Job that waits in its ordinary turn keeps its
    place; one that cannot start is made again.
    """
    job, pod = case.job, case.latest
    if job is None or job.is_finished or (pod is not None and not pod.is_waiting):
        return None
    cannot_start = bool(refusal(case)) or (pod is not None and pod.state is not PodState.PENDING)
    may_differ = _is_of_another_generation(case, job) or cannot_start
    other_queue = job.handed_on != names.labels_text(names.handed_on(dict(case.resource.labels)))
    if other_queue or (may_differ and _differs(case, job)):
        return _replaced(case, job)
    return None


def replacing(job: JobView) -> Verdict:
    """Return the verdict while a Job must go before the next can start."""
    return Verdict(
        Standing.WORKING,
        Reason.REPLACING,
        f"Waiting until the Job {job.name} and its pods are gone; then the run starts.",
    )


def _replaced(case: Case, job: JobView) -> Answer:
    return Answer(verdict=replacing(job), status=case.status, actions=deleted(job))


def _is_of_another_generation(case: Case, job: JobView) -> bool:
    return job.generation != str(case.resource.generation)


def _differs(case: Case, job: JobView) -> bool:
    order = case.order(memory_raised=job.memory_raised)
    if isinstance(order, Refusal):
        return False
    made = worker_job(order, case.settings)
    return template_digest(made.spec) != job.template_digest if made.spec else False
