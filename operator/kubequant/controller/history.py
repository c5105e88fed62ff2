"""What the status remembers: of this run, and of the ten before it.

A status is about one run. When the spec asks for another, or a failed run is to be tried again,
what there is becomes one entry of history and the status begins anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kubequant.api.status import (
    MAX_HISTORY,
    ConditionType,
    HistoryEntry,
    Phase,
    QuantizationJobStatus,
    Run,
)
from kubequant.controller import names
from kubequant.controller.conditions import condition_of
from kubequant.controller.failures import failure_of, failure_without_pod
from kubequant.controller.reasons import REFUSALS, Reason

if TYPE_CHECKING:
    from datetime import datetime

    from kubequant.controller.observe import JobView, Observed, Resource


@dataclass(frozen=True, slots=True)
class SoFar:
    """What is known of a run, and whether it begins again."""

    status: QuantizationJobStatus
    starts_anew: bool = False


def of_this_run(resource: Resource, observed: Observed, digest: str, now: datetime) -> SoFar:
    """Return what the resource's status says about the run `digest`.

    A failed run is over for the generation it failed in. Any later change of the spec, be it only
    `suspend` set and taken away, tries it again, since what failed may just have been put right.
    """
    old = resource.status
    fresh = QuantizationJobStatus(
        run=Run(digest=digest, job_name=names.job_name(resource.name, digest))
    )
    if old is None:
        return SoFar(fresh)
    if old.run is None:
        return SoFar(fresh.model_copy(update={"history": old.history}))
    if old.run.digest != digest:
        return SoFar(_after(fresh, old, observed, now))
    if was_refused(old):
        return SoFar(
            old.model_copy(update={"conditions": (), "failure": None, "completion_time": None})
        )
    failed = condition_of(old, ConditionType.FAILED)
    if failed is not None and failed.observed_generation != resource.generation:
        return SoFar(_after(fresh, old, observed, now), starts_anew=True)
    return SoFar(old)


def was_refused(status: QuantizationJobStatus | None) -> bool:
    """Say whether a status tells of a refusal, which every pass decides again."""
    failed = condition_of(status, ConditionType.FAILED)
    if status is None or failed is None or failed.reason not in REFUSALS:
        return False
    # A worker, too, can say InvalidSpec; then there was an exit code.
    return status.failure is None or status.failure.exit_code is None


def _after(
    fresh: QuantizationJobStatus, old: QuantizationJobStatus, observed: Observed, now: datetime
) -> QuantizationJobStatus:
    entry = _entry(old, observed, now)
    entries = (entry, *old.history) if entry else old.history
    return fresh.model_copy(update={"history": entries[:MAX_HISTORY]})


def _entry(old: QuantizationJobStatus, observed: Observed, now: datetime) -> HistoryEntry | None:
    """Return what is kept of a run, or None where no pod of it ever started."""
    if old.run is None:
        return None
    phase, reason, ended = _end_of(old, observed, now)
    if old.run.attempts == 0 and old.start_time is None and reason is Reason.SUPERSEDED:
        return None
    return HistoryEntry(
        digest=old.run.digest,
        job_name=old.run.job_name,
        phase=phase,
        reason=reason,
        start_time=old.start_time,
        completion_time=ended,
        artifact_uri=old.artifact.uri if old.artifact else "",
    )


def _end_of(
    old: QuantizationJobStatus, observed: Observed, now: datetime
) -> tuple[Phase, str, datetime]:
    complete = condition_of(old, ConditionType.COMPLETE)
    failed = condition_of(old, ConditionType.FAILED)
    if complete is not None:
        return Phase.SUCCEEDED, complete.reason, old.completion_time or now
    if failed is not None:
        return Phase.FAILED, failed.reason, old.completion_time or now
    # The Job may have ended after the last time that anyone looked.
    job = observed.job(old.run.job_name) if old.run else None
    if job is not None and job.is_complete:
        return Phase.SUCCEEDED, Reason.PUBLISHED, job.finished_at or now
    if job is not None and job.is_failed:
        return Phase.FAILED, _why(job, observed), job.finished_at or now
    return Phase.FAILED, Reason.SUPERSEDED, now


def _why(job: JobView, observed: Observed) -> str:
    pods = observed.pods_of(job)
    failure = failure_of(pods[-1], job.digest) if pods else failure_without_pod(job)
    return failure.reason.value
