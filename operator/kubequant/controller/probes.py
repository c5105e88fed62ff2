"""What the kubelet asks: /healthz whether to start the operator again, /readyz whether it works."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from kubequant.controller.audit import Audit

_TROUBLE: Final = 503


@asynccontextmanager
async def probes(audit: Audit, port: int) -> AsyncIterator[None]:
    """Answer probes on `port` of every address."""

    async def healthz(_: web.Request) -> web.Response:
        if audit.is_deaf:
            return web.Response(status=_TROUBLE, text="a watch tells nothing\n")
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        if not audit.complete.is_set():
            return web.Response(status=_TROUBLE, text="what there is has not all been seen yet\n")
        return web.Response(text="ok\n")

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz)])
    runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    try:
        yield
    finally:
        await runner.cleanup()
