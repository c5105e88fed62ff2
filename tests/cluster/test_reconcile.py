"""Passes over a real API server that know less than there is: late watches, and two at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest
from tests.cluster.resources import created, path
from tests.cluster.watched import Namespace
from tests.testbed.api import MERGE

from kubequant.controller.cluster import ApiServer, api_server
from kubequant.controller.index import Index, Key
from kubequant.controller.reconcile import Reconciler
from kubequant.controller.settings import Settings
from kubequant.controller.workqueue import WorkQueue

if TYPE_CHECKING:
    from tests.testbed.access import Access
    from tests.testbed.api import Api

pytestmark = pytest.mark.usefixtures("definition")

Run = Callable[[Callable[[ApiServer], Awaitable[None]]], None]


@pytest.fixture
def connected(control_plane: Access) -> Run:
    """Runs a test with a connection of the operator's own client."""

    async def within(test: Callable[[ApiServer], Awaitable[None]]) -> None:
        async with api_server(4, str(control_plane.kubeconfig)) as server:
            await test(server)

    return lambda test: asyncio.run(within(test))


@pytest.fixture
def team(api: Api, namespace: str) -> Namespace:
    """A namespace that no operator watches."""
    return Namespace(api, namespace)


def reconciler(server: ApiServer, team: Namespace, *, version: str = "") -> Reconciler:
    """Return an operator's core that knows the resource, perhaps at an old version, and no more."""
    body = team.resource()
    if version:
        body["metadata"]["resourceVersion"] = version
    made = Reconciler(Index(), server, WorkQueue(), Settings())
    made.index.resources.put((team.name, "tiny"), body)
    return made


async def worked_off(made: Reconciler, key: Key, seconds: float = 5.0) -> None:
    """Work until nothing is left to be done at once."""
    made.queue.add(key)
    worker = asyncio.create_task(made.work())
    try:
        async with asyncio.timeout(seconds):
            await asyncio.sleep(0.05)
            await made.queue.settled()
            # Another try comes by a timer, of which no event tells.
            while made.queue.failures(key):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    finally:
        worker.cancel()
        made.queue.close()


def test_a_pass_that_knows_an_old_version_reads_the_new_one_and_goes_on(
    team: Namespace, connected: Run
) -> None:
    old = created(team.api, team.name)["metadata"]["resourceVersion"]
    label = {"metadata": {"labels": {"colour": "blue"}}}
    team.api.request("PATCH", path(team.name, "tiny"), label, MERGE).object()

    async def test(server: ApiServer) -> None:
        made = reconciler(server, team, version=old)
        await worked_off(made, (team.name, "tiny"))

    connected(test)
    assert team.status()["phase"] == "Pending"
    assert team.resource()["metadata"]["labels"] == {"colour": "blue"}


def test_a_job_that_is_there_and_is_ours_was_created(team: Namespace, connected: Run) -> None:
    created(team.api, team.name)
    key = (team.name, "tiny")

    async def test(server: ApiServer) -> None:
        await reconciler(server, team).reconcile(key)
        late = reconciler(server, team)
        await late.reconcile(key)
        assert len(late.index.jobs.values(key)) == 1, "what the server answered is known at once"

    connected(test)
    assert len(team.jobs()) == 1


def test_two_operators_at_once_make_one_job(team: Namespace, connected: Run) -> None:
    created(team.api, team.name)
    key = (team.name, "tiny")

    async def test(server: ApiServer) -> None:
        both = [reconciler(server, team) for _ in range(2)]
        await asyncio.gather(*(worked_off(one, key) for one in both))

    connected(test)
    assert len(team.jobs()) == 1
    assert team.status()["phase"] == "Pending"


def test_a_resource_that_is_gone_is_forgotten_and_its_job_is_collected(
    team: Namespace, connected: Run
) -> None:
    created(team.api, team.name)
    key = (team.name, "tiny")

    async def test(server: ApiServer) -> None:
        made = reconciler(server, team)
        team.delete()
        assert await made.reconcile(key) is None
        assert made.index.resource(key) is None

    connected(test)
    team.wait(team.jobs, lambda jobs: not jobs)
