"""What a full, missing or read-only folder gets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from tests.worker.stores.places import DIGEST, NAME, folder_store

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import AccessError, BadRequestError, UnavailableError
from kubequant_worker.stores import Place, open_store
from kubequant_worker.stores.folder import FolderBackend

if TYPE_CHECKING:
    from pathlib import Path

# RLIMIT_FSIZE makes every write past a megabyte fail as a full disk does, for one process, without
# a mount: the kernel's answer is EFBIG instead of ENOSPC, and both mean that no more goes there.
FULL_DISK = """
import json, pathlib, resource, signal, sys
from kubequant_worker.errors import WorkerError
from tests.worker.stores.places import folder_store
folder = pathlib.Path(sys.argv[1])
(folder / "model").write_bytes(bytes(3_000_000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
try:
    with folder_store(folder / "out").claim() as publication:
        publication.add(folder / "model", "model.gguf")
        publication.uploaded()
except WorkerError as error:
    print(json.dumps([str(error.reason), error.message]))
"""


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    reason, message = json.loads(run.stdout)
    assert reason == FailureReason.DISK_FULL
    assert "no space left" in message
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_a_claim_that_is_not_mounted_is_named(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match="'models' is not mounted") as error:
        open_store(Place("pvc://models/out", volumes=tmp_path), name=NAME, digest=DIGEST)
    assert "--volume models=FOLDER" in error.value.advice


def test_a_path_that_leaves_the_claim_through_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "out").symlink_to("/")
    with pytest.raises(BadRequestError, match="leads out of the claim"):
        open_store(Place("pvc://models/out", volumes=tmp_path), name=NAME, digest=DIGEST)


def test_a_mounted_claim_is_published_to(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    store = open_store(Place("pvc://models/out", volumes=tmp_path), name=NAME, digest=DIGEST)
    assert store.uri == f"pvc://models/out/{NAME}/{DIGEST}/"
    with store.claim() as publication:
        publication.add_bytes(b"x", "a")
        publication.uploaded()
    assert store.published() is None


def test_a_folder_that_is_a_file_is_an_error_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("not a folder")
    with pytest.raises(BadRequestError, match=r"spec\.output\.uri: .* is no folder") as error:
        folder_store(tmp_path / "out").probe()
    assert "Name a folder" in error.value.advice


def test_something_else_named_manifest_is_not_taken_for_one(tmp_path: Path) -> None:
    root = tmp_path / "out" / NAME / DIGEST
    root.mkdir(parents=True)
    (root / "manifest.json").write_text('{"name": "a web app"}')
    with pytest.raises(UnavailableError, match="is no manifest of kubequant"):
        folder_store(tmp_path / "out").published()


def test_an_address_of_another_kind_is_refused() -> None:
    with pytest.raises(BadRequestError, match="starts with s3://, pvc://, file://"):
        open_store(Place("ftp://host/models"), name=NAME, digest=DIGEST)


def test_who_publishes_nothing_leaves_no_folder_that_looks_like_an_artifact(
    tmp_path: Path,
) -> None:
    root = tmp_path / "out" / NAME / DIGEST
    folder_store(tmp_path / "out").probe()
    assert not root.exists()

    with folder_store(tmp_path / "out").claim() as publication:
        publication.add_bytes(b"x", "a")
        publication.uploaded()
        assert root.is_dir()
    assert not root.exists()


def test_a_folder_that_another_publisher_tidies_away_is_made_again(tmp_path: Path) -> None:
    def probe(backend: FolderBackend) -> None:
        for _ in range(150):
            backend.probe()

    def stage(backend: FolderBackend) -> None:
        for _ in range(150):
            backend.discard("model", backend.open_staging("model"))

    one, other = (FolderBackend("file:///out", tmp_path / "out", "spec") for _ in range(2))
    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(probe, one), pool.submit(probe, other), pool.submit(stage, one)]:
            done.result()
    assert not (tmp_path / "out").exists()


def test_a_small_file_is_written_again_that_another_publisher_sweeps_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = FolderBackend("file:///out", tmp_path / "out", "spec.output.uri")
    sweeps = []

    def swept(descriptor: int) -> None:
        fsync(descriptor)
        if len(sweeps) < 3:
            sweeps.append(other.sweep())

    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", swept)
    one = FolderBackend("file:///out", tmp_path / "out", "spec.output.uri")
    tag = one.create("claim", b"mine")
    assert one.replace("claim", b"mine again", tag)
    assert (tmp_path / "out" / "claim").read_bytes() == b"mine again"
    assert len(sweeps) == 3
