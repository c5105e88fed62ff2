"""Multipart uploads with bounded memory, each byte read once.

One thread per file reads part after part into buffers of a fixed pool and hashes the file as a
whole; a pool of threads hashes each part, which is the checksum that the server verifies, and sends
it. The pool's size bounds the memory whatever the files' sizes and number.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import secrets
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from kubequant_worker.errors import BadRequestError
from kubequant_worker.stores.backend import StagedFile
from kubequant_worker.stores.s3_access import S3Place, SpoiledError, s3_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

MIB = 1024 * 1024
# S3's limits, https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
SMALLEST_PART = 5 * MIB
MOST_PARTS = 10_000
LARGEST_PART = 160 * MIB
SPOILED_TRIES = 4


@dataclass(frozen=True, slots=True)
class Pace:
    """How uploads use memory and connections.

    At most about `buffers` x `part_bytes` bytes are held.
    """

    part_bytes: int = 8 * MIB
    buffers: int = 6
    workers: int = 4


def part_size(size_bytes: int, usual: int = 8 * MIB) -> int:
    """Return the length of every part but the last of a file, chosen at random within a mebibyte.

    A multipart object's ETag depends on where its parts end. A size that nobody else draws makes
    the ETag of each upload its own, so that a condition on an earlier ETag never holds by chance of
    equal bytes. Files that fit one part have no such freedom; there, discarding the tokens alone
    keeps old writers out (see `backend`). All parts but the last are equal, as some stores ask.
    """
    if size_bytes <= SMALLEST_PART:
        return max(size_bytes, 1)
    needed = -(-size_bytes // (MOST_PARTS - 100))
    if needed > LARGEST_PART:
        raise BadRequestError(f"a file of {size_bytes} bytes is larger than this uploader can send")
    base = max(usual - MIB, needed, SMALLEST_PART)
    largest = min(base + MIB, size_bytes - 1)
    return base + secrets.randbelow(largest - base + 1) if largest > base else SMALLEST_PART


class Budget:
    """Counts bytes that are held, and lets nobody have more than the limit together."""

    def __init__(self, limit: int) -> None:
        """Allow `limit` bytes at once; one request for more than that is let through alone."""
        self._limit = limit
        self._held = 0
        self._changed = threading.Condition()

    def take(self, amount: int) -> None:
        """Wait until `amount` more bytes may be held."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + amount <= self._limit)
            self._held += amount

    def give(self, amount: int) -> None:
        """Say that `amount` bytes are no longer held."""
        with self._changed:
            self._held -= amount
            self._changed.notify_all()


class Uploader:
    """Sends the parts of all files of one publication."""

    def __init__(self, client: Any, place: S3Place, pace: Pace, *, checksums: bool) -> None:
        """Send through `client`; `checksums` says whether the store keeps SHA-256 checksums."""
        self._client = client
        self._place = place
        self._pace = pace
        self._checksums = checksums
        self._pool = ThreadPoolExecutor(pace.workers, thread_name_prefix="upload")
        self._budget = Budget(pace.buffers * pace.part_bytes)

    def close(self) -> None:
        """Let the threads go once their requests have ended."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def send(
        self,
        name: str,
        token: str,
        source: BinaryIO,
        size_bytes: int,
        on_bytes: Callable[[int], None],
    ) -> StagedFile:
        """Send all of `source` as the parts of upload `token` and return what completes it."""
        length = part_size(size_bytes, self._pace.part_bytes)
        whole = hashlib.sha256()
        parts: list[Future[tuple[bytes, CompletedPartTypeDef]]] = []
        failed = threading.Event()

        def ended(part: Future[tuple[bytes, CompletedPartTypeDef]], amount: int) -> None:
            self._budget.give(amount)
            if part.cancelled() or part.exception() is not None:
                failed.set()

        sent = 0
        while (sent < size_bytes or not parts) and not failed.is_set():
            amount = min(length, size_bytes - sent)
            self._budget.take(amount)
            buffer = _read(name, source, amount)
            part = self._pool.submit(self._send_part, name, token, len(parts) + 1, buffer, on_bytes)
            part.add_done_callback(functools.partial(ended, amount=amount))
            parts.append(part)
            whole.update(buffer)
            del buffer
            sent += amount
        if failed.is_set():
            for part in parts:
                part.cancel()
        done = [part.result() for part in parts if not part.cancelled()]
        return StagedFile(
            name=name,
            token=token,
            size_bytes=size_bytes,
            sha256=whole.hexdigest(),
            checksum=_composite([digest for digest, _ in done]) if self._checksums else None,
            parts=tuple(answer for _, answer in done),
        )

    def _send_part(
        self,
        name: str,
        token: str,
        number: int,
        buffer: bytearray,
        on_bytes: Callable[[int], None],
    ) -> tuple[bytes, CompletedPartTypeDef]:
        """Send one part.

        The server compares the SHA-256, which is a signed header, with what it received.
        """
        digest = hashlib.sha256(buffer).digest()
        text = base64.b64encode(digest).decode()
        checksum = {"ChecksumSHA256": text} if self._checksums else {}
        for attempt in range(SPOILED_TRIES):
            try:
                with s3_errors(self._place, f"uploading {name}"):
                    answer = self._client.upload_part(
                        Bucket=self._place.bucket,
                        Key=self._place.key(name),
                        UploadId=token,
                        PartNumber=number,
                        Body=buffer,
                        **checksum,
                    )
                break
            except SpoiledError:
                # botocore tries again what failed, but not what a checksum refused.
                if attempt == SPOILED_TRIES - 1:
                    raise
        on_bytes(len(buffer))
        completed: CompletedPartTypeDef = {"PartNumber": number, "ETag": answer["ETag"]}
        if self._checksums:
            completed["ChecksumSHA256"] = text
        return digest, completed


def _read(name: str, source: BinaryIO, amount: int) -> bytearray:
    """Read exactly `amount` bytes, which a raw file may give in pieces."""
    buffer = bytearray(amount)
    view, filled = memoryview(buffer), 0
    while filled < amount:
        count = source.readinto(view[filled:])  # type: ignore[attr-defined]
        if not count:
            raise ValueError(f"{name} became shorter while it was uploaded")
        filled += count
    view.release()
    return buffer


def _composite(digests: Sequence[bytes]) -> str:
    """Return the checksum of a multipart object as S3 states it.

    Over the parts' digests, with their number.
    """
    whole = hashlib.sha256(b"".join(digests)).digest()
    return f"{base64.b64encode(whole).decode()}-{len(digests)}"
