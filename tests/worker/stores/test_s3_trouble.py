"""What a bad bucket, bad credentials and a bad network get.

A sentence, and no manifest or a true one.
"""

from __future__ import annotations

import json
import logging
import re
import time
import traceback
from typing import TYPE_CHECKING, Any

import pytest
from tests.testbed.processes import add_account
from tests.testbed.storage import write_credentials
from tests.worker.stores.places import DIGEST, NAME, PREFIX, SHORT, s3_store

from kubequant.api.data import OutputS3Options
from kubequant.api.outcome import ExitCode, FailureReason
from kubequant_worker.errors import AccessError, UnavailableError, WorkerError
from kubequant_worker.manifest import Manifest
from kubequant_worker.stores import Place, Store, Timing, open_store
from kubequant_worker.stores.s3_upload import MOST_PARTS, SMALLEST_PART, Budget, part_size

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.testbed.faulty import FaultyProxy
    from tests.testbed.processes import Toxiproxy
    from tests.testbed.storage import Bucket

WEIGHTS = bytes(range(256)) * 60_000  # 15 MB
BASE = f"models/{PREFIX}/"


def publish(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(WEIGHTS)
    with store.claim() as publication:
        publication.add(path, "model.gguf")
        publication.add_bytes(b"{}", "report.json")
        manifest = Manifest.of(NAME, DIGEST, publication.uploaded())
        publication.commit(manifest.to_bytes())


def assert_none_or_true(bucket: Bucket, credentials: Path) -> bool:
    """Read past all proxies; say whether the artifact is there."""
    store = s3_store(bucket, credentials)
    published = store.published()
    if published is not None:
        store.verify()
    store.close()
    return published is not None


def test_a_bucket_that_does_not_exist_is_named_by_the_probe(
    bucket: Bucket, credentials: Path
) -> None:
    place = Place(
        "s3://no-such-bucket/models",
        OutputS3Options(endpoint=bucket.server.endpoint),
        credentials / "output",
    )
    with pytest.raises(AccessError, match="no bucket 'no-such-bucket'") as error:
        open_store(place, name=NAME, digest=DIGEST).probe()
    assert error.value.reason is FailureReason.BUCKET_NOT_FOUND
    assert error.value.exit_code is ExitCode.ACCESS


@pytest.mark.parametrize(
    ("access", "secret", "words"),
    [
        pytest.param("nobody-known", "a-secret-of-nobody", "access key id is not known", id="key"),
        pytest.param("", "a-wrong-secret-value", "secret access key does not belong", id="secret"),
    ],
)
def test_wrong_keys_are_told_apart_and_never_shown(  # noqa: PLR0917 - fixtures and a case
    bucket: Bucket,
    tmp_path: Path,
    access: str,
    secret: str,
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    keys = write_credentials(tmp_path, "output", access or bucket.server.access_key, secret)
    with pytest.raises(AccessError, match=words) as error:
        s3_store(bucket, keys).probe()
    said = "".join(traceback.format_exception(error.value)) + caplog.text + error.value.advice
    assert secret not in said


def test_half_a_pair_of_keys_is_named(bucket: Bucket, tmp_path: Path) -> None:
    keys = write_credentials(tmp_path, "output", "access", "secret")
    (keys / "output" / "AWS_SECRET_ACCESS_KEY").unlink()
    with pytest.raises(AccessError, match="only one of AWS_ACCESS_KEY_ID"):
        s3_store(bucket, keys)


def test_a_bucket_that_refuses_writes_is_found_by_the_probe(bucket: Bucket, tmp_path: Path) -> None:
    add_account(bucket.server, f"reader-{bucket.name}", "reader-secret-0123456789")
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": [f"reader-{bucket.name}"]},
        "Action": ["s3:GetObject", "s3:ListBucket"],
        "Resource": [f"arn:aws:s3:::{bucket.name}", f"arn:aws:s3:::{bucket.name}/*"],
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    bucket.client.put_bucket_policy(Bucket=bucket.name, Policy=policy)
    keys = write_credentials(
        tmp_path, "output", f"reader-{bucket.name}", "reader-secret-0123456789"
    )
    store = s3_store(bucket, keys)
    assert store.published() is None
    with pytest.raises(AccessError, match="not allowed to do this") as error:
        store.probe()
    assert error.value.reason is FailureReason.ACCESS_DENIED
    assert "s3:PutObject" in error.value.advice
    assert bucket.keys() == []


def test_an_endpoint_where_nobody_listens_is_unavailable(
    bucket: Bucket, credentials: Path, toxiproxy: Toxiproxy
) -> None:
    toxiproxy.enable(enabled=False)
    with pytest.raises(UnavailableError, match="could not be reached") as error:
        s3_store(bucket, credentials, endpoint=toxiproxy.endpoint).probe()
    assert error.value.exit_code is ExitCode.UNAVAILABLE


def test_an_endpoint_that_never_answers_is_given_up(
    bucket: Bucket, credentials: Path, toxiproxy: Toxiproxy
) -> None:
    toxiproxy.add("timeout", timeout=0)
    impatient = SHORT.__class__(connect_seconds=1, read_seconds=0.5, tries=2)
    started = time.monotonic()
    with pytest.raises(UnavailableError, match="fell silent"):
        s3_store(bucket, credentials, endpoint=toxiproxy.endpoint, patience=impatient).probe()
    assert time.monotonic() - started < 20


# id -> toxics, each with its attributes
NETWORKS: dict[str, list[dict[str, Any]]] = {
    "connections are cut after some megabytes": [{"kind": "limit_data", "bytes": 6_000_000}],
    "answers come late and in slices": [
        {"kind": "latency", "stream": "downstream", "latency": 60, "jitter": 30},
        {"kind": "slicer", "stream": "downstream", "average_size": 64, "delay": 10},
    ],
    "every fourth connection is reset": [{"kind": "reset_peer", "toxicity": 0.25, "timeout": 20}],
    "every fourth connection stalls": [{"kind": "timeout", "toxicity": 0.25, "timeout": 0}],
}


@pytest.mark.parametrize("network", NETWORKS)
def test_a_bad_network_leaves_no_manifest_or_a_true_one(
    bucket: Bucket, credentials: Path, toxiproxy: Toxiproxy, tmp_path: Path, network: str
) -> None:
    for toxic in NETWORKS[network]:
        toxiproxy.add(**toxic)
    store = s3_store(bucket, credentials, endpoint=toxiproxy.endpoint)
    try:
        publish(store, tmp_path)
    except WorkerError as error:
        assert error.exit_code is ExitCode.UNAVAILABLE  # noqa: PT017 - both endings are right
        assert not assert_none_or_true(bucket, credentials)
    else:
        assert assert_none_or_true(bucket, credentials)


@pytest.mark.parametrize("name", ["model.gguf", "manifest.json"])
@pytest.mark.parametrize(
    ("status", "code"), [(404, "NoSuchUpload"), (412, "PreconditionFailed")], ids=["404", "412"]
)
def test_a_completion_whose_answer_was_lost_is_known_by_what_is_there(  # noqa: PLR0917 - a case
    bucket: Bucket,
    credentials: Path,
    faulty_s3: FaultyProxy,
    tmp_path: Path,
    name: str,
    status: int,
    code: str,
) -> None:
    faulty_s3.fail(completes(name), lose_answer=True)
    faulty_s3.fail(completes(name), status=status, code=code)
    publish(s3_store(bucket, credentials, endpoint=faulty_s3.endpoint), tmp_path)
    assert assert_none_or_true(bucket, credentials)


@pytest.mark.parametrize("earlier", [0, 1, 3], ids=["created", "renewed", "registered"])
def test_a_claim_whose_answer_was_lost_is_known_as_our_own(
    bucket: Bucket, credentials: Path, faulty_s3: FaultyProxy, earlier: int
) -> None:
    patient = Timing(stale_seconds=100, renew_seconds=0.2, poll_seconds=0.1)
    store = s3_store(bucket, credentials, endpoint=faulty_s3.endpoint, timing=patient)
    store.probe()
    faulty_s3.fail(writes_claim, skip=earlier, lose_answer=True)
    waits: list[str] = []
    with store.claim(on_wait=waits.append) as publication:
        time.sleep(0.5)
        publication.add_bytes(b"{}", "report.json")
        manifest = Manifest.of(NAME, DIGEST, publication.uploaded())
        publication.commit(manifest.to_bytes())
    assert waits == []
    assert assert_none_or_true(bucket, credentials)
    assert faulty_s3.faults[0].times == 0


def is_part(method: str, path: str) -> bool:
    return method == "PUT" and "partNumber" in path and "model.gguf" in path


def completes(name: str) -> Callable[[str, str], bool]:
    return lambda method, path: method == "POST" and "uploadId" in path and name in path


def writes_claim(method: str, path: str) -> bool:
    return method == "PUT" and path.partition("?")[0].endswith(".claim")


@pytest.mark.parametrize(
    ("matches", "what"),
    [
        pytest.param(is_part, {"status": 500, "code": "InternalError"}, id="parts get 500"),
        pytest.param(is_part, {"status": 503, "code": "SlowDown"}, id="parts get 503"),
        pytest.param(is_part, {"spoil_request": True}, id="parts arrive with a flipped bit"),
        pytest.param(
            completes("model.gguf"), {"status": 503, "code": "SlowDown"}, id="completing gets 503"
        ),
        pytest.param(
            completes("model.gguf"), {"lose_answer": True}, id="a completion's answer is lost"
        ),
        pytest.param(
            completes("manifest"), {"lose_answer": True}, id="the manifest's answer is lost"
        ),
        pytest.param(writes_claim, {"lose_answer": True}, id="the claim's answer is lost"),
        pytest.param(
            writes_claim, {"status": 500, "code": "InternalError"}, id="the claim gets 500"
        ),
    ],
)
def test_what_fails_twice_is_tried_again_and_published_true(  # noqa: PLR0917 - as above
    bucket: Bucket,
    credentials: Path,
    faulty_s3: FaultyProxy,
    tmp_path: Path,
    matches: Callable[[str, str], bool],
    what: dict[str, object],
) -> None:
    faulty_s3.fail(matches, times=1 if "lose_answer" in what else 2, **what)
    publish(s3_store(bucket, credentials, endpoint=faulty_s3.endpoint), tmp_path)
    assert all(fault.times == 0 for fault in faulty_s3.faults)
    assert assert_none_or_true(bucket, credentials)
    assert bucket.unfinished() == []
    assert sorted(bucket.keys(BASE)) == [
        f"{BASE}manifest.json",
        f"{BASE}model.gguf",
        f"{BASE}report.json",
    ]


@pytest.mark.parametrize(
    "matches",
    [is_part, completes("model.gguf"), completes("manifest")],
    ids=["parts", "completing a file", "completing the manifest"],
)
def test_a_store_that_keeps_failing_is_unavailable_and_gets_no_manifest(
    bucket: Bucket,
    credentials: Path,
    faulty_s3: FaultyProxy,
    tmp_path: Path,
    matches: Callable[[str, str], bool],
) -> None:
    faulty_s3.fail(matches, times=1000, status=503, code="SlowDown")
    with pytest.raises(UnavailableError, match="kept failing"):
        publish(s3_store(bucket, credentials, endpoint=faulty_s3.endpoint), tmp_path)
    assert not assert_none_or_true(bucket, credentials)
    assert bucket.unfinished() == []
    assert f"{BASE}.claim" not in bucket.keys(BASE)


def test_an_object_changed_before_the_manifest_is_noticed(
    bucket: Bucket, credentials: Path, faulty_s3: FaultyProxy, tmp_path: Path
) -> None:
    def asks(method: str, path: str) -> bool:
        return method == "HEAD" and path.endswith("model.gguf")

    other = WEIGHTS[:-1] + b"!"
    faulty_s3.fail(asks, before=lambda: bucket.put(f"{BASE}model.gguf", other))
    with pytest.raises(UnavailableError, match="is not what was uploaded"):
        publish(s3_store(bucket, credentials, endpoint=faulty_s3.endpoint), tmp_path)
    assert not assert_none_or_true(bucket, credentials)


def test_a_store_without_conditional_writes_is_used_and_the_probe_says_so(
    bucket: Bucket, credentials: Path, faulty_s3: FaultyProxy, tmp_path: Path
) -> None:
    def is_probe(method: str, path: str) -> bool:
        return method == "PUT" and ".probe" in path and "partNumber" not in path

    faulty_s3.fail(is_probe, times=100, status=501, code="NotImplemented")
    store = s3_store(bucket, credentials, endpoint=faulty_s3.endpoint)
    probe = store.probe()
    assert not probe.conditional_writes
    assert "no conditional writes" in probe.notes[0]
    publish(store, tmp_path)
    assert assert_none_or_true(bucket, credentials)


def test_without_conditional_writes_only_uploads_of_long_ago_are_aborted(
    bucket: Bucket, credentials: Path, faulty_s3: FaultyProxy
) -> None:
    def is_probe(method: str, path: str) -> bool:
        return method == "PUT" and ".probe" in path and "partNumber" not in path

    def lists_uploads(method: str, path: str) -> bool:
        return method == "GET" and "uploads" in path

    def eight_days_ago(answer: bytes) -> bytes:
        then = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 8 * 86400)).encode()
        made = rb"<Initiated>[^<]*</Initiated>"
        return re.sub(made, b"<Initiated>" + then + b"</Initiated>", answer, count=1)

    for name in ("a-dead.gguf", "b-alive.gguf"):
        bucket.client.create_multipart_upload(Bucket=bucket.name, Key=f"{BASE}{name}")
    faulty_s3.fail(is_probe, times=100, status=501, code="NotImplemented")
    faulty_s3.fail(lists_uploads, rewrite_answer=eight_days_ago)
    with s3_store(bucket, credentials, endpoint=faulty_s3.endpoint).claim():
        assert bucket.unfinished() == [f"{BASE}b-alive.gguf"]


