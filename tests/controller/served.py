"""A world behind HTTP: the API server that a `Reconciler` talks to, with what it may answer.

It holds what a pass reads and writes, keeps versions as an API server does, and is told by a test
when to refuse. The operator's own client talks to it over loopback, so that what an answer means to
it is tested too. What a real server does besides is held by tests/cluster.
"""

from __future__ import annotations

import asyncio
import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from kubequant.controller.cluster import ApiServer
from kubequant.controller.index import Index, Key
from kubequant.controller.reconcile import Reconciler
from kubequant.controller.workqueue import WorkQueue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from tests.controller.world import World

Body = dict[str, Any]
KEY: Key = ("models", "tiny")
_RESOURCE = "/apis/kubequant.dev/v1alpha1/namespaces/models/quantizationjobs/tiny"
_JOBS = "/apis/batch/v1/namespaces/models/jobs"
_EVENTS = "/apis/events.k8s.io/v1/namespaces/models/events"
_LONGEST_NOTE = 1024


@dataclass(frozen=True)
class No:
    """An answer that refuses: a Status of the API server's, or the page of something before it."""

    code: int
    reason: str = ""
    message: str = ""

    def response(self) -> web.Response:
        """Return it as HTTP has it."""
        if not self.reason:
            return web.Response(status=self.code, text=self.message, content_type="text/html")
        status = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }
        return web.json_response(status, status=self.code)


GONE = No(404, "NotFound", "there is no such object")


@dataclass
class Served:
    """A world as an API server, and an operator's core that knows all of it."""

    world: World
    asked: list[str] = field(default_factory=list)
    """Every write in its order, as "PUT status", and each question for events."""
    notes: dict[str, str] = field(default_factory=dict)
    """The notes of the events that were taken, by their reason."""
    answers: dict[str, No] = field(default_factory=dict)
    """What a write is answered with instead of being done."""
    _versions: dict[str, tuple[int, Body]] = field(default_factory=dict)
    _core: Reconciler | None = None

    @property
    def core(self) -> Reconciler:
        assert self._core is not None
        return self._core

    async def serve(self, test: Callable[[Served], Awaitable[None]]) -> None:
        """Serve the world while a test runs."""
        app = web.Application()
        app.add_routes(
            [
                web.get(_RESOURCE, self._read),
                web.put(f"{_RESOURCE}/status", self._write_status),
                web.delete(_RESOURCE, self._delete_resource),
                web.post(_JOBS, self._create_job),
                web.delete(f"{_JOBS}/{{name}}", self._delete_job),
                web.post(_EVENTS, self._take_event),
                web.get(_EVENTS, self._list_events),
            ]
        )
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        try:
            async with ApiClient(Configuration(host=f"http://{host}:{port}")) as client:
                self._core = Reconciler(
                    Index(),
                    ApiServer(client),
                    WorkQueue(lambda: 0.0),
                    self.world.settings,
                    clock=self._now,
                )
                await test(self)
        finally:
            await runner.cleanup()

    async def reconcile(self) -> int | None:
        """Carry out one pass of an operator that knows all there is."""
        index, world = self.core.index, self.world
        told = [(index.resources, [world.resource] if world.resource else [])]
        for store, bodies in (
            *told,
            (index.jobs, list(world.jobs.values())),
            (index.pods, list(world.pods.values())),
        ):
            there = {body["metadata"]["uid"] for body in bodies}
            for uid in set(store.held(KEY)) - there:
                store.discard(KEY, uid)
            for body in bodies:
                store.put(KEY, self._versioned(body))
        return await self.core.reconcile(KEY)

    def _now(self) -> datetime:
        return self.world.now

    def _versioned(self, body: Body) -> Body:
        """Return a body with its version, a new one where it has changed since it was seen last."""
        uid = body["metadata"]["uid"]
        version, before = self._versions.get(uid, (0, {}))
        if before != body:
            version = 1 + max((one for one, _ in self._versions.values()), default=0)
            self._versions[uid] = (version, copy.deepcopy(body))
        metadata = {**body["metadata"], "resourceVersion": str(version)}
        return copy.deepcopy({**body, "metadata": metadata})

    def _asked(self, what: str) -> web.Response | None:
        self.asked.append(what)
        no = self.answers.get(what)
        return no and no.response()

    async def _read(self, _: web.Request) -> web.Response:
        body = self.world.resource
        return web.json_response(self._versioned(body)) if body else GONE.response()

    async def _write_status(self, request: web.Request) -> web.Response:
        answer = self._asked("PUT status")
        if answer is not None:
            return answer
        body, sent = self.world.resource, await request.json()
        if body is None:
            return GONE.response()
        if (
            self._versioned(body)["metadata"]["resourceVersion"]
            != (sent["metadata"]["resourceVersion"])
        ):
            return No(409, "Conflict", "the object has been modified").response()
        body["status"] = sent["status"]
        return web.json_response(self._versioned(body))

    async def _delete_resource(self, _: web.Request) -> web.Response:
        answer = self._asked("DELETE resource")
        if answer is None:
            self.world.delete_resource()
        return answer or web.json_response({"kind": "Status", "status": "Success"})

    async def _create_job(self, request: web.Request) -> web.Response:
        answer = self._asked("POST job")
        if answer is not None:
            return answer
        sent = await request.json()
        self.world.create(sent)
        return web.json_response(self._versioned(self.world.jobs[sent["metadata"]["name"]]))

    async def _delete_job(self, request: web.Request) -> web.Response:
        answer = self._asked("DELETE job")
        if answer is not None:
            return answer
        name = request.match_info["name"]
        self.world.delete_job(name)
        return web.json_response({**self._versioned(self.world.jobs[name]), "kind": "Job"})

    async def _list_events(self, request: web.Request) -> web.Response:
        answer = self._asked("GET events")
        if answer is not None:
            return answer
        wanted = dict(part.split("=") for part in request.query["fieldSelector"].split(","))
        found = self.world.events_about(wanted["regarding.uid"])
        named = [event for event in found if wanted.get("reason") in {None, event["reason"]}]
        return web.json_response({"kind": "EventList", "items": named or None})

    async def _take_event(self, request: web.Request) -> web.Response:
        sent = await request.json()
        answer = self._asked(f"POST event {sent['reason']}")
        if answer is None and len(sent["note"].encode()) > _LONGEST_NOTE:
            answer = No(422, "Invalid", f"note: can have at most {_LONGEST_NOTE} bytes").response()
        if answer is None:
            self.notes[sent["reason"]] = sent["note"]
        return answer or web.json_response(sent)


def served(world: World, test: Callable[[Served], Awaitable[None]]) -> None:
    """Run a test with a world behind HTTP."""
    asyncio.run(Served(world).serve(test))
