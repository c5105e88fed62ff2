"""An artifact in S3 or a server that speaks it.

Every object but the small claim is written as a multipart upload, however short it is: its upload
id is the token that makes "visible now" one small conditional request, and aborting it is what
keeps a writer out for good. A store that answers 501 to conditions, or ignores them, is used
without them, and the probe says so.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import secrets
import threading
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from botocore.exceptions import ClientError

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import AccessError, WorkerError
from kubequant_worker.stores import s3_listing
from kubequant_worker.stores.backend import (
    ConflictError,
    GoneError,
    Probe,
    StagedFile,
    Stat,
    Stored,
)
from kubequant_worker.stores.s3_access import (
    BrokenBodyError,
    NotImplementedByStoreError,
    Patience,
    S3Place,
    broken_bodies,
    connect,
    entity_tag,
    s3_errors,
)
from kubequant_worker.stores.s3_upload import Pace, Uploader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kubequant.api.data import OutputS3Options
    from kubequant_worker.stores import Place

_log = logging.getLogger(__name__)
ABSENT = {"NoSuchKey", "404", "NotFound"}
MISSING = {FailureReason.BUCKET_NOT_FOUND, FailureReason.MODEL_NOT_FOUND}
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".md": "text/markdown; charset=utf-8",
}
READ_TRIES = 4
PIECE_BYTES = 1024 * 1024
WITHOUT_CONDITIONS = (
    "The store knows no conditional writes, so nothing keeps two runs of one digest apart; "
    "do not start a second one while the first runs. What a killed run has uploaded is removed "
    "by a run that starts a week later."
)
WITHOUT_CHECKSUMS = (
    "The store keeps no SHA-256 checksums; it verifies what it receives by signed payloads, and "
    "before the manifest is "
    "written each object's size and ETag are asked for instead."
)


def open_backend(place: Place) -> S3Backend:
    """Return the backend for an s3:// address."""
    return S3Backend(place.uri, place.s3, place.credentials, place.field)


