"""An operator that may not list what it is to watch says so at its start, and where."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration
from tests.controller.served import No

from kubequant.controller.audit import Audit, RightsError
from kubequant.controller.cluster import ApiServer
from kubequant.controller.index import Index
from kubequant.controller.workqueue import WorkQueue

if TYPE_CHECKING:
    from collections.abc import Callable

FORBIDDEN = No(403, "Forbidden", "pods is forbidden: User cannot list resource")


async def _start(refuses: Callable[[str], bool], namespaces: tuple[str, ...]) -> list[str]:
    """Wait as an operator does at its start, for a server that refuses some paths; return all."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        if refuses(request.path):
            return FORBIDDEN.response()
        return web.json_response({"items": None, "metadata": {}})

    app = web.Application()
    app.add_routes([web.get("/{path:.*}", answer)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        async with ApiClient(Configuration(host=f"http://{host}:{port}")) as client:
            audit = Audit(Index(), WorkQueue(), ApiServer(client), namespaces, rights_seconds=0.0)
            await audit.until_served()
    finally:
        await runner.cleanup()
    return asked


@pytest.mark.parametrize(
    ("refuses", "namespaces", "sentence"),
    [
        pytest.param(
            "/team-b/pods",
            ("team-a", "team-b"),
            "names team-b, where the operator may not list pods: bind the ClusterRole",
            id="pods of one of two namespaces",
        ),
        pytest.param(
            "/team-b/",
            ("team-a", "team-b"),
            "names team-b, where the operator may not list quantizationjobs, jobs, pods",
            id="all of one of two namespaces",
        ),
        pytest.param(
            "/apis/batch/v1/jobs",
            (),
            "the operator may not list jobs in the whole cluster: apply deploy/install.yaml",
            id="jobs of the cluster",
        ),
    ],
)
def test_a_right_that_is_missing_ends_the_start_with_a_sentence(
    refuses: str, namespaces: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(RightsError, match=sentence):
        asyncio.run(_start(lambda path: refuses in path, namespaces))


def test_an_operator_that_may_list_everything_starts() -> None:
    asked = asyncio.run(_start(lambda _: False, ("team-a", "team-b")))
    assert len(asked) == 6
