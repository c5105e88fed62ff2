"""Stores for tests: with short patience, and claims that go stale in a second."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kubequant.api.data import OutputS3Options
from kubequant_worker.stores import Place, Store, Timing, open_artifact
from kubequant_worker.stores.s3 import S3Backend
from kubequant_worker.stores.s3_access import Patience

if TYPE_CHECKING:
    from pathlib import Path

    from tests.testbed.storage import Bucket

    from kubequant_worker.stores.s3_upload import Pace

NAME, DIGEST = "tiny", "0123abcd"
PREFIX = f"{NAME}/{DIGEST}"
QUICK = Timing(stale_seconds=1.5, renew_seconds=0.3, poll_seconds=0.1)
SHORT = Patience(connect_seconds=2, read_seconds=2, tries=3)


def s3_store(
    bucket: Bucket,
    credentials: Path,
    *,
    endpoint: str = "",
    timing: Timing = QUICK,
    patience: Patience = SHORT,
    pace: Pace | None = None,
) -> Store:
    """Return the store of the test's one artifact in `bucket`."""
    options = OutputS3Options(endpoint=endpoint or bucket.server.endpoint)
    backend = S3Backend(
        f"s3://{bucket.name}/models/{PREFIX}",
        options,
        credentials / "output",
        "spec.output.uri",
        patience=patience,
        pace=pace,
    )
    return Store(backend, timing)


def folder_store(folder: Path, *, timing: Timing = QUICK) -> Store:
    """Return the store of the test's one artifact in a folder."""
    return open_artifact(Place(f"file://{folder}/{PREFIX}"), timing=timing)
