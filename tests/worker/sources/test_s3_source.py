"""Models and texts in S3, through a real server and bad networks."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from boto3.s3.transfer import TransferConfig
from tests.testbed.storage import write_credentials
from tests.worker.hostile import good_model, safetensors, tensor
from tests.worker.stores.places import SHORT

from kubequant.api.data import Dataset, ModelSource
from kubequant.api.outcome import ExitCode, FailureReason
from kubequant_worker.errors import AccessError, BadRequestError, UnavailableError, WorkerError
from kubequant_worker.sources import fetch_dataset, fetch_model, inspect_model
from kubequant_worker.sources import s3 as s3_module
from kubequant_worker.sources.leftovers import bytes_there
from kubequant_worker.sources.s3_download import RANGE_BYTES, Downloader, PieceCheck
from kubequant_worker.sources.source import Origin, RemoteFile

if TYPE_CHECKING:
    from pathlib import Path

    from tests.testbed.faulty import FaultyProxy
    from tests.testbed.processes import Toxiproxy
    from tests.testbed.storage import Bucket

SIZE = 2 * RANGE_BYTES + 4_000_000
LARGE = safetensors({"w": tensor(0, SIZE)}, os.urandom(4096) * (SIZE // 4096) + bytes(SIZE % 4096))
FILES = {**good_model(), "model.safetensors": LARGE}


@pytest.fixture(autouse=True)
def _short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_module, "PATIENCE", SHORT)


@pytest.fixture
def stored(bucket: Bucket) -> Bucket:
    """A bucket with a model, its weights in several parts as other programs upload them."""
    for name, content in FILES.items():
        if name == "model.safetensors":
            _upload_parts(bucket, f"models/tiny/{name}", content)
        else:
            bucket.put(f"models/tiny/{name}", content)
    return bucket


def _upload_uneven_parts(bucket: Bucket, key: str, content: bytes, *sizes: int) -> None:
    where = {"Bucket": bucket.name, "Key": key}
    upload = bucket.client.create_multipart_upload(**where)["UploadId"]
    stream, parts = io.BytesIO(content), []
    for number, size in enumerate([*sizes, len(content) - sum(sizes)], 1):
        part = {"UploadId": upload, "PartNumber": number}
        answer = bucket.client.upload_part(**where, **part, Body=stream.read(size))
        parts.append({"PartNumber": number, "ETag": answer["ETag"]})
    bucket.client.complete_multipart_upload(
        **where, UploadId=upload, MultipartUpload={"Parts": parts}
    )


def _upload_parts(bucket: Bucket, key: str, content: bytes) -> None:
    parts = TransferConfig(multipart_threshold=8 * 2**20, multipart_chunksize=8 * 2**20)
    bucket.client.upload_fileobj(io.BytesIO(content), bucket.name, key, Config=parts)


def source(bucket: Bucket, endpoint: str = "", path: str = "models/tiny") -> ModelSource:
    return ModelSource.model_validate(
        {
            "uri": f"s3://{bucket.name}/{path}",
            "s3": {"endpoint": endpoint or bucket.server.endpoint},
        }
    )


def downloads(method: str, path: str) -> bool:
    return method == "GET" and "model.safetensors" in path


def test_nothing_is_there_of_a_model_that_nobody_fetched(
    stored: Bucket, credentials: Path, tmp_path: Path
) -> None:
    listing = inspect_model(source(stored), credentials=credentials)
    assert bytes_there(listing, tmp_path / "into") == 0


def test_a_model_is_fetched_in_ranges_and_digested(
    stored: Bucket, credentials: Path, tmp_path: Path
) -> None:
    listing = inspect_model(source(stored), credentials=credentials)
    assert listing.weight_bytes == len(LARGE)
    fetched = fetch_model(source(stored), into=tmp_path / "into", credentials=credentials)
    assert {f.path: f.sha256 for f in fetched.files} == {
        name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()
    }
    assert (fetched.folder / "model.safetensors").read_bytes() == LARGE


@pytest.mark.parametrize(
    ("path", "words", "reason"),
    [
        pytest.param(
            "models/nowhere", "there is nothing at", FailureReason.MODEL_NOT_FOUND, id="key"
        ),
        pytest.param("", "there is no bucket", FailureReason.BUCKET_NOT_FOUND, id="bucket"),
    ],
)
def test_what_is_not_there_is_named(
    stored: Bucket, credentials: Path, path: str, words: str, reason: FailureReason
) -> None:
    model = source(stored, path=path)
    if not path:
        model = model.model_copy(update={"uri": "s3://no-such-bucket/models/tiny"})
    with pytest.raises(AccessError, match=words) as error:
        inspect_model(model, credentials=credentials)
    assert error.value.reason is reason
    assert error.value.message.startswith("spec.model.uri")


def test_wrong_keys_are_named_and_never_shown(
    stored: Bucket, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    keys = write_credentials(tmp_path, "model", stored.server.access_key, "a-wrong-secret-value")
    with pytest.raises(AccessError, match="secret access key does not belong") as error:
        inspect_model(source(stored), credentials=keys)
    assert error.value.exit_code is ExitCode.ACCESS
    assert "a-wrong-secret-value" not in "".join(traceback.format_exception(error.value))
    assert "a-wrong-secret-value" not in caplog.text


def test_a_key_that_leads_out_of_the_folder_is_refused(
    stored: Bucket, credentials: Path, faulty_s3: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No server of ours stores such a key, so the listing is spoiled on its way.
    listed = s3_module.S3Source.listing

    def spoiled(self: s3_module.S3Source) -> Any:
        found = listed(self)
        evil = found.files[0].__class__("../../evil.safetensors", 10)
        return found.__class__(None, (*found.files, evil))

    monkeypatch.setattr(s3_module.S3Source, "listing", spoiled)
    with pytest.raises(BadRequestError, match="leads out of its folder"):
        inspect_model(source(stored, faulty_s3.endpoint), credentials=credentials)


FAULTS: dict[str, dict[str, Any]] = {
    "answers 500": {"status": 500, "code": "InternalError"},
    "answers 503": {"status": 503, "code": "SlowDown"},
    "closes the connection": {"lose_answer": True},
    "returns wrong bytes": {"spoil_answer": True},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_store_that_fails_for_a_moment_costs_nothing(
    stored: Bucket, credentials: Path, faulty_s3: FaultyProxy, tmp_path: Path, fault: str
) -> None:
    faulty_s3.fail(downloads, times=2, **FAULTS[fault])
    fetched = fetch_model(
        source(stored, faulty_s3.endpoint), into=tmp_path / "into", credentials=credentials
    )
    assert (fetched.folder / "model.safetensors").read_bytes() == LARGE
    assert all(f.times == 0 for f in faulty_s3.faults)


def test_a_store_that_always_returns_wrong_bytes_is_named(
    stored: Bucket, credentials: Path, faulty_s3: FaultyProxy, tmp_path: Path
) -> None:
    faulty_s3.fail(downloads, times=1000, spoil_answer=True)
    with pytest.raises(UnavailableError, match="arrived with other bytes"):
        fetch_model(
            source(stored, faulty_s3.endpoint), into=tmp_path / "into", credentials=credentials
        )
    assert not (tmp_path / "into" / "model.safetensors").exists()


def asks_for_parts(method: str, path: str) -> bool:
    return method == "HEAD" and "partNumber" in path


def test_parts_of_unequal_sizes_are_checked_by_what_the_store_says_of_each(
    stored: Bucket, credentials: Path, faulty_s3: FaultyProxy, tmp_path: Path
) -> None:
    # As many parts as there were if all were as large as the first.
    sizes = 16 * 2**20, 6 * 2**20
    _upload_uneven_parts(stored, "models/tiny/model.safetensors", LARGE, *sizes)
    model = source(stored, faulty_s3.endpoint)
    fetched = fetch_model(model, into=tmp_path / "good", credentials=credentials)
    assert (fetched.folder / "model.safetensors").read_bytes() == LARGE

    faulty_s3.fail(downloads, times=1000, spoil_answer=True)
    with pytest.raises(UnavailableError, match="arrived with other bytes"):
        fetch_model(model, into=tmp_path / "spoiled", credentials=credentials)


@pytest.mark.parametrize("skip", [0, 1], ids=["of none", "of the first alone"])
def test_a_checksum_over_parts_proves_nothing_where_the_store_does_not_tell_their_sizes(
    stored: Bucket, credentials: Path, faulty_s3: FaultyProxy, tmp_path: Path, skip: int
) -> None:
    sizes = 16 * 2**20, 6 * 2**20
    _upload_uneven_parts(stored, "models/tiny/model.safetensors", LARGE, *sizes)
    faulty_s3.fail(asks_for_parts, times=100, skip=skip, status=400, code="InvalidArgument")
    fetched = fetch_model(
        source(stored, faulty_s3.endpoint), into=tmp_path / "into", credentials=credentials
    )
    assert (fetched.folder / "model.safetensors").read_bytes() == LARGE


@pytest.mark.parametrize(
    ("etag", "is_known"),
    [
        pytest.param("0f343b0931126a20f133d67c2b018a3b", True, id="an MD5"),
        pytest.param("0f343b0931126a20f133d67c2b018a3b-1", True, id="an MD5 over parts"),
        pytest.param("CJ-3x5-Q8voCEAE", False, id="hyphens and letters, as Google's"),
        pytest.param("0F343B0931126A20F133D67C2B018A3B-1", False, id="capitals, as Alibaba's"),
        pytest.param("0f343b0931126a20f133d67c2b018a3b-one", False, id="no number of parts"),
        pytest.param("0x8DB4C9C1A5B1D2F", False, id="a time, as Azure's"),
    ],
)
def test_only_an_etag_of_a_known_form_is_held_against_the_bytes(
    stored: Bucket, credentials: Path, etag: str, *, is_known: bool
) -> None:
    model = source(stored)
    origin = Origin(
        model.uri, None, model.s3, credentials / "model", credentials, "spec.model", "model"
    )
    opened = s3_module.S3Source(origin)
    downloader = Downloader(opened._client, opened._place, credentials)
    file = RemoteFile("config.json", len(FILES["config.json"]), tag=f'"{etag}"')

    assert (downloader._known_check(file) is not None) == is_known


def test_a_connection_that_falls_silent_in_the_midst_of_a_file_is_made_again(
    stored: Bucket, credentials: Path, toxiproxy: Toxiproxy, tmp_path: Path
) -> None:
    partial = tmp_path / "into" / ".partial" / "model.safetensors"
    toxiproxy.add("bandwidth", stream="downstream", rate=8_000)  # of 37 MB, in kB/s

    def fall_silent() -> None:
        while not partial.is_file() or not partial.stat().st_blocks:
            time.sleep(0.01)
        # No connection ends, and nothing comes for longer than a read may take.
        toxiproxy.add("timeout", stream="downstream", timeout=0)
        time.sleep(1.5 * SHORT.read_seconds)
        toxiproxy.reset()

    with ThreadPoolExecutor(1) as pool:
        silence = pool.submit(fall_silent)
        fetched = fetch_model(
            source(stored, toxiproxy.endpoint), into=tmp_path / "into", credentials=credentials
        )
    silence.result()
    assert (fetched.folder / "model.safetensors").read_bytes() == LARGE


def test_a_connection_that_is_reset_is_made_again(
    stored: Bucket, credentials: Path, toxiproxy: Toxiproxy, tmp_path: Path
) -> None:
    toxiproxy.add("limit_data", stream="downstream", bytes=20_000_000)
    toxiproxy.add("latency", stream="downstream", latency=20, jitter=10)
    fetched = fetch_model(
        source(stored, toxiproxy.endpoint), into=tmp_path / "into", credentials=credentials
    )
    assert (fetched.folder / "model.safetensors").read_bytes() == LARGE


def test_an_interrupted_download_goes_on_where_it_stopped(
    stored: Bucket, credentials: Path, faulty_s3: FaultyProxy, tmp_path: Path
) -> None:
    def last_range(method: str, path: str) -> bool:
        return downloads(method, path) and counted(faulty_s3) >= 3

    faulty_s3.fail(last_range, times=1000, status=503, code="SlowDown")
    with pytest.raises(UnavailableError):
        fetch_model(
            source(stored, faulty_s3.endpoint), into=tmp_path / "into", credentials=credentials
        )
    faulty_s3.faults.clear()
    faulty_s3.seen.clear()
    listing = inspect_model(source(stored), credentials=credentials)
    # What is there is told from the hole that the last range leaves in the file.
    brought = bytes_there(listing, tmp_path / "into")
    assert listing.size_bytes - RANGE_BYTES - 8192 < brought <= listing.size_bytes
    fetched = fetch_model(
        source(stored, faulty_s3.endpoint), into=tmp_path / "into", credentials=credentials
    )
    assert (fetched.folder / "model.safetensors").read_bytes() == LARGE
    assert counted(faulty_s3) < 3
    faulty_s3.seen.clear()
    again = fetch_model(
        source(stored, faulty_s3.endpoint), into=tmp_path / "into", credentials=credentials
    )
    assert again == fetched
    assert bytes_there(listing, tmp_path / "into") == listing.size_bytes
    assert counted(faulty_s3) == 0


ENDS: dict[str, tuple[int, str, type[WorkerError]]] = {
    "the rights went": (403, "AccessDenied", AccessError),
    "the object went": (404, "NoSuchKey", AccessError),
    "the object changed": (412, "PreconditionFailed", UnavailableError),
}


@pytest.mark.parametrize("end", ENDS)
def test_what_fails_one_range_is_named_whatever_became_of_the_others(
    stored: Bucket, credentials: Path, faulty_s3: FaultyProxy, tmp_path: Path, end: str
) -> None:
    def last_range(method: str, path: str) -> bool:
        return downloads(method, path) and counted(faulty_s3) >= 3

    status, code, expected = ENDS[end]
    faulty_s3.fail(last_range, status=status, code=code)
    with pytest.raises(expected, match=r"model\.safetensors|models/tiny"):
        fetch_model(
            source(stored, faulty_s3.endpoint), into=tmp_path / "into", credentials=credentials
        )
    assert all(f.times == 0 for f in faulty_s3.faults)


def counted(proxy: FaultyProxy) -> int:
    return sum(downloads(method, path) for method, path in proxy.seen)


def test_a_model_that_changes_while_it_is_read_is_named(
    stored: Bucket, credentials: Path, faulty_s3: FaultyProxy, tmp_path: Path
) -> None:
    other = LARGE[:-1] + b"!"
    faulty_s3.fail(downloads, before=lambda: stored.put("models/tiny/model.safetensors", other))
    with pytest.raises(UnavailableError, match="changed in"):
        fetch_model(
            source(stored, faulty_s3.endpoint), into=tmp_path / "into", credentials=credentials
        )


FULL_DISK = """
import json, pathlib, resource, signal, sys
from kubequant.api.data import ModelSource
from kubequant_worker.errors import WorkerError
from kubequant_worker.sources import fetch_model
model, into, credentials = sys.argv[1:]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, 20_000_000))
try:
    fetch_model(ModelSource.model_validate_json(model), into=pathlib.Path(into),
                credentials=pathlib.Path(credentials))
