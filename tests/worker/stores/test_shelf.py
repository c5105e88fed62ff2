"""What a run finds of the runs before it, below one output address."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.worker.stores.places import SHORT

from kubequant.api.data import OutputS3Options
from kubequant_worker.stores import Place, Shelf, open_shelf
from kubequant_worker.stores.s3 import S3Backend

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.testbed.storage import Bucket

ARTIFACTS = ("llama/aaaa0001", "llama/aaaa0002", "other/bbbb0001")


@pytest.fixture(params=["s3", "folder"])
def shelf(
    request: pytest.FixtureRequest, tmp_path: Path
) -> tuple[Callable[[], Shelf], Callable[[str, bytes], None]]:
    """Return what opens the shelf, and what puts a file below it."""
    if request.param == "s3":
        bucket: Bucket = request.getfixturevalue("bucket")
        credentials: Path = request.getfixturevalue("credentials")
        options = OutputS3Options(endpoint=bucket.server.endpoint)
        uri, field = f"s3://{bucket.name}/models", "spec.output.uri"
        return (
            lambda: Shelf(S3Backend(uri, options, credentials / "output", field, patience=SHORT)),
            lambda name, body: bucket.put(f"models/{name}", body),
        )

    def plant(name: str, body: bytes) -> None:
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)

    return lambda: open_shelf(Place(f"file://{tmp_path}/out")), plant


def found(opened: Callable[[], Shelf], first: str) -> list[tuple[str, bytes]]:
    one = opened()
    try:
        return [("/".join(uri.split("/")[-3:-1]), body) for uri, body in one.reports(first)]
    finally:
        one.close()


def test_reports_of_the_same_name_come_before_the_others(
    shelf: tuple[Callable[[], Shelf], Callable[[str, bytes], None]],
) -> None:
    opened, plant = shelf
    for folder in ARTIFACTS:
        plant(f"{folder}/report.json", folder.encode())
        plant(f"{folder}/manifest.json", b"{}")

    by_other = found(opened, "other")

    assert by_other[0] == ("other/bbbb0001", b"other/bbbb0001")
    assert {folder for folder, _ in by_other} == set(ARTIFACTS)
    assert [folder for folder, _ in found(opened, "llama")][:2] == list(ARTIFACTS[:2])


def test_a_report_without_a_manifest_does_not_exist(
    shelf: tuple[Callable[[], Shelf], Callable[[str, bytes], None]],
) -> None:
    opened, plant = shelf
    plant("llama/aaaa0001/report.json", b"unfinished")
    plant("llama/aaaa0002/manifest.json", b"{}")

    assert found(opened, "llama") == []


def test_where_nothing_was_published_nothing_is_found(
    shelf: tuple[Callable[[], Shelf], Callable[[str, bytes], None]],
) -> None:
    assert found(shelf[0], "llama") == []


def test_what_cannot_be_listed_counts_as_absent(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "AWS_ACCESS_KEY_ID").write_text("nobody")
    (tmp_path / "output" / "AWS_SECRET_ACCESS_KEY").write_text("wrong")
    options = OutputS3Options(endpoint=bucket.server.endpoint)
    uri = f"s3://{bucket.name}/models"
    backend = S3Backend(uri, options, tmp_path / "output", "spec.output.uri", patience=SHORT)

    assert found(lambda: Shelf(backend), "llama") == []


def test_an_address_below_a_bucket_without_a_prefix_is_the_object_s_own(
    bucket: Bucket, credentials: Path
) -> None:
    bucket.put("llama/aaaa0001/report.json", b"{}")
    bucket.put("llama/aaaa0001/manifest.json", b"{}")
    options = OutputS3Options(endpoint=bucket.server.endpoint)
    uri = f"s3://{bucket.name}"
    shelf = Shelf(S3Backend(uri, options, credentials / "output", "spec.output.uri"))

    ((address, _),) = shelf.reports("llama")
    shelf.close()

    assert address == f"s3://{bucket.name}/llama/aaaa0001/report.json"
