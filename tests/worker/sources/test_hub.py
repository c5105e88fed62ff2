"""The Hub, through its real client against a server on loopback."""

from __future__ import annotations

import hashlib
import logging
import traceback
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub._local_folder import get_local_download_paths
from huggingface_hub.constants import DOWNLOAD_CHUNK_SIZE
from tests.worker.hostile import good_model, good_weights, safetensors, tensor

from kubequant.api.data import Dataset, ModelSource
from kubequant.api.outcome import ExitCode, FailureReason, Stage
from kubequant_worker.errors import AccessError, BadRequestError, UnavailableError, WorkerError
from kubequant_worker.progress import Progress, Snapshot
from kubequant_worker.sources import fetch_dataset, fetch_model, inspect_model
from kubequant_worker.sources.leftovers import bytes_there

if TYPE_CHECKING:
    from pathlib import Path

    from tests.testbed.hub import Hub

TOKEN = "hf_0123456789abcdef"
LARGE = safetensors({"w": tensor(0, 12_000_000)}, bytes(12_000_000))
MODEL = ModelSource(uri="hf://owner/tiny")


@pytest.fixture(autouse=True)
def _mirror(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_TOKEN", raising=False)


def token(tmp_path: Path, text: str) -> Path:
    (tmp_path / "credentials" / "model").mkdir(parents=True)
    (tmp_path / "credentials" / "model" / "HF_TOKEN").write_text(text + "\n")
    return tmp_path / "credentials"


def test_a_model_is_fetched_at_the_commit_that_its_branch_stands_for(
    hub: Hub, tmp_path: Path
) -> None:
    repository = hub.add("owner/tiny", {**good_model(), "evil.py": b"", "README.md": b"#"})
    fetched = fetch_model(MODEL, into=tmp_path / "into", credentials=tmp_path)
    assert fetched.revision == repository.commit
    assert {file.path for file in fetched.files} == set(good_model())
    for file in fetched.files:
        assert file.sha256 == hashlib.sha256(good_model()[file.path]).hexdigest()
    resolved = [path for _, path, _ in hub.requests if "/resolve/" in path]
    assert resolved
    assert all(repository.commit in path for path in resolved)


def test_the_commit_that_was_looked_at_is_fetched_although_its_branch_moved(
    hub: Hub, tmp_path: Path
) -> None:
    looked_at = hub.add("owner/tiny", good_model())
    listing = inspect_model(MODEL, credentials=tmp_path)
    moved = hub.push("owner/tiny", {**good_model(), "model.safetensors": good_weights("other")})
    fetched = fetch_model(
        MODEL, into=tmp_path / "into", credentials=tmp_path, revision=listing.revision
    )
    assert fetched.revision == looked_at.commit != moved.commit
    assert (fetched.folder / "model.safetensors").read_bytes() == good_weights()


def test_looking_at_a_model_moves_no_file(hub: Hub, tmp_path: Path) -> None:
    hub.add("owner/tiny", good_model())
    listing = inspect_model(MODEL, credentials=tmp_path)
    assert listing.weight_bytes == len(good_weights())
    assert not [path for _, path, _ in hub.requests if "/resolve/" in path]


def test_a_model_that_would_run_code_is_refused_before_its_weights_move(
    hub: Hub, tmp_path: Path
) -> None:
    hub.add("owner/tiny", {**good_model(), "config.json": b'{"auto_map": {"x": "y"}}'})
    with pytest.raises(BadRequestError, match="auto_map"):
        fetch_model(MODEL, into=tmp_path / "into", credentials=tmp_path)
    assert not [path for _, path, _ in hub.requests if "model.safetensors" in path]


def raised_by(model: ModelSource, credentials: Path) -> WorkerError:
    with pytest.raises(WorkerError) as error:
        inspect_model(model, credentials=credentials)
    return error.value


def test_a_repository_that_is_not_there_is_named(tmp_path: Path) -> None:
    error = raised_by(MODEL, tmp_path)
    assert (error.exit_code, error.reason) == (ExitCode.ACCESS, FailureReason.MODEL_NOT_FOUND)
    assert "there is no repository hf://owner/tiny" in error.message


def test_a_revision_that_is_not_there_is_named(hub: Hub, tmp_path: Path) -> None:
    hub.add("owner/tiny", good_model())
    error = raised_by(ModelSource(uri=MODEL.uri, revision="v9"), tmp_path)
    assert error.reason is FailureReason.MODEL_NOT_FOUND
    assert "spec.model.revision: hf://owner/tiny has no revision 'v9'" in error.message


def test_a_gated_model_without_access_says_what_to_do(hub: Hub, tmp_path: Path) -> None:
    hub.add("owner/tiny", good_model(), gated=True, token=TOKEN)
    for credentials in (tmp_path, token(tmp_path, "hf_another_account")):
        error = raised_by(MODEL, credentials)
        assert (error.exit_code, error.reason) == (ExitCode.ACCESS, FailureReason.ACCESS_DENIED)
        assert "is gated" in error.message
        assert "Accept its terms" in error.advice


def test_the_token_of_the_role_opens_a_private_model(hub: Hub, tmp_path: Path) -> None:
    hub.add("owner/tiny", good_model(), token=TOKEN)
    fetched = fetch_model(MODEL, into=tmp_path / "into", credentials=token(tmp_path, TOKEN))
    assert len(fetched.files) == len(good_model())


def test_a_token_that_the_hub_refuses_is_never_shown(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    hub.add("owner/tiny", good_model(), token=TOKEN)
    error = raised_by(MODEL, token(tmp_path, "invalid_0123456789"))
    assert isinstance(error, AccessError)
    assert "refused the token" in error.message
    said = "".join(traceback.format_exception(error)) + caplog.text + error.advice
    assert "invalid_0123456789" not in said


def test_a_download_that_breaks_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.add("owner/tiny", {**good_model(), "model.safetensors": LARGE})
    hub.cut_after = 11_000_000
    fetched = fetch_model(MODEL, into=tmp_path / "into", credentials=tmp_path)
    assert (fetched.folder / "model.safetensors").read_bytes() == LARGE
    ranges = [headers["range"] for _, _, headers in hub.requests if "range" in headers]
    assert ranges == [f"bytes={DOWNLOAD_CHUNK_SIZE}-"]


def test_what_the_hub_s_client_has_brought_needs_no_more_room(hub: Hub, tmp_path: Path) -> None:
    hub.add("owner/tiny", {**good_model(), "model.safetensors": LARGE})
    listing = inspect_model(MODEL, credentials=tmp_path)
    into = tmp_path / "into"
    assert bytes_there(listing, into) == 0
    fetch_model(MODEL, into=into, credentials=tmp_path)
    assert bytes_there(listing, into) == listing.size_bytes
    begun = incomplete_file(into, "model.safetensors", hashlib.sha256(LARGE).hexdigest())
    (into / "model.safetensors").unlink()
    begun.write_bytes(LARGE[: 2**20])
    assert bytes_there(listing, into) == listing.size_bytes - len(LARGE) + 2**20


def incomplete_file(into: Path, name: str, content: str) -> Path:
    """Where the Hub's client keeps what it has begun."""
    return get_local_download_paths(into, name).incomplete_path(content)


def test_other_bytes_than_the_hub_lists_are_refused(hub: Hub, tmp_path: Path) -> None:
    repository = hub.add("owner/tiny", good_model())
    weights = good_model()["model.safetensors"]
    repository.spoiled["model.safetensors"] = weights[:-1] + b"!"
    with pytest.raises(UnavailableError, match="arrived with other bytes"):
        fetch_model(MODEL, into=tmp_path / "into", credentials=tmp_path)


def test_a_hub_that_is_busy_for_a_moment_is_asked_again(hub: Hub, tmp_path: Path) -> None:
    hub.add("owner/tiny", {**good_model(), "model.safetensors": LARGE})
    listing = inspect_model(MODEL, credentials=tmp_path)
    assert listing.weight_bytes == len(LARGE)
    hub.failing = 10_000
    assert raised_by(MODEL, tmp_path).exit_code is ExitCode.UNAVAILABLE


def test_progress_counts_each_byte_once_and_ends_at_all(hub: Hub, tmp_path: Path) -> None:
    hub.add("owner/tiny", {**good_model(), "model.safetensors": LARGE})
    shown: list[Snapshot] = []

    class Sink:
        def update(self, snapshot: Snapshot) -> None:
            shown.append(snapshot)

    with Progress([Sink()]).stage(Stage.FETCHING) as progress:
        fetch_model(MODEL, into=tmp_path / "into", credentials=tmp_path, progress=progress)
        assert shown[-1].fraction == 1.0
        assert any(0 < snapshot.fraction < 1 for snapshot in shown)
        assert progress._done == sum(
            map(len, {**good_model(), "model.safetensors": LARGE}.values())
        )


def dataset(hub: Hub, uri: str, tmp_path: Path, **options: Any) -> list[str]:
    files = {
        "README.md": b"#",
        "data/train-00000-of-00002.parquet": b"PAR1",
        "data/train-00001-of-00002.parquet": b"PAR1",
        "data/test-00000-of-00001.parquet": b"PAR1",
    }
    hub.add("owner/text", files, kind="dataset")
    fetched = fetch_dataset(
        Dataset(uri=uri, **options), into=tmp_path / "d", credentials=tmp_path, role="calibration"
    )
    assert all(path.is_file() for path in fetched.files)
    return [path.name for path in fetched.files]


def test_the_files_of_a_dataset_s_split_are_taken(hub: Hub, tmp_path: Path) -> None:
    names = dataset(hub, "hf://owner/text", tmp_path)
    assert names == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]


def test_a_dataset_s_address_may_name_a_file(hub: Hub, tmp_path: Path) -> None:
    uri = "hf://owner/text/data/test-00000-of-00001.parquet"
    assert dataset(hub, uri, tmp_path) == ["test-00000-of-00001.parquet"]


def test_a_split_that_no_file_names_is_an_error(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(AccessError, match="names the split 'validation'") as error:
        dataset(hub, "hf://owner/text", tmp_path, split="validation")
    assert error.value.reason is FailureReason.DATASET_NOT_FOUND