except WorkerError as error:
    print(json.dumps([str(error.reason), error.message, error.advice]))
"""


@pytest.mark.parametrize(
    "begun",
    [
        pytest.param(False, id="when the file is made"),
        pytest.param(True, id="while ranges are written side by side"),
    ],
)
def test_a_full_disk_is_named(
    stored: Bucket, credentials: Path, tmp_path: Path, *, begun: bool
) -> None:
    if begun:
        # Of its full size already, as an earlier run leaves it: only writing can fail.
        partial = tmp_path / "into" / ".partial" / "model.safetensors"
        partial.parent.mkdir(parents=True)
        partial.touch()
        os.truncate(partial, len(LARGE))
    model = source(stored).model_dump_json(by_alias=True, exclude_none=True)
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, model, str(tmp_path / "into"), str(credentials)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    reason, message, advice = json.loads(run.stdout)
    assert reason == FailureReason.DISK_FULL
    assert "no space left" in message
    assert "spec.pod.scratch.size" in advice


@pytest.mark.parametrize(
    ("path", "names"),
    [
        pytest.param("texts", ["train.jsonl"], id="a folder: the files of the split"),
        pytest.param("texts/test.jsonl", ["test.jsonl"], id="one key"),
    ],
)
def test_a_dataset_is_fetched(
    bucket: Bucket, credentials: Path, tmp_path: Path, path: str, names: list[str]
) -> None:
    for name in ("train.jsonl", "test.jsonl", "notes.pdf"):
        bucket.put(f"texts/{name}", name.encode())
    dataset = Dataset.model_validate(
        {"uri": f"s3://{bucket.name}/{path}", "s3": {"endpoint": bucket.server.endpoint}}
    )
    fetched = fetch_dataset(
        dataset, into=tmp_path / "d", credentials=credentials, role="evaluation"
    )
    assert [file.read_bytes().decode() for file in fetched.files] == names


def test_a_dataset_that_is_not_there_is_named(
    bucket: Bucket, credentials: Path, tmp_path: Path
) -> None:
    dataset = Dataset.model_validate(
        {"uri": f"s3://{bucket.name}/none", "s3": {"endpoint": bucket.server.endpoint}}
    )
    with pytest.raises(WorkerError, match=r"spec\.evaluation\.perplexity\.dataset\.uri") as error:
        fetch_dataset(dataset, into=tmp_path, credentials=credentials, role="evaluation")
    assert error.value.reason is FailureReason.DATASET_NOT_FOUND


def test_a_checksum_over_parts_is_computed_across_any_pieces() -> None:
    content = os.urandom(1000)
    digests = [hashlib.md5(content[i : i + 300]).digest() for i in range(0, 1000, 300)]  # noqa: S324
    stated = f"{hashlib.md5(b''.join(digests)).hexdigest()}-4"  # noqa: S324
    for step in (1, 7, 299, 300, 301, 1000):
        check = PieceCheck("md5", [300, 300, 300, 100], stated)
        for start in range(0, 1000, step):
            check.update(content[start : start + step])
        assert check.holds()
    wrong = check.over([300, 300, 300, 100])
    wrong.update(content[::-1])
    assert not wrong.holds()
