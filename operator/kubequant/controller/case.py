"""One resource in one pass: what every policy looks at, and what each of them answers.

A policy is a pure function from a `Case` to an `Answer`, or None where it has nothing to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from kubequant.api.auto import Resolution, resolve
from kubequant.api.digest import run_digest
from kubequant.api.outcome import FailureReason
from kubequant.api.status import ConditionType, Resolved, Run
from kubequant.controller import history, names, permissions
from kubequant.controller.catalog import entry_for
from kubequant.controller.conditions import known_condition
from kubequant.controller.manifest import LARGEST_REQUEST_BYTES, Order, can_raise_memory
from kubequant.controller.plan import Action, DeleteJob, PostEvent, Question
from kubequant.controller.reasons import Reason, Refusal

if TYPE_CHECKING:
    from datetime import datetime

    from kubequant.api.spec import QuantizationJobSpec
    from kubequant.api.status import QuantizationJobStatus
    from kubequant.controller.conditions import Verdict
    from kubequant.controller.observe import JobView, Observed, PodView, Resource
    from kubequant.controller.settings import Settings


_CLOCKS_DIFFER: Final = timedelta(minutes=1)
"""When a Job was started and when a container was, two machines say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one policy says: the verdict, what the status then holds, and what is to be done."""

    verdict: Verdict
    status: QuantizationJobStatus
    """Without conditions, phase and observedGeneration, which `decide` writes."""
    actions: tuple[Action, ...] = ()
    afterwards: tuple[Action, ...] = ()
    """What is to be done only once the status is written; see `Plan`."""
    events: tuple[PostEvent, ...] = ()
    """Beside the one that every change of the verdict posts."""
    look_again: tuple[datetime, ...] = ()
    question: Question | None = None
    """What the policy would know before it answers; asked unless `Observed.last_event` has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A resource whose spec can be read, with all that is known about its run."""

    resource: Resource
    spec: QuantizationJobSpec
    observed: Observed
    now: datetime
    settings: Settings
    digest: str
    resolution: Resolution
    status: QuantizationJobStatus
    """What the status says of this very run; empty but for history where the run is new."""
    starts_anew: bool
    """Whether the run failed before and its spec was changed since: it is tried again."""

    @classmethod
    def of(
        cls,
        resource: Resource,
        spec: QuantizationJobSpec,
        observed: Observed,
        *,
        now: datetime,
        settings: Settings,
    ) -> Case:
        """Return the case; `spec` is the resource's."""
        digest = run_digest(spec)
        so_far = history.of_this_run(resource, observed, digest, now)
        return cls(
            resource=resource,
            spec=spec,
            observed=observed,
            now=now,
            settings=settings,
            digest=digest,
            resolution=resolve(spec),
            status=so_far.status,
            starts_anew=so_far.starts_anew,
        )

    @property
    def job_name(self) -> str:
        """The name of the run's Job."""
        return names.job_name(self.resource.name, self.digest)

    @property
    def job(self) -> JobView | None:
        """The run's Job, where there is one and it is the resource's own."""
        return self.observed.job(self.job_name)

    @property
    def other_jobs(self) -> tuple[JobView, ...]:
        """The resource's Jobs of other runs."""
        return tuple(job for job in self.observed.jobs if job.name != self.job_name and job.digest)

    @property
    def pods(self) -> tuple[PodView, ...]:
        """The pods of the run's Job, the oldest first."""
        return self.observed.pods_of(self.job) if self.job else ()

    @property
    def latest(self) -> PodView | None:
        """The youngest pod of the run's Job."""
        return self.pods[-1] if self.pods else None

    @property
    def is_to_get_more_memory(self) -> bool:
        """Whether a Job of the run was out of memory, and the next gets more; the status knows."""
        failure = self.status.failure
        return (
            failure is not None
            and failure.reason is FailureReason.OUT_OF_MEMORY
            and failure.retryable
            and can_raise_memory(self.resolution.spec, self.settings)
        )

    def order(self, *, memory_raised: bool = False) -> Order | Refusal:
        """Return what is to be run, or why it is not."""
        refused = permissions.refusal(self.spec, self.settings)
        if refused is not None:
            return refused
        entry = entry_for(self.resolution.spec)
        if isinstance(entry, Refusal):
            return entry
        order = Order(
            resource=self.resource,
            digest=self.digest,
            spec=self.resolution.spec,
            reason=self.resolution.reason,
            image=self.settings.images[entry.image],
            memory_raised=memory_raised,
        )
        size = len(order.request.model_dump_json(by_alias=True, exclude_none=True).encode())
        if size > LARGEST_REQUEST_BYTES:
            return Refusal(
                Reason.INVALID_SPEC,
                f"spec: as JSON it has {size} bytes, and a worker can be told at most "
                f"{LARGEST_REQUEST_BYTES}",
                "Shorten spec.evaluation.generations.prompts.",
            )
        return order

    def resolved(self, image: str = "") -> Resolved:
        """Return what the spec left open, as far as it is known before a worker reports."""
        entry = entry_for(self.resolution.spec)
        engine, reason = ("", "") if isinstance(entry, Refusal) else (entry.engine, entry.reason)
        return Resolved(
            method=self.resolution.spec.method,
            engine=engine,
            image=image,
            device=self.resolution.spec.effective_device(),
            reason=" ".join(filter(None, (self.resolution.reason, reason))),
        )

    def run(self) -> Run:
        """Return the run with its latest pod that started; each of these is an attempt."""
        before = self.status.run or Run(digest=self.digest, job_name=self.job_name)
        latest = self.latest
        if latest is None or latest.is_waiting:
            return before
        known_since = before.pod_creation_time
        if latest.name != before.pod_name and known_since and latest.created < known_since:
            # The known one is gone, and what is left was counted before it.
            return before
        started = before.attempts + (1 if latest.name != before.pod_name else 0)
        return before.model_copy(
            update={
                "attempts": max(sum(not pod.is_waiting for pod in self.pods), started),
                "pod_name": latest.name[:253],
                "node_name": latest.node[:253],
                "pod_creation_time": latest.created,
            }
        )

    def started_at(self) -> datetime | None:
        """Return when the run's first pod started, over all attempts since a queue last held it.

        As with a Job's own deadline, the clock stands while a queue holds the Job, and begins anew
        when it lets go: what had been computed is lost.
        """
        job, before = self.job, self.status.start_time
        started = [pod.started_at for pod in self.pods if pod.started_at is not None]
        if job is None or job.is_finished:
            return min([*([before] if before else ()), *started], default=None)
        if job.is_suspended:
            return None
        if before is not None and before <= job.created:
            # Of the Job that this one followed, as a run does that gets more memory.
            return before
        let_go = self.since_let_go(job.started_at)
        if let_go is None:
            return None
        earliest = let_go - _CLOCKS_DIFFER
        moments = [one for one in (before, *started) if one is not None and one >= earliest]
        runs = any(pod.started_at and not pod.is_finished for pod in self.pods)
        # A node's clock may be further behind: what runs was started since.
        return min(moments, default=earliest if runs else None)

    def since_let_go(self, moment: datetime | None) -> datetime | None:
        """Return `moment`, when the Job was made or started, or when it was let go after that.

        A Job that is resumed says for a while when it was started before.
        """
        held = known_condition(self.resource.status, ConditionType.SUSPENDED)
        if moment is None or held is None:
            return moment
        return max(moment, self.now if held.status == "True" else held.last_transition_time)

    def with_run(self, **changes: Any) -> QuantizationJobStatus:
        """Return the status with run, start and `changes`."""
        seen = {"run": self.run(), "start_time": self.started_at()}
        return self.status.model_copy(update={**seen, **changes})


def deleted(job: JobView | None) -> tuple[DeleteJob, ...]:
    """Return the action that makes a Job go, or none where it goes already or is not there."""
    return (DeleteJob(job.name, job.uid),) if job is not None and not job.is_deleting else ()
