"""What a watch never told, found by lists of a real API server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest
from tests.cluster.resources import created, path

from kubequant.controller.audit import Audit
from kubequant.controller.cluster import api_server
from kubequant.controller.index import Index, Key
from kubequant.controller.workqueue import WorkQueue

if TYPE_CHECKING:
    from tests.testbed.access import Access
    from tests.testbed.api import Api

pytestmark = pytest.mark.usefixtures("definition")


Run = Callable[[Callable[[Audit], Awaitable[None]]], None]


@pytest.fixture
def audited(control_plane: Access, namespace: str) -> Run:
    """Runs a test with an audit of a namespace whose index no watch fills."""

    async def within(test: Callable[[Audit], Awaitable[None]]) -> None:
        async with api_server(2, str(control_plane.kubeconfig)) as server:
            queue: WorkQueue[Key] = WorkQueue()
            await test(Audit(Index(), queue, server, (namespace,), patience_seconds=0.2))
            queue.close()

    return lambda test: asyncio.run(within(test))


def put(audit: Audit, body: dict[str, Any]) -> None:
    audit.index.resources.put((body["metadata"]["namespace"], body["metadata"]["name"]), body)


def test_what_is_gone_unnoticed_is_forgotten_and_looked_at(
    api: Api, namespace: str, audited: Run
) -> None:
    gone, there = created(api, namespace, name="gone"), created(api, namespace, name="there")
    api.request("DELETE", path(namespace, "gone")).object()

    async def test(audit: Audit) -> None:
        put(audit, gone)
        put(audit, there)
        await audit.compare()
        assert audit.index.resource((namespace, "gone")) is None
        assert audit.index.resource((namespace, "there")) is not None
        assert await asyncio.wait_for(audit.queue.take(), 1) == (namespace, "gone")
        assert len(audit.queue) == 0
        assert not audit.is_deaf

    audited(test)


def test_a_change_that_no_watch_told_is_fetched_and_fails_the_liveness(
    api: Api, namespace: str, audited: Run
) -> None:
    old = created(api, namespace)
    label = {"metadata": {"labels": {"colour": "blue"}}}
    api.request("PATCH", path(namespace, "tiny"), label, "application/merge-patch+json").object()

    async def test(audit: Audit) -> None:
        put(audit, old)
        await audit.compare()
        known = audit.index.resource((namespace, "tiny"))
        assert known is not None
        assert known.resource.labels == {"colour": "blue"}
        assert await asyncio.wait_for(audit.queue.take(), 1) == (namespace, "tiny")
        assert audit.is_deaf
        await audit.compare()
        assert not audit.is_deaf, "the next comparison finds everything as it is"

    audited(test)


def test_a_watch_that_is_only_slow_is_not_deaf(api: Api, namespace: str, audited: Run) -> None:
    body = created(api, namespace)

    async def test(audit: Audit) -> None:
        audit.patience_seconds = 5.0
        comparing = asyncio.create_task(audit.compare())
        await asyncio.sleep(0.5)
        put(audit, body)
        await asyncio.wait_for(comparing, 3)
        assert not audit.is_deaf

    audited(test)


def test_the_index_is_complete_when_all_that_was_listed_has_come(
    api: Api, namespace: str, audited: Run
) -> None:
    body = created(api, namespace)

    async def test(audit: Audit) -> None:
        waiting = asyncio.create_task(audit.until_complete())
        await asyncio.sleep(0.5)
        assert not audit.complete.is_set(), "its only resource has not come"
        put(audit, body)
        await asyncio.wait_for(waiting, 3)
        assert audit.complete.is_set()

    audited(test)
