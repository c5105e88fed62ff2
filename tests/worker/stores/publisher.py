"""A publisher in a process of its own, which stops itself at the point that a test names.

Started as `python -m tests.worker.stores.publisher <plan as JSON>`; prints how it ended as one JSON
line. Stopping is SIGSTOP, sent by the process to itself between two instructions of ours: nothing
of it runs until SIGCONT.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.worker.stores.places import DIGEST, NAME, PREFIX, QUICK, SHORT

from kubequant.api.data import OutputS3Options
from kubequant_worker.errors import WorkerError
from kubequant_worker.manifest import MANIFEST_NAME, Manifest
from kubequant_worker.stores import AlreadyPublishedError, Place, Store, Timing
from kubequant_worker.stores.file import open_backend
from kubequant_worker.stores.s3 import S3Backend

if TYPE_CHECKING:
    from collections.abc import Callable

    from kubequant_worker.stores.backend import Backend, StagedFile

# "a" is larger than a part, so that its upload can be stopped in the middle; "b" is small.
LARGE, SMALL = "a.gguf", "b.json"


def stop_here() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def backend_of(plan: dict[str, Any]) -> Backend:
    if plan["store"] == "folder":
        return open_backend(Place(f"file://{plan['folder']}/{PREFIX}"))
    return S3Backend(
        f"s3://{plan['bucket']}/models/{PREFIX}",
        OutputS3Options(endpoint=plan["endpoint"]),
        Path(plan["credentials"]) / "output",
        "spec.output.uri",
        patience=replace(SHORT, read_seconds=plan.get("read_seconds", 2)),
    )


def stop_at(backend: Any, point: str) -> None:
    """Make `backend` stop the process at `point`, after every check that comes before it."""
    place: Callable[..., str] = backend.place
    fill: Callable[..., StagedFile] = backend.fill
    discard: Callable[[str, str], None] = backend.discard
    placed: list[str] = []

    def stopping_place(staged: StagedFile, expected: str | None, *, conditional: bool) -> str:
        is_manifest = staged.name == MANIFEST_NAME
        if (
            (point == "before placing the first file" and not placed and not is_manifest)
            or (point == "before placing the small file" and staged.name == SMALL)
            or (point == "before placing the manifest" and is_manifest)
        ):
            stop_here()
        placed.append(staged.name)
        return place(staged, expected, conditional=conditional)

    def stopping_fill(name: str, *arguments: Any) -> StagedFile:
        if point == "before uploading the manifest" and name == MANIFEST_NAME:
            stop_here()
        staged = fill(name, *arguments)
        if point == "in the middle of uploading" and name == LARGE:
            stop_here()
        return staged

    def stopping_discard(name: str, token: str) -> None:
        if point == "before discarding what it inherited" and name != "probe":
            stop_here()
        discard(name, token)

    backend.place, backend.fill = stopping_place, stopping_fill
    if point == "before discarding what it inherited":
        backend.probe()
        backend.discard = stopping_discard


def main() -> None:
    plan = json.loads(sys.argv[1])
    backend = backend_of(plan)
    store = Store(backend, Timing(**plan.get("timing", {})) if "timing" in plan else QUICK)
    store.probe()
    stop_at(backend, plan.get("stop", ""))
    try:
        with store.claim() as publication:
            large = Path(plan["work"]) / LARGE
            large.write_bytes(plan["text"].encode() * 700_000)
            publication.add(large, LARGE)
            publication.add_bytes(json.dumps(plan["text"]).encode(), SMALL)
            manifest = Manifest.of(NAME, DIGEST, publication.uploaded())
            publication.commit(manifest.to_bytes())
        outcome = "Published"
    except AlreadyPublishedError:
        outcome = "AlreadyPublished"
    except WorkerError as error:
        outcome = str(error.reason)
    print(json.dumps({"outcome": outcome}), flush=True)


if __name__ == "__main__":
    main()
