"""The operator's program: reads the settings, connects, and runs until it is told to stop.

Everything is wired here and nowhere else. kopf watches; `handlers` fill the index and the queue;
`reconcile` works them off; `audit` compares; `probes` answer the kubelet.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

import kopf
from kubernetes.aio.config import ConfigException

from kubequant import __version__
from kubequant.controller.audit import Audit, RightsError
from kubequant.controller.cluster import CONTROLLER, api_server
from kubequant.controller.environment import InvalidSettingsError, read_settings, variable
from kubequant.controller.handlers import Watches, connection, kopf_settings
from kubequant.controller.index import Index, Key
from kubequant.controller.probes import probes
from kubequant.controller.reconcile import Reconciler
from kubequant.controller.settings import Settings
from kubequant.controller.workqueue import WorkQueue

if TYPE_CHECKING:
    from collections.abc import Sequence

_LOG: Final = logging.getLogger("kubequant")

_FORMATS: Final = {"JSON": kopf.LogFormat.JSON, "Text": kopf.LogFormat.FULL}
_WATCHES: Final = 3
_LAST_PASSES_SECONDS: Final = 5.0
_UNUSABLE: Final = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the operator and return its exit code."""
    _parser().parse_args(arguments)
    try:
        settings = read_settings()
    except InvalidSettingsError as error:
        print(error, file=sys.stderr)  # noqa: T201 - there is no log yet
        return _UNUSABLE
    kopf.configure(log_format=_FORMATS[settings.log_format])
    logging.getLogger("kopf").setLevel(logging.WARNING)
    try:
        asyncio.run(operate(settings))
    except ConfigException as error:
        _LOG.error(
            "there is no cluster to work on: neither a pod's service account nor KUBECONFIG (%s)",
            error,
        )
        return _UNUSABLE
    except RightsError as error:
        _LOG.error("%s", error)
        return _UNUSABLE
    return 0


def _parser() -> argparse.ArgumentParser:
    rows = [
        f"  {variable(name)}\n      {' '.join((field.description or '').split())}"
        for name, field in Settings.model_fields.items()
    ]
    parser = argparse.ArgumentParser(
        prog="python -m kubequant.controller",
        description="Watch QuantizationJobs and run each as a Kubernetes Job.",
        epilog="Settings are environment variables:\n" + "\n".join(rows),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kubequant {__version__}")
    return parser


async def operate(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT, or until a part of the operator fails.

    Raises:
        ConfigException: there is no cluster to work on.
        RightsError: the operator may not list what it is to watch.
    """
    stop = asyncio.Event()
    for end in (signal.SIGTERM, signal.SIGINT):
        # A first process of a container that handles no SIGTERM does not even die of it. Once kopf
        # runs, its own handlers take their place.
        asyncio.get_running_loop().add_signal_handler(end, stop.set)
    queue: WorkQueue[Key] = WorkQueue()
    async with api_server(settings.concurrency + _WATCHES) as server:
        index = Index()
        audit = Audit(index, queue, server, settings.namespaces)
        reconciler = Reconciler(index, server, queue, settings)
        async with probes(audit, settings.probe_port):
            _LOG.info("kubequant %s starts", __version__)
            stopped = asyncio.create_task(stop.wait(), name="stop")
            served = asyncio.create_task(audit.until_served(), name="until served")
            await asyncio.wait({stopped, served}, return_when=asyncio.FIRST_COMPLETED)
            if served.done():
                served.result()
            if not stop.is_set():
                # Made before kopf starts: what is made later it takes for its own and cancels.
                parts = {asyncio.create_task(audit.run(), name="audit")}
                for number in range(settings.concurrency):
                    work = _work(reconciler, audit)
                    parts.add(asyncio.create_task(work, name=f"pass {number}"))
                watching = asyncio.create_task(_watch(reconciler, settings), name="kopf")
                await _until_any_ends(parts, watching)
                await _finish(queue, parts)
            for task in (stopped, served):
                task.cancel()
    queue.close()
    _LOG.info("stopped")


async def _work(reconciler: Reconciler, audit: Audit) -> None:
    await audit.complete.wait()
    await reconciler.work()


async def _watch(reconciler: Reconciler, settings: Settings) -> None:
    registry = Watches(reconciler.index, reconciler.queue).registry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return await connection(reconciler.server.client.configuration)

    await kopf.operator(
        registry=registry,
        settings=kopf_settings(),
        standalone=True,
        # kopf would ask for the user's name, which an arbitrary UID of a container does not have.
        identity=CONTROLLER,  # type: ignore[arg-type]
        clusterwide=not settings.namespaces,
        namespaces=settings.namespaces,
    )


async def _until_any_ends(parts: set[asyncio.Task[None]], watching: asyncio.Task[None]) -> None:
    """Wait for kopf to end, which a signal makes it do, or for another part to fail."""
    ended, _ = await asyncio.wait({*parts, watching}, return_when=asyncio.FIRST_COMPLETED)
    if watching not in ended:
        watching.cancel()
        await asyncio.wait({watching})
    for task in ended:
        task.result()


async def _finish(queue: WorkQueue[Key], parts: set[asyncio.Task[None]]) -> None:
    """Let passes that are under way end, then stop the rest."""
    queue.close()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(queue.settled(), _LAST_PASSES_SECONDS)
    for task in parts:
        task.cancel()
    await asyncio.gather(*parts, return_exceptions=True)


if __name__ == "__main__":
    sys.exit(main())