def test_a_store_that_leaves_out_the_quotes_of_a_completed_upload_is_published_to(
    bucket: Bucket, credentials: Path, faulty_s3: FaultyProxy, tmp_path: Path
) -> None:
    # Ceph RGW: quotes in the header of a HEAD, none in the answer that completes an upload.
    def bare(answer: bytes) -> bytes:
        found = re.sub(
            rb"<ETag>(?:&#34;|&quot;|\")(.*?)(?:&#34;|&quot;|\")</ETag>",
            rb"<ETag>\1</ETag>",
            answer,
        )
        assert found != answer
        return found

    faulty_s3.fail(completes(""), times=100, rewrite_answer=bare)
    publish(s3_store(bucket, credentials, endpoint=faulty_s3.endpoint), tmp_path)
    assert assert_none_or_true(bucket, credentials)
    assert faulty_s3.faults[0].times < 100


def test_the_uploads_of_a_dead_run_are_aborted(bucket: Bucket, credentials: Path) -> None:
    bucket.client.create_multipart_upload(Bucket=bucket.name, Key=f"{BASE}old.gguf")
    bucket.client.create_multipart_upload(Bucket=bucket.name, Key="models/other/old.gguf")
    with s3_store(bucket, credentials).claim():
        assert bucket.unfinished() == ["models/other/old.gguf"]


def test_no_two_uploads_draw_the_same_parts_so_etags_never_repeat() -> None:
    drawn = {part_size(2_000_000_000) for _ in range(20)}
    assert len(drawn) > 15


@pytest.mark.parametrize("size", [0, 1, SMALLEST_PART, SMALLEST_PART + 1, 9_000_000, 10**12])
def test_parts_are_within_the_limits_of_s3(size: int) -> None:
    part = part_size(size)
    assert -(-size // part) <= MOST_PARTS
    assert part >= min(SMALLEST_PART, max(size, 1))


def test_a_budget_gives_no_more_than_it_has() -> None:
    budget = Budget(10)
    budget.take(6)
    budget.take(4)
    budget.give(6)
    budget.take(6)
    budget.give(4)
    budget.give(6)
    budget.take(100)
