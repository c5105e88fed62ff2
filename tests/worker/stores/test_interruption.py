"""SIGTERM while a store is asked for what a run can do without: the run ends all the same."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

import pytest
from tests.worker.stores.places import PREFIX, SHORT, s3_store

from kubequant.api.data import OutputS3Options
from kubequant_worker.errors import InterruptedRunError
from kubequant_worker.runner import stopped_by_signals
from kubequant_worker.stores import Checkpoints, Shelf
from kubequant_worker.stores.s3 import S3Backend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.testbed.faulty import FaultyProxy
    from tests.testbed.storage import Bucket

# id -> (the request that SIGTERM comes with, what is done with the store meanwhile)
MEANWHILE: dict[str, tuple[Callable[[str, str], bool], Callable[[S3Backend], object]]] = {
    "earlier reports are listed": (
        lambda method, path: method == "GET" and "list-type=2" in path,
        lambda backend: list(Shelf(backend).reports("tiny")),
    ),
    "unfinished uploads are listed": (
        lambda method, path: method == "GET" and "uploads" in path,
        lambda backend: backend.sweep(),
    ),
    "checkpoints are cleared": (
        lambda method, path: method == "GET" and "list-type=2" in path,
        lambda backend: Checkpoints(lambda: backend).clear(),
    ),
}


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    stopped_by_signals()
    yield
    signal.signal(signal.SIGTERM, before[0])
    signal.signal(signal.SIGINT, before[1])


def send_sigterm() -> None:
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGTERM)


@pytest.mark.parametrize("case", MEANWHILE)
def test_sigterm_is_no_trouble_that_a_run_goes_on_after(
    bucket: Bucket, credentials: Path, faulty_s3: FaultyProxy, case: str
) -> None:
    comes_with, use = MEANWHILE[case]
    backend = S3Backend(
        f"s3://{bucket.name}/models",
        OutputS3Options(endpoint=faulty_s3.endpoint),
        credentials / "output",
        "spec.output.uri",
        patience=SHORT,
    )
    faulty_s3.fail(comes_with, before=send_sigterm)

    with pytest.raises(InterruptedRunError):
        use(backend)

    backend.close()
    assert [fault.times for fault in faulty_s3.faults] == [0]


def test_a_run_that_is_stopped_while_it_claims_leaves_no_claim(
    bucket: Bucket, credentials: Path, faulty_s3: FaultyProxy
) -> None:
    store = s3_store(bucket, credentials, endpoint=faulty_s3.endpoint)
    faulty_s3.fail(MEANWHILE["unfinished uploads are listed"][0], before=send_sigterm)

    with pytest.raises(InterruptedRunError), store.claim():
        pass

    store.close()
    assert bucket.keys(f"models/{PREFIX}/") == []
