"""A manifest from S3 to S3: published once, checked at its start, true under two runs at once."""

from __future__ import annotations

import hashlib
import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from tests.worker.run.manifests import SECRET, TINY, command, environment, kubequant, manifest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.testbed.storage import Bucket


@pytest.fixture
def model_bucket(bucket: Bucket) -> Bucket:
    """A bucket that holds the tiny model below `tiny-llama/`."""
    for path in TINY.iterdir():
        bucket.put(f"tiny-llama/{path.name}", path.read_bytes())
    return bucket


def spec_for(bucket: Bucket, output: str = "out") -> dict[str, Any]:
    endpoint = {"endpoint": bucket.server.endpoint, "region": "us-east-1"}
    return {
        "model": {"uri": f"s3://{bucket.name}/tiny-llama", "s3": endpoint},
        "output": {"uri": f"s3://{bucket.name}/{output}", "s3": endpoint},
        "gguf": {"types": ["Q8_0", "Q4_0"]},
    }


def keys_of(bucket: Bucket) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": bucket.server.access_key,
        "AWS_SECRET_ACCESS_KEY": bucket.server.secret_key,
    }


def artifact_keys(bucket: Bucket, output: str = "out") -> list[str]:
    return bucket.keys(f"{output}/")


def assert_the_manifest_is_true(bucket: Bucket, output: str = "out") -> None:
    """Check every object that the one manifest names, byte by byte."""
    (key,) = [key for key in artifact_keys(bucket, output) if key.endswith("/manifest.json")]
    prefix = key.removesuffix("manifest.json")
    files = json.loads(bucket.get(key))["files"]
    assert [file["path"] for file in files] == [
        "README.md",
        "provenance.json",
        "report.html",
        "report.json",
        "tiny-Q4_0.gguf",
        "tiny-Q8_0.gguf",
    ]
    for file in files:
        content = bucket.get(prefix + file["path"])
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["size"], file["sha256"])


def test_a_run_from_s3_to_s3_publishes_once_and_is_found_again(
    model_bucket: Bucket, tmp_path: Path
) -> None:
    path = manifest(tmp_path, **spec_for(model_bucket))

    first = kubequant("run", path, "--json", **keys_of(model_bucket))
    assert first.code == 0, first.err
    assert_the_manifest_is_true(model_bucket)
    before = {key: model_bucket.get(key) for key in artifact_keys(model_bucket)}
    second = kubequant("run", path, "--json", **keys_of(model_bucket))

    assert (second.code, second.report["outcome"]) == (0, "AlreadyPublished")
    assert {key: model_bucket.get(key) for key in artifact_keys(model_bucket)} == before
    assert model_bucket.unfinished() == []
    uri = first.report["artifact"]["uri"]
    shown = kubequant(
        "report", uri, "--endpoint", model_bucket.server.endpoint, "--json", **keys_of(model_bucket)
    )
    assert shown.code == 0, shown.err
    assert [v["name"] for v in shown.report["variants"]] == ["Q8_0", "Q4_0"]


def test_another_run_takes_the_originals_numbers_from_the_one_before(
    model_bucket: Bucket, tmp_path: Path
) -> None:
    # More tokens than those whose logits are needed again.
    evaluation = {"perplexity": {"maxTokens": 16_384}, "skip": ["Generations"]}
    spec = {**spec_for(model_bucket), "evaluation": evaluation}
    reports = []
    for kind in ("Q8_0", "Q4_0"):
        path = manifest(tmp_path, **{**spec, "gguf": {"types": [kind]}})
        done = kubequant("run", path, "--json", **keys_of(model_bucket))
        assert done.code == 0, done.err
        reports.append(done.report)
    measured, taken = (report["original"] for report in reports)

    assert measured["takenFrom"] == ""
    assert taken["takenFrom"] == f"{reports[0]['artifact']['uri']}report.json"
    assert taken["perplexity"] == measured["perplexity"]
    assert taken["perplexityDetail"] == measured["perplexityDetail"]
    assert 0 < float(reports[1]["variants"][0]["meanKLDivergence"]) < 0.1


def test_a_bucket_that_does_not_exist_is_found_before_anything_is_fetched(
    model_bucket: Bucket, tmp_path: Path
) -> None:
    spec = spec_for(model_bucket)
    spec["output"]["uri"] = "s3://there-is-none/out"
    path = manifest(tmp_path, **spec)

    ended = kubequant("run", path, "--json", "--work-dir", tmp_path / "w", **keys_of(model_bucket))

    assert ended.code == 12
    assert ended.report["failure"]["reason"] == "BucketNotFound"
    assert "there-is-none" in ended.report["failure"]["message"]
    assert list((tmp_path / "w").rglob("*.safetensors")) == []


def test_wrong_keys_are_refused_with_a_sentence_and_are_in_no_output(
    model_bucket: Bucket, tmp_path: Path
) -> None:
    path = manifest(tmp_path, **spec_for(model_bucket))
    keys = {**keys_of(model_bucket), "AWS_SECRET_ACCESS_KEY": SECRET}

    ended = kubequant("run", path, "--json", "--work-dir", tmp_path / "w", **keys)

    assert ended.code == 12
    assert ended.report["failure"]["reason"] == "AccessDenied"
    logged = (tmp_path / "w" / "worker.log").read_text()
    assert SECRET not in ended.out + ended.err + logged


def test_of_two_runs_of_one_manifest_at_once_one_publishes_and_the_other_says_so(
    model_bucket: Bucket, tmp_path: Path
) -> None:
    path = manifest(tmp_path, **spec_for(model_bucket))
    variables = environment(**keys_of(model_bucket))

    runs = [
        subprocess.Popen(
            command("run", path, "--json"),
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    reports = [json.loads(run.communicate(timeout=300)[0]) for run in runs]

    ends = {
        (run.returncode, report.get("failure", {}).get("reason", report["outcome"]))
        for run, report in zip(runs, reports, strict=True)
    }
    assert (0, "Published") in ends
    assert len(ends & {(0, "AlreadyPublished"), (20, "AnotherPublisher")}) == 1
    assert_the_manifest_is_true(model_bucket)
