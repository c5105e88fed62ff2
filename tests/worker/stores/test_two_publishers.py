"""Two publishers of one digest, one of them asleep for longer than its claim lives.

Whatever happens, a reader sees no manifest, or one whose every file is the bytes that it names.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tests.worker.stores.places import DIGEST, NAME, folder_store, s3_store
from tests.worker.stores.publisher import LARGE, SMALL

from kubequant_worker.manifest import Manifest
from kubequant_worker.stores import AlreadyPublishedError, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.testbed.faulty import FaultyProxy
    from tests.testbed.storage import Bucket

OLD, NEW = "old bytes", "new bytes"


@dataclass
class Publishers:
    """Publishers in processes of their own, at one place."""

    plan: dict[str, Any]
    open: Callable[[], Store]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, text: str, work: Path, **plan: Any) -> subprocess.Popen[str]:
        work.mkdir(exist_ok=True)
        argument = json.dumps({**self.plan, "text": text, "work": str(work), **plan})
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.worker.stores.publisher", argument],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def asleep(self, text: str, work: Path, stop: str, **plan: Any) -> subprocess.Popen[str]:
        """Start a publisher and return once it has stopped itself at `stop`."""
        process = self.start(text, work, stop=stop, **plan)
        deadline = time.monotonic() + 30
        while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
            assert process.poll() is None, f"it ended before it came to: {stop}"
            assert time.monotonic() < deadline, f"it never came to: {stop}"
            time.sleep(0.05)
        return process

    def wake(self, process: subprocess.Popen[str]) -> str:
        """Let a publisher go on, and return how it ended."""
        process.send_signal(signal.SIGCONT)
        output, _ = process.communicate(timeout=60)
        return str(json.loads(output.splitlines()[-1])["outcome"])

    def publish(self, text: str, work: Path) -> None:
        """Publish from this process."""
        work.mkdir(exist_ok=True)
        large = work / LARGE
        large.write_bytes(text.encode() * 700_000)
        store = self.open()
        with store.claim() as publication:
            publication.add(large, LARGE)
            publication.add_bytes(json.dumps(text).encode(), SMALL)
            manifest = Manifest.of(NAME, DIGEST, publication.uploaded())
            publication.commit(manifest.to_bytes())
        store.close()

    def published_text(self) -> str:
        """Check every byte that the manifest names, and return the text that was published."""
        store = self.open()
        store.verify()
        text = str(json.loads(store.read(SMALL) or b'""'))
        store.close()
        return text


@pytest.fixture(params=["s3", "folder"])
def publishers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Publishers]:
    if request.param == "folder":
        out = tmp_path / "out"
        yield (
            made := Publishers({"store": "folder", "folder": str(out)}, lambda: folder_store(out))
        )
    else:
        bucket: Bucket = request.getfixturevalue("bucket")
        credentials: Path = request.getfixturevalue("credentials")
        plan = {
            "store": "s3",
            "bucket": bucket.name,
            "endpoint": bucket.server.endpoint,
            "credentials": str(credentials),
        }
        yield (made := Publishers(plan, lambda: s3_store(bucket, credentials)))
    for process in made.started:
        if process.poll() is None:
            process.kill()
        process.communicate()


POINTS = [
    "in the middle of uploading",
    "before placing the first file",
    "before placing the small file",
    "before uploading the manifest",
    "before placing the manifest",
]


@pytest.mark.parametrize("point", POINTS)
def test_a_publisher_woken_after_another_published_other_bytes_changes_nothing(
    publishers: Publishers, tmp_path: Path, point: str
) -> None:
    sleeper = publishers.asleep(OLD, tmp_path / "sleeper", point)
    publishers.publish(NEW, tmp_path / "other")
    assert publishers.published_text() == NEW
    assert publishers.wake(sleeper) == "AnotherPublisher"
    assert publishers.published_text() == NEW


@pytest.mark.parametrize("point", [POINTS[2], POINTS[4]])
def test_a_publisher_woken_after_another_published_the_same_bytes_says_so(
    publishers: Publishers, tmp_path: Path, point: str
) -> None:
    sleeper = publishers.asleep(OLD, tmp_path / "sleeper", point)
    publishers.publish(OLD, tmp_path / "other")
    assert publishers.wake(sleeper) == "AlreadyPublished"
    assert publishers.published_text() == OLD


def test_a_publisher_woken_while_another_one_is_at_work_gives_up(
    publishers: Publishers, tmp_path: Path
) -> None:
    sleeper = publishers.asleep(OLD, tmp_path / "sleeper", POINTS[4])
    second = publishers.asleep(NEW, tmp_path / "second", "before placing the manifest")
    assert publishers.wake(sleeper) == "AnotherPublisher"
    assert publishers.open().published() is None
    assert publishers.wake(second) == "Published"
    assert publishers.published_text() == NEW


def test_what_a_dead_publisher_inherited_is_discarded_by_the_next(
    publishers: Publishers, tmp_path: Path
) -> None:
    sleeper = publishers.asleep(OLD, tmp_path / "sleeper", "before placing the manifest")
    heir = publishers.asleep(NEW, tmp_path / "heir", "before discarding what it inherited")
    heir.kill()
    heir.wait()
    publishers.publish(NEW, tmp_path / "third")
    assert publishers.wake(sleeper) == "AnotherPublisher"
    assert publishers.published_text() == NEW


@pytest.mark.parametrize("point", [POINTS[0], POINTS[4]])
def test_a_killed_publisher_is_followed_at_once_by_its_restart_with_other_bytes(
    publishers: Publishers, tmp_path: Path, point: str
) -> None:
    # With the usual two minutes: that the claim's process is gone is known on its own machine.
    dead = publishers.asleep(OLD, tmp_path / "dead", point, timing={"stale_seconds": 120})
    dead.kill()
    dead.wait()
    restarted = publishers.start(NEW, tmp_path / "new", timing={"stale_seconds": 120})
    output, _ = restarted.communicate(timeout=60)
    assert json.loads(output)["outcome"] == "Published"
    assert publishers.published_text() == NEW


def test_a_request_that_the_network_kept_for_longer_than_the_claim_lived_changes_nothing(
    bucket: Bucket, credentials: Path, faulty_s3: FaultyProxy, tmp_path: Path
) -> None:
    others = Publishers({}, lambda: s3_store(bucket, credentials))

    def publish_meanwhile() -> None:
        time.sleep(1.0)
        others.publish(NEW, tmp_path / "other")

    def completes_the_manifest(method: str, path: str) -> bool:
        return method == "POST" and "manifest.json" in path and "uploads" not in path

    faulty_s3.fail(completes_the_manifest, before=publish_meanwhile)
    plan = {
        "store": "s3",
        "bucket": bucket.name,
        "endpoint": faulty_s3.endpoint,
        "credentials": str(credentials),
        # Its heartbeat is too slow for the others, as that of a machine that thrashes.
        "timing": {"stale_seconds": 1.5, "renew_seconds": 60},
        "read_seconds": 60,
    }
    slow = Publishers(plan, lambda: s3_store(bucket, credentials))
    process = slow.start(OLD, tmp_path / "slow")
    assert slow.wake(process) in {"AnotherPublisher", "AlreadyPublished"}
    assert others.published_text() == NEW


def test_of_many_publishers_at_once_one_publishes(publishers: Publishers, tmp_path: Path) -> None:
    texts = [f"bytes number {number}" for number in range(3)]
    processes = [publishers.start(text, tmp_path / text) for text in texts]
    outcomes = [publishers.wake(process) for process in processes]
    assert outcomes.count("Published") == 1
    assert set(outcomes) <= {"Published", "AnotherPublisher", "AlreadyPublished"}
    assert publishers.published_text() == texts[outcomes.index("Published")]


def test_a_finished_artifact_is_never_claimed_again(publishers: Publishers, tmp_path: Path) -> None:
    publishers.publish(OLD, tmp_path / "first")
    with pytest.raises(AlreadyPublishedError):
        publishers.publish(NEW, tmp_path / "second")
    assert publishers.published_text() == OLD