class S3Backend:
    """One prefix of one bucket."""

    def __init__(
        self,
        uri: str,
        options: OutputS3Options | None,
        credentials: Path | None,
        field: str,
        *,
        patience: Patience | None = None,
        pace: Pace | None = None,
    ) -> None:
        """Reach the bucket of `uri` with the role's `credentials`; `field` is what errors name."""
        endpoint = options.endpoint if options else ""
        self._place = S3Place.of(uri, endpoint, field)
        self._pace = pace or Pace()
        self._connection: dict[str, Any] = {
            "endpoint": endpoint,
            "region": options.region if options else "",
            "credentials": credentials,
            "connections": self._pace.workers + 8,
            "patience": patience,
        }
        self._encryption: dict[str, str] = {}
        if options and options.server_side_encryption:
            self._encryption["ServerSideEncryption"] = options.server_side_encryption
        if options and options.kms_key_id:
            self._encryption["SSEKMSKeyId"] = options.kms_key_id
        with s3_errors(self._place, "reading the credentials"):
            self._client: Any = connect(**self._connection, sign_payload=False)
        self._checksums = True
        self._conditions_on_complete = True
        self._uploader: Uploader | None = None
        self._lock = threading.Lock()

    @property
    def uri(self) -> str:
        """The prefix, with a '/' at its end; the bucket's own address where there is none."""
        return f"s3://{self._place.bucket}/{self._place.key('')}"

    def probe(self) -> Probe:
        """Stage and abort a tiny upload, then try the conditions on a tiny object."""
        name = f".probe-{secrets.token_hex(4)}"
        token = self.open_staging(name)
        try:
            self._checksums = self._part_checksum(name, token)
        finally:
            self.discard(name, token)
        notes = [] if self._checksums else [WITHOUT_CHECKSUMS]
        if not self._checksums:
            with s3_errors(self._place, "reading the credentials"):
                self._client = connect(**self._connection, sign_payload=True)
        conditional = self._conditions_hold(name)
        if not conditional:
            notes.append(WITHOUT_CONDITIONS)
        if not self._delete(name):
            notes.append(
                f"The credentials may not delete: {self.uri}{name}, a probe's few bytes, stays."
            )
        return Probe(conditional_writes=conditional, checksums=self._checksums, notes=tuple(notes))

    def read(self, name: str) -> Stored | None:
        """Return a small object, or None where it is absent; broken answers are asked for again."""
        for attempt in range(READ_TRIES):
            try:
                return self._read_once(name)
            except BrokenBodyError:
                if attempt == READ_TRIES - 1:
                    raise
        return None

    def stream(self, name: str) -> Iterator[bytes] | None:
        """Return an object's bytes in pieces of a mebibyte, or None where it is absent."""
        if self.stat(name) is None:
            return None
        return self._pieces(name)

    def create(self, name: str, body: bytes) -> str:
        """Write a small object that must be absent and return its ETag."""
        return self._put(name, body, IfNoneMatch="*")

    def replace(self, name: str, body: bytes, tag: str) -> str:
        """Write a small object that must have the ETag `tag` and return the new one."""
        try:
            return self._put(name, body, IfMatch=tag)
        except AccessError as error:
            if isinstance(error.__cause__, ClientError) and error.reason in MISSING:
                # S3 answers 404 to If-Match where the object is gone.
                raise ConflictError(name) from error
            raise

    def remove(self, name: str, tag: str) -> None:
        """Delete a small object; the condition is left out, since few stores know it on deletes."""
        if (now := self.stat(name)) is not None and now.tag == tag:
            self._delete(name)

    def stat(self, name: str) -> Stat | None:
        """Ask for size, ETag and SHA-256, or return None where the object is absent."""
        with s3_errors(self._place, f"asking for {name}"):
            try:
                answer = self._client.head_object(**self._at(name), ChecksumMode="ENABLED")
            except ClientError as error:
                if error.response["Error"]["Code"] in ABSENT:
                    return None
                raise
        return Stat(answer["ContentLength"], entity_tag(answer), answer.get("ChecksumSHA256"))

    def objects(self) -> dict[str, Stat]:
        """Return every object below the prefix."""
        return s3_listing.objects(self._client, self._place)

    def folders(self, name: str, most: int) -> tuple[str, ...]:
        """Return the first `most` names directly below `name` with objects below them."""
        return s3_listing.folders(self._client, self._place, name, most)

    def open_staging(self, name: str) -> str:
        """Create a multipart upload and return its id."""
        algorithm = {"ChecksumAlgorithm": "SHA256"} if self._checksums else {}
        kind = CONTENT_TYPES.get(PurePosixPath(name).suffix, "application/octet-stream")
        with s3_errors(self._place, f"beginning the upload of {name}"):
            answer = self._client.create_multipart_upload(
                **self._at(name), ContentType=kind, **algorithm, **self._encryption
            )
        return str(answer["UploadId"])

    def fill(
        self,
        name: str,
        token: str,
        source: BinaryIO,
        size_bytes: int,
        on_bytes: Callable[[int], None],
    ) -> StagedFile:
        """Upload the parts; see `s3_upload`."""
        with self._lock:
            if self._uploader is None:
                self._uploader = Uploader(
                    self._client, self._place, self._pace, checksums=self._checksums
                )
        return self._uploader.send(name, token, source, size_bytes, on_bytes)

    def place(self, staged: StagedFile, expected: str | None, *, conditional: bool) -> str:
        """Complete the upload under its condition, and return the object's ETag."""
        condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected}
        if not conditional or not self._conditions_on_complete:
            condition = {}
        try:
            return self._complete(staged, condition)
        except NotImplementedByStoreError:
            if not condition:
                raise
            # Aborted uploads keep a writer out also where this condition is not known.
            self._conditions_on_complete = False
            return self._complete(staged, {})
        except (ConflictError, GoneError, AccessError) as error:
            if isinstance(error, AccessError) and error.reason not in MISSING:
                raise
            # The answer to a first try may have been lost, and its retry refused because it had
            # succeeded.
            now = self.stat(staged.name)
            if now is not None and _is_of(now, staged):
                return now.tag
            if isinstance(error, AccessError):
                raise ConflictError(staged.name) from error
            raise

    def discard(self, name: str, token: str) -> None:
        """Abort an upload."""
        try:
            with s3_errors(self._place, f"aborting the upload of {name}"):
                self._client.abort_multipart_upload(**self._at(name), UploadId=token)
        except GoneError:
            return

    def sweep(self, *, older_than_seconds: float = 0) -> None:
        """Abort uploads below the prefix that are so old; a store that cannot list them keeps them.

        The store's clock is as good as ours, else it had refused what we sign.
        """
        until = datetime.now(UTC) - timedelta(seconds=older_than_seconds)
        try:
            begun = list(s3_listing.uploads(self._client, self._place))
            stale = [
                (name, token) for name, token, at in begun if at <= until or not older_than_seconds
            ]
            for name, token in stale:
                self.discard(name, token)
        except WorkerError as error:
            _log.info("unfinished uploads of earlier runs were not looked for: %s", error)

    def vanish(self) -> None:
        """Do nothing: what is empty does not exist here."""

    def close(self) -> None:
        """Let go of the upload threads and of the connections."""
        if self._uploader is not None:
            self._uploader.close()
        self._client.close()

    def _at(self, name: str) -> dict[str, str]:
        return {"Bucket": self._place.bucket, "Key": self._place.key(name)}

    def _read_once(self, name: str) -> Stored | None:
        with s3_errors(self._place, f"reading {name}"):
            try:
                answer = self._client.get_object(**self._at(name))
            except ClientError as error:
                if error.response["Error"]["Code"] in ABSENT:
                    return None
                raise
        with broken_bodies(self._place, f"reading {name}"):
            body: bytes = answer["Body"].read()
        date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        age = None
        if date:
            age = (parsedate_to_datetime(date) - answer["LastModified"]).total_seconds()
        return Stored(body, entity_tag(answer), age)

    def _pieces(self, name: str) -> Iterator[bytes]:
        with s3_errors(self._place, f"reading {name}"):
            yield from self._client.get_object(**self._at(name))["Body"].iter_chunks(PIECE_BYTES)

    def _put(self, name: str, body: bytes, **condition: str) -> str:
        checksum = {"ChecksumSHA256": _sha256(body)} if self._checksums else {}
        with s3_errors(self._place, f"writing {name}"):
            answer = self._client.put_object(
                **self._at(name), Body=body, **condition, **checksum, **self._encryption
            )
        return entity_tag(answer)

    def _complete(self, staged: StagedFile, condition: dict[str, str]) -> str:
        with s3_errors(self._place, f"completing the upload of {staged.name}"):
            answer = self._client.complete_multipart_upload(
                **self._at(staged.name),
                UploadId=staged.token,
                MultipartUpload={"Parts": list(staged.parts)},
                **condition,
            )
        return entity_tag(answer)

    def _part_checksum(self, name: str, token: str) -> bool:
        """Send one part with a SHA-256 and say whether the store confirms it."""
        body = b"kubequant probes"
        try:
            with s3_errors(self._place, "writing a probe"):
                answer = self._client.upload_part(
                    **self._at(name),
                    UploadId=token,
                    PartNumber=1,
                    Body=body,
                    ChecksumSHA256=_sha256(body),
                )
        except NotImplementedByStoreError:
            return False
        return bool(answer.get("ChecksumSHA256") == _sha256(body))

    def _conditions_hold(self, name: str) -> bool:
        """Say whether the store refuses what its conditions forbid, and allows what they allow."""
        try:
            tag = self.create(name, b"1")
        except NotImplementedByStoreError:
            return False
        try:
            tag = self.replace(name, b"2", tag)
        except (ConflictError, NotImplementedByStoreError):
            return False
        forbidden = (
            lambda: self.create(name, b"3"),
            lambda: self.replace(name, b"4", '"00000000000000000000000000000000"'),
        )
        return all(_is_refused(write) for write in forbidden)

    def _delete(self, name: str) -> bool:
        """Delete an object and say whether that was allowed."""
        try:
            with s3_errors(self._place, f"deleting {name}"):
                self._client.delete_object(**self._at(name))
        except AccessError:
            return False
        return True


def _is_refused(write: Callable[[], str]) -> bool:
    try:
        write()
    except ConflictError:
        return True
    except NotImplementedByStoreError:
        return False
    return False


def _is_of(now: Stat, staged: StagedFile) -> bool:
    """Say whether an object is the one that completing `staged` makes."""
    if now.size_bytes != staged.size_bytes:
        return False
    if now.checksum is not None and staged.checksum is not None:
        return now.checksum == staged.checksum
    return now.tag == _multipart_etag(staged)


def _multipart_etag(staged: StagedFile) -> str:
    """Return the ETag of a multipart object.

    The MD5 of its parts' ETags and their number (not under SSE-KMS).
    """
    parts = [entity_tag(part).strip('"') for part in staged.parts]
    try:
        whole = b"".join(bytes.fromhex(part) for part in parts)
    except ValueError:
        return ""
    return f'"{hashlib.md5(whole, usedforsecurity=False).hexdigest()}-{len(parts)}"'


def _sha256(body: bytes) -> str:
    return base64.b64encode(hashlib.sha256(body).digest()).decode()
