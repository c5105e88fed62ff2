"""Checkpoints beside an artifact: whole or not there, two at most, and gone when told to."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from tests.worker.stores.places import SHORT

from kubequant.api.data import OutputS3Options
from kubequant_worker.errors import UnavailableError
from kubequant_worker.stores import Checkpoints, Place, open_checkpoints
from kubequant_worker.stores.s3 import S3Backend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.testbed.storage import Bucket

NAME, DIGEST = "tiny", "0123abcd"
BESIDE = f"models/{NAME}/{DIGEST}.checkpoints"
LARGE = bytes(range(256)) * 50_000


@dataclass
class Where:
    """A place for checkpoints, and what a stranger sees and does there."""

    opened: Callable[[], Checkpoints]
    names: Callable[[], list[str]]
    put: Callable[[str, bytes], None]


@pytest.fixture(params=["s3", "folder"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Where:
    if request.param == "s3":
        bucket: Bucket = request.getfixturevalue("bucket")
        credentials: Path = request.getfixturevalue("credentials")
        options = OutputS3Options(endpoint=bucket.server.endpoint)
        uri = f"s3://{bucket.name}/{BESIDE}"
        folder = credentials / "output"
        return Where(
            lambda: Checkpoints(
                lambda: S3Backend(uri, options, folder, "spec.output.uri", patience=SHORT)
            ),
            lambda: [key.rpartition("/")[2] for key in bucket.keys(f"{BESIDE}/")],
            lambda name, body: bucket.put(f"{BESIDE}/{name}", body),
        )
    place = tmp_path / "out" / BESIDE

    def put(name: str, body: bytes) -> None:
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(body)

    return Where(
        lambda: open_checkpoints(Place(f"file://{tmp_path}/out/models"), name=NAME, digest=DIGEST),
        lambda: sorted(path.name for path in place.rglob("*")) if place.is_dir() else [],
        put,
    )


@pytest.fixture
def checkpoints(where: Where) -> Iterator[Checkpoints]:
    one = where.opened()
    yield one
    one.close()


def made(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "local.safetensors"
    path.write_bytes(content)
    return path


def found(where: Where, tmp_path: Path, *, refuse: bytes = b"") -> tuple[int, bytes] | None:
    """Return step and bytes of what a new process goes on from."""
    one = where.opened()
    try:
        newest = one.newest(tmp_path / "into", lambda path: path.read_bytes() != refuse)
        return None if newest is None else (newest[0], newest[1].read_bytes())
    finally:
        one.close()


def test_where_nothing_was_kept_there_is_nothing_to_go_on_from(
    where: Where, tmp_path: Path
) -> None:
    assert found(where, tmp_path) is None


def test_the_newest_is_gone_on_from_and_two_are_kept(
    where: Where, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    for step in (90, 100, 1000):
        checkpoints.keep(made(tmp_path, b"step %d" % step + LARGE), step)

    assert found(where, tmp_path) == (1000, b"step 1000" + LARGE)
    assert [name[:14] for name in where.names()] == ["step-000000100", "step-000001000"]


def test_a_checkpoint_that_was_damaged_is_passed_over(
    where: Where, checkpoints: Checkpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        checkpoints.keep(made(tmp_path, b"step %d" % step + LARGE), step)
    newest = where.names()[-1]
    where.put(newest, b"step 2" + LARGE[:-1])

    with caplog.at_level(logging.WARNING):
        assert found(where, tmp_path) == (1, b"step 1" + LARGE)
    assert f"{newest} is damaged" in caplog.text


def test_a_checkpoint_of_other_work_is_passed_over(
    where: Where, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    for step in (1, 2):
        checkpoints.keep(made(tmp_path, b"step %d" % step), step)

    assert found(where, tmp_path, refuse=b"step 2") == (1, b"step 1")


def test_the_same_checkpoint_kept_twice_is_one(
    where: Where, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    for _ in range(2):
        checkpoints.keep(made(tmp_path, b"the same"), 7)

    assert len(where.names()) == 1


def test_what_a_dead_run_had_half_written_is_neither_seen_nor_left(
    where: Where, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    checkpoints.keep(made(tmp_path, b"whole"), 1)
    backend = checkpoints._opened()
    backend.open_staging("step-000000002-" + "0" * 64 + ".safetensors")

    assert found(where, tmp_path) == (1, b"whole")
    checkpoints.clear()
    assert where.names() == []


def test_nothing_is_left_of_checkpoints_that_are_cleared(
    where: Where, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    for step in (1, 2):
        checkpoints.keep(made(tmp_path, b"x"), step)

    assert checkpoints.clear() == ""
    assert where.names() == []
    assert found(where, tmp_path) is None


def test_an_empty_place_can_be_cleared(where: Where, checkpoints: Checkpoints) -> None:
    assert checkpoints.clear() == ""
    assert where.names() == []


def test_other_peoples_files_stay(where: Where, checkpoints: Checkpoints, tmp_path: Path) -> None:
    where.put("notes.txt", b"mine")
    checkpoints.keep(made(tmp_path, b"x"), 1)

    checkpoints.clear()

    assert where.names() == ["notes.txt"]


def test_a_store_that_is_away_costs_the_checkpoint_and_not_the_clearing(tmp_path: Path) -> None:
    options = OutputS3Options(endpoint="http://127.0.0.1:9")
    folder = tmp_path / "output"
    folder.mkdir()
    (folder / "AWS_ACCESS_KEY_ID").write_text("a")
    (folder / "AWS_SECRET_ACCESS_KEY").write_text("b")
    uri = "s3://bucket/models/x"
    away = Checkpoints(lambda: S3Backend(uri, options, folder, "spec.output.uri", patience=SHORT))

    with pytest.raises(UnavailableError):
        away.keep(made(tmp_path, b"x"), 1)
    assert away.clear() == f"{uri}/"
