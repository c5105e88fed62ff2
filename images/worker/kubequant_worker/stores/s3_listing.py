"""What lies below a prefix of a bucket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kubequant_worker.stores.backend import Stat
from kubequant_worker.stores.s3_access import S3Place, entity_tag, s3_errors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime


def objects(client: Any, place: S3Place) -> dict[str, Stat]:
    """Return every object below the prefix, by its name there, without checksums."""
    return {
        entry["Key"].removeprefix(place.key("")): Stat(entry["Size"], entity_tag(entry))
        for page in _pages(client, place)
        for entry in page.get("Contents", ())
    }


def folders(client: Any, place: S3Place, name: str, most: int) -> tuple[str, ...]:
    """Return the first `most` names directly below `name` that have something below them."""
    start = place.key(f"{name}/" if name else "")
    found = [
        entry["Prefix"].removeprefix(start).rstrip("/")
        for page in _pages(client, place, Prefix=start, Delimiter="/", MaxKeys=most)
        for entry in page.get("CommonPrefixes", ())
    ]
    return tuple(found[:most])


def uploads(client: Any, place: S3Place) -> Iterator[tuple[str, str, datetime]]:
    """Yield each unfinished upload below the prefix: its name there, its id, its beginning."""
    words = {"Bucket": place.bucket, "Prefix": place.key("")}
    with s3_errors(place, "listing unfinished uploads"):
        for page in client.get_paginator("list_multipart_uploads").paginate(**words):
            for entry in page.get("Uploads", ()):
                name = entry["Key"].removeprefix(place.key(""))
                yield name, entry["UploadId"], entry["Initiated"]


def _pages(client: Any, place: S3Place, **asked: object) -> Iterator[Mapping[str, Any]]:
    words = {"Bucket": place.bucket, "Prefix": place.key(""), **asked}
    with s3_errors(place, "listing the prefix"):
        yield from client.get_paginator("list_objects_v2").paginate(**words)
