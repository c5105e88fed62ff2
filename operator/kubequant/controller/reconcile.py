"""The one road: take a key, observe, decide, carry the plan out.

A pass reads the index alone, so that a settled resource costs no call; only where one stands still
it may ask for the words of an event. It carries a plan out in order: actions, then the status if it
differs, then events, then what must not come before them, and puts what the server answers into the
index at once, so that the next pass knows of it though the watch may lag. This module holds the
operator's only broad `except`: a surprise in one resource is logged and retried, and stops nothing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from kubequant.controller.cluster import (
    RESOURCES,
    AlreadyExists,
    Conflict,
    NotFound,
    Refused,
    Unavailable,
)
from kubequant.controller.decide import decide
from kubequant.controller.events import newest_words
from kubequant.controller.index import Known, owner_key, version_of
from kubequant.controller.manifest import as_body
from kubequant.controller.observe import JobView, Rejection, observe, read_job
from kubequant.controller.plan import CreateJob, DeleteJob, DeleteResource, Plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from kubequant.controller.cluster import ApiServer, Body
    from kubequant.controller.index import Index, Key
    from kubequant.controller.observe import Resource
    from kubequant.controller.plan import Action, PostEvent, Question
    from kubequant.controller.settings import Settings
    from kubequant.controller.workqueue import WorkQueue

_LOG: Final = logging.getLogger(__name__)

LONGEST_WAIT_SECONDS: Final = 3600.0
"""A deadline further away is looked at in between: the event loop's clock stands still while a
machine sleeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hindrance:
    """Why a Job that was asked for is not there: somebody else's is, or the server refused it."""

    stranger: JobView | None = None
    rejection: Rejection | None = None


