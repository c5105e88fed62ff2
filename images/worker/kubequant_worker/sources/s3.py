"""A model or text in S3 or a server that speaks it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from kubequant_worker.errors import AccessError
from kubequant_worker.sources.mounted import NOT_FOUND
from kubequant_worker.sources.s3_download import Downloader
from kubequant_worker.sources.source import Listing, RemoteFile
from kubequant_worker.stores.s3_access import Patience, S3Place, connect, entity_tag, s3_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from kubequant_worker.file_digest import FileDigest
    from kubequant_worker.sources.source import Origin

# A range that stalls is asked for again; waiting long for it only delays that.
PATIENCE = Patience(read_seconds=30)


def open_source(origin: Origin) -> S3Source:
    """Return the source for an s3:// address."""
    return S3Source(origin)


class S3Source:
    """The objects below one prefix, or one object."""

    copies: ClassVar[bool] = True

    def __init__(self, origin: Origin) -> None:
        """Reach the bucket of `origin` with its credentials."""
        endpoint = origin.s3.endpoint if origin.s3 else ""
        self._origin = origin
        self._place = S3Place.of(
            origin.uri, endpoint, f"{origin.field}.uri", NOT_FOUND[origin.kind]
        )
        with s3_errors(self._place, "reading the credentials"):
            self._client: Any = connect(
                endpoint=endpoint,
                region=origin.s3.region if origin.s3 else "",
                credentials=origin.credentials,
                patience=PATIENCE,
            )
        # The folder that the listed names are below.
        self._base = self._place.prefix

    def listing(self) -> Listing:
        """Return the objects below the prefix, or the one object of that very key."""
        prefix = self._place.prefix
        entries: list[dict[str, Any]] = []
        with s3_errors(self._place, "listing the prefix"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._place.bucket, Prefix=prefix
            )
            for page in pages:
                entries += page.get("Contents", ())
        below = f"{prefix}/" if prefix else ""
        chosen = [entry for entry in entries if entry["Key"] == prefix]
        if chosen:
            self._base = prefix.rpartition("/")[0]
        else:
            chosen = [entry for entry in entries if entry["Key"].startswith(below)]
        start = len(self._base) + 1 if self._base else 0
        files = tuple(
            RemoteFile(entry["Key"][start:], entry["Size"], tag=entity_tag(entry))
            for entry in chosen
            # Some programs write an empty object as a folder.
            if not entry["Key"].endswith("/")
        )
        if not files:
            raise AccessError(
                f"{self._origin.field}.uri: there is nothing at {self._origin.uri}.",
                reason=NOT_FOUND[self._origin.kind],
                advice="Correct the address, or the endpoint in s3.",
            )
        return Listing(None, files)

    def fetch(
        self,
        files: Sequence[RemoteFile],
        listing: Listing,  # noqa: ARG002 - S3 has no commits; each file's ETag is asked for instead
        into: Path,
        on_bytes: Callable[[int], None],
    ) -> Sequence[FileDigest]:
        """Download `files` in concurrent ranges; see `s3_download`."""
        place = S3Place(
            self._place.bucket,
            self._base,
            self._place.endpoint,
            self._place.field,
            self._place.missing,
        )
        return Downloader(self._client, place, into).fetch(files, on_bytes)
