"""Publishing, the same sentences for every kind of store."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from tests.worker.stores.places import DIGEST, NAME, PREFIX, folder_store, s3_store

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import UnavailableError
from kubequant_worker.manifest import Manifest
from kubequant_worker.stores import AlreadyPublishedError, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.testbed.storage import Bucket

    from kubequant_worker.stores import Publication, Published

WEIGHTS = bytes(range(256)) * 80_000  # 20 MB: several parts


@dataclass(frozen=True)
class World:
    """One place to publish to, with what a reader sees in it."""

    open: Callable[[], Store]
    names: Callable[[], set[str]]
    read: Callable[[str], bytes]
    plant: Callable[[str, bytes], None]
    unfinished: Callable[[], int]


@pytest.fixture(params=["s3", "folder"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    opened: list[Store] = []

    def keep(store: Store) -> Store:
        opened.append(store)
        return store

    if request.param == "s3":
        bucket: Bucket = request.getfixturevalue("bucket")
        credentials: Path = request.getfixturevalue("credentials")
        base = f"models/{PREFIX}/"
        yield World(
            open=lambda: keep(s3_store(bucket, credentials)),
            names=lambda: {key.removeprefix(base) for key in bucket.keys(base)},
            read=lambda name: bucket.get(base + name),
            plant=lambda name, body: bucket.put(base + name, body),
            unfinished=lambda: len(bucket.unfinished()),
        )
    else:
        root = tmp_path / "out" / PREFIX

        def plant(name: str, body: bytes) -> None:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(body)

        yield World(
            open=lambda: keep(folder_store(tmp_path / "out")),
            names=lambda: {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()},
            read=lambda name: (root / name).read_bytes(),
            plant=plant,
            unfinished=lambda: len(list(root.glob(".staging/*"))),
        )
    for store in opened:
        store.close()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(WEIGHTS)
    return path


def publish(publication: Publication, weights: Path, readme: bytes = b"# tiny\n") -> Published:
    publication.add(weights, "model-Q4_K_M.gguf")
    publication.add_bytes(readme, "README.md")
    publication.add_bytes(b"", "empty.txt")
    manifest = Manifest.of(NAME, DIGEST, publication.uploaded())
    return publication.commit(manifest.to_bytes())


def test_a_published_prefix_holds_the_files_and_a_manifest_that_names_their_bytes(
    world: World, weights: Path
) -> None:
    store = world.open()
    with store.claim() as publication:
        published = publish(publication, weights)
    assert world.names() == {"model-Q4_K_M.gguf", "README.md", "empty.txt", "manifest.json"}
    assert world.read("model-Q4_K_M.gguf") == WEIGHTS
    manifest = world.read("manifest.json")
    assert published.manifest_sha256 == hashlib.sha256(manifest).hexdigest()
    named = {file.path: (file.size, file.sha256) for file in Manifest.from_bytes(manifest).files}
    assert named["model-Q4_K_M.gguf"] == (len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest())
    assert named["empty.txt"] == (0, hashlib.sha256(b"").hexdigest())
    assert store.verify() == published.manifest
    assert world.unfinished() == 0


def test_nothing_is_visible_before_the_commit(world: World, weights: Path) -> None:
    store = world.open()
    with store.claim() as publication:
        publication.add(weights, "model-Q4_K_M.gguf")
        publication.uploaded()
        assert not {name for name in world.names() if not name.startswith(".")}
        assert store.published() is None


def test_a_publication_without_a_commit_takes_everything_back(world: World, weights: Path) -> None:
    store = world.open()
    with store.claim() as publication:
        publication.add(weights, "model-Q4_K_M.gguf")
        publication.uploaded()
    assert world.names() == set()
    assert world.unfinished() == 0


def test_an_exception_in_the_middle_of_an_upload_takes_everything_back(
    world: World, weights: Path
) -> None:
    began = threading.Event()

    def fail_after_a_piece() -> None:
        with world.open().claim(on_bytes=lambda _: began.set()) as publication:
            publication.add(weights, "model-Q4_K_M.gguf")
            assert began.wait(10)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_after_a_piece()
    assert world.names() == set()
    assert world.unfinished() == 0


def test_publishing_again_finds_what_is_published(world: World, weights: Path) -> None:
    with world.open().claim() as publication:
        published = publish(publication, weights)
    with pytest.raises(AlreadyPublishedError) as found, world.open().claim():
        pytest.fail("the claim was given")
    assert found.value.manifest == published.manifest
    assert found.value.manifest_sha256 == published.manifest_sha256
    assert ".claim" not in world.names()


def test_a_second_run_is_refused_while_the_first_lives(world: World, weights: Path) -> None:
    with world.open().claim() as publication:
        with pytest.raises(UnavailableError) as refused, world.open().claim():
            pytest.fail("the claim was given twice")
        assert refused.value.reason is FailureReason.ANOTHER_PUBLISHER
        publish(publication, weights)
    assert world.open().verify() is not None


def test_the_claim_is_free_again_after_a_failed_run(world: World, weights: Path) -> None:
    with world.open().claim():
        pass
    with world.open().claim() as publication:
        publish(publication, weights)
    assert world.open().verify() is not None


def test_leftovers_of_a_dead_run_are_replaced_and_strays_are_named(
    world: World, weights: Path
) -> None:
    world.plant("model-Q4_K_M.gguf", b"half a model")
    world.plant("README.md", b"# tiny\n")
    world.plant("old.gguf", b"of an earlier version")
    with world.open().claim() as publication:
        published = publish(publication, weights)
    assert published.strays == ("old.gguf",)
    assert world.open().verify() == published.manifest


def test_a_manifest_must_name_exactly_what_was_added(world: World, weights: Path) -> None:
    with world.open().claim() as publication:
        publication.add(weights, "model-Q4_K_M.gguf")
        files = publication.uploaded()
        publication.add_bytes(b"more", "README.md")
        with pytest.raises(ValueError, match="does not name the files"):
            publication.commit(Manifest.of(NAME, DIGEST, files).to_bytes())
    assert world.names() == set()


def test_verify_says_which_file_was_changed_after_publishing(world: World, weights: Path) -> None:
    with world.open().claim() as publication:
        publish(publication, weights)
    world.plant("model-Q4_K_M.gguf", WEIGHTS[:-1] + b"x")
    with pytest.raises(UnavailableError, match=r"model-Q4_K_M\.gguf is not the file"):
        world.open().verify()


def test_a_probe_leaves_nothing_behind(world: World) -> None:
    probe = world.open().probe()
    assert (probe.conditional_writes, probe.checksums, probe.notes) == (True, True, ())
    assert world.names() <= {".claim.lock"}
    assert world.unfinished() == 0


def test_progress_counts_every_byte_once(world: World, weights: Path) -> None:
    counted: list[int] = []
    with world.open().claim(on_bytes=counted.append) as publication:
        publication.add(weights, "model-Q4_K_M.gguf")
        publication.uploaded()
    assert sum(counted) == len(WEIGHTS)