@dataclass(frozen=True, slots=True)
class Reconciler:
    """Carries out passes for keys of one queue."""

    index: Index
    server: ApiServer
    queue: WorkQueue[Key]
    settings: Settings
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    async def work(self) -> None:
        """Take keys and carry out passes for ever."""
        while True:
            key = await self.queue.take()
            try:
                await self._attend(key)
            finally:
                self.queue.done(key)

    async def _attend(self, key: Key) -> None:
        try:
            wait = await self.reconcile(key)
        except Conflict as conflict:
            # Somebody was quicker; the next pass knows of it.
            _LOG.debug("%s/%s changed meanwhile: %s", *key, conflict.message)
            self.queue.retry(key)
        except (Unavailable, Refused, NotFound) as trouble:
            seconds = self.queue.retry(key)
            _LOG.warning(
                "%s/%s: %s (%s); again in %.3g seconds",
                *key,
                trouble.message,
                trouble.code,
                seconds,
            )
        except Exception:  # noqa: BLE001 - the one road survives a surprise in one resource
            seconds = self.queue.retry(key)
            _LOG.exception("%s/%s: a pass failed; again in %.3g seconds", *key, seconds)
        else:
            self.queue.forget(key)
            if wait is None:
                self.queue.cancel(key)
            else:
                self.queue.add_after(key, min(wait, LONGEST_WAIT_SECONDS))

    async def reconcile(self, key: Key) -> int | None:
        """Carry out one pass; return in how many seconds to look again, if at all.

        Raises:
            ApiError: the server did not do what the plan asked for.
        """
        known = self.index.resource(key)
        if known is None:
            return None
        resource = known.resource
        plan = self._decided(key, resource)
        if plan.question is not None:
            said = await self._asked(key, plan.question)
            plan = self._decided(key, resource, last_event=said)
        hindrance = await self._act(key, resource, plan.actions)
        if hindrance is not None:
            plan = self._decided(key, resource, hindrance=hindrance)
            if await self._act(key, resource, plan.actions) is not None:
                raise Conflict(409, "Hindered", "the Job can still not be created")
        if not await self._write_status(key, known, plan):
            return None
        await self._tell(resource, plan.events)
        await self._act(key, resource, plan.afterwards)
        if any(isinstance(action, DeleteResource) for action in plan.afterwards):
            return None
        return plan.requeue_after_seconds

    def _decided(
        self,
        key: Key,
        resource: Resource,
        *,
        hindrance: Hindrance | None = None,
        last_event: str | None = None,
    ) -> Plan:
        jobs = self.index.jobs.values(key)
        rejection = None
        if hindrance is not None:
            rejection = hindrance.rejection
            jobs += [hindrance.stranger] if hindrance.stranger else []
        pods = self.index.pods.values(key)
        observed = observe(resource, jobs, pods, rejection=rejection, last_event=last_event)
        return decide(resource, observed, now=self.clock(), settings=self.settings)

    async def _asked(self, key: Key, question: Question) -> str:
        """Return what the newest event says that answers a question, empty where none does."""
        try:
            return newest_words(await self.server.events_about(key[0], question), question)
        except Refused as refused:
            # As where a new operator runs with the rights of an older one: it does without.
            _LOG.warning("%s/%s: events cannot be read: %s", *key, refused.message)
            return ""

    async def _act(
        self, key: Key, resource: Resource, actions: tuple[Action, ...]
    ) -> Hindrance | None:
        for action in actions:
            match action:
                case CreateJob():
                    hindrance = await self._create(key, resource, as_body(action.manifest))
                    if hindrance is not None:
                        return hindrance
                case DeleteJob():
                    await self._delete_job(key, action)
                case DeleteResource():
                    await self._delete_resource(resource, action)
        return None

    async def _create(self, key: Key, resource: Resource, body: Body) -> Hindrance | None:
        """Create a Job; one that is there already and is ours was created."""
        name = body["metadata"]["name"]
        try:
            made = await self.server.create_job(resource.namespace, body)
            _LOG.info("%s/%s: created the Job %s", *key, name)
        except AlreadyExists:
            made = await self.server.read_job(resource.namespace, name)
            there = read_job(made)
            if there.owner_uid != resource.uid:
                return Hindrance(stranger=there)
        except (Refused, NotFound, Unavailable) as refused:
            if isinstance(refused, Unavailable) and not _is_word_of_this_job(refused):
                raise
            _LOG.warning("%s/%s: the Job %s was refused: %s", *key, name, refused.message)
            return Hindrance(rejection=Rejection(refused.code, refused.message))
        if owner_key(made) == key:
            self.index.jobs.put(key, made)
        return None

    async def _delete_job(self, key: Key, action: DeleteJob) -> None:
        try:
            left = await self.server.delete_job(key[0], action.name, action.uid)
        except NotFound:
            self.index.jobs.discard(key, action.uid)
        except Conflict:
            # Another Job has the name by now; the one that was meant is gone.
            self.index.jobs.discard(key, action.uid)
        else:
            _LOG.info("%s/%s: deleted the Job %s", *key, action.name)
            if left.get("kind") == "Job":
                self.index.jobs.put(key, left)

    async def _delete_resource(self, resource: Resource, action: DeleteResource) -> None:
        try:
            await self.server.delete_resource(resource.namespace, resource.name, action.uid)
        except (NotFound, Conflict):
            return
        _LOG.info("%s/%s: deleted, its time is over", resource.namespace, resource.name)
        await self._tell(resource, (action.event,))

    async def _write_status(self, key: Key, known: Known, plan: Plan) -> bool:
        """Write the status if it differs; say whether the resource is still there."""
        status, resource = plan.status, known.resource
        if status is None or status == resource.status:
            return True
        try:
            written = await self.server.write_status(resource, known.version, status)
        except NotFound:
            self.index.resources.discard(key, resource.uid)
            return False
        except Conflict:
            # The watch lags behind: another try from the index would only ask in vain again.
            self.index.resources.put(key, await self.server.read(RESOURCES, *key))
            raise
        before = resource.status.phase if resource.status else None
        if status.phase != before:
            _LOG.info("%s/%s: %s", *key, status.phase)
        if version_of(written) > known.version:
            self.index.resources.put(key, written)
        return True

    async def _tell(self, resource: Resource, events: tuple[PostEvent, ...]) -> None:
        for event in events:
            try:
                await self.server.post_event(resource, event, self.clock())
            except (Unavailable, Refused, NotFound, Conflict, AlreadyExists) as trouble:
                # An event is a courtesy; the status says the same.
                _LOG.warning(
                    "%s/%s: the event %s was not taken: %s",
                    resource.namespace,
                    resource.name,
                    event.reason,
                    trouble.message,
                )


def _is_word_of_this_job(trouble: Unavailable) -> bool:
    """Say whether the server works and does not take the Job, since a webhook of it is down.

    The user is to see that. A server in trouble of its own is asked again at once.
    """
    is_server = trouble.is_said and trouble.code >= HTTPStatus.INTERNAL_SERVER_ERROR
    return is_server and "failed calling webhook" in trouble.message
