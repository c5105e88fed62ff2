"""Downloads objects in concurrent ranges and goes on where an earlier run stopped.

A file grows in `.partial/` beside a log: its first line names the object's ETag and size, each
further one a range that is on disk, the last the SHA-256. The file is hashed in order as ranges
arrive, and compared with whatever the store knows of it: a SHA-256, or an MD5 in its ETag. Where
these are over parts, the parts' sizes must be known for a difference to prove anything. Each range
is asked for with If-Match, so that bytes of two versions never mix.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import random
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, Self

from kubequant_worker.errors import AccessError, UnavailableError
from kubequant_worker.file_digest import FileDigest
from kubequant_worker.sources.leftovers import PARTIAL
from kubequant_worker.sources.space import full_disk_explained
from kubequant_worker.stores.backend import ConflictError
from kubequant_worker.stores.s3_access import (
    BrokenBodyError,
    S3Place,
    broken_bodies,
    s3_errors,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from kubequant_worker.sources.source import RemoteFile

_log = logging.getLogger(__name__)
RANGE_BYTES = 16 * 1024 * 1024
PIECE_BYTES = 1024 * 1024
WORKERS = 6
RANGE_TRIES = 6
FILE_TRIES = 2
# An ETag is whatever a store likes; of this form it is an MD5, or one over the MD5s of parts.
MD5_ETAG = re.compile(r"[0-9a-f]{32}(?:-[1-9][0-9]*)?")


class StoppedError(Exception):
    """Another range failed for good, or the run is being stopped."""


class Downloader:
    """Fetches objects below one prefix into one folder."""

    def __init__(self, client: Any, place: S3Place, into: Path) -> None:
        """Fetch with `client` from `place` into the folder `into`."""
        self._client = client
        self._place = place
        self._into = into
        self._stopped = threading.Event()

    def fetch(
        self, files: Sequence[RemoteFile], on_bytes: Callable[[int], None]
    ) -> list[FileDigest]:
        """Download `files` and return their digests, in their order."""
        pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="s3-range")
        try:
            return [self._fetch_one(pool, file, on_bytes) for file in files]
        finally:
            self._stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _fetch_one(
        self, pool: ThreadPoolExecutor, file: RemoteFile, on_bytes: Callable[[int], None]
    ) -> FileDigest:
        for _ in range(FILE_TRIES):
            with full_disk_explained(self._into):
                partial = PartialFile(self._into, file, on_bytes)
                if partial.finished is not None:
                    return partial.finished
                with partial:
                    check = self._known_check(file)
                    partial.expect(check)
                    tasks = [pool.submit(self._range, partial, n) for n in partial.missing()]
                    self._await(tasks)
                    if partial.holds() or not self._disproves(check, partial):
                        return partial.finish()
                    partial.begin_again()
        raise UnavailableError(
            f"{self._place.field}: {file.path} arrived with other bytes than its checksum in "
            f"{self._place.where} says, twice.",
            advice="Look at the network and the store; the run is tried again.",
        )

    def _await(self, tasks: Sequence[Future[None]]) -> None:
        """Wait until no range is written any more, and raise what made the others stop."""
        try:
            wait(tasks)
        except BaseException:
            # The file is closed now, and its number may become another file's.
            self._stopped.set()
            raise
        errors = [error for task in tasks if (error := task.exception()) is not None]
        causes = [error for error in errors if not isinstance(error, StoppedError)]
        if errors:
            raise (causes or errors)[0]

    def _range(self, partial: PartialFile, number: int) -> None:
        """Bring one range to disk; a broken body is asked for again, with backoff and jitter."""
        try:
            for attempt in range(RANGE_TRIES):
                try:
                    self._range_once(partial, number)
                except BrokenBodyError:
                    if attempt == RANGE_TRIES - 1:
                        raise
                    time.sleep(min(8.0, 0.25 * 2**attempt) * (0.5 + random.random()))  # noqa: S311 - jitter
                else:
                    return
        except BaseException:
            self._stopped.set()
            raise

    def _range_once(self, partial: PartialFile, number: int) -> None:
        file = partial.file
        begin, end = partial.bounds(number)
        if self._stopped.is_set():
            raise StoppedError
        try:
            with s3_errors(self._place, f"downloading {file.path}"):
                body = self._client.get_object(
                    Bucket=self._place.bucket,
                    Key=self._place.key(file.path),
                    Range=f"bytes={begin}-{end - 1}",
                    IfMatch=file.tag,
                )["Body"]
        except ConflictError as error:
            raise UnavailableError(
                f"{self._place.field}: {file.path} changed in {self._place.where} "
                "while it was read.",
                advice="Wait until whoever writes there has finished; the run is tried again.",
            ) from error
        position = begin
        # A body that is left half-way keeps its connection until it is closed.
        with closing(body), broken_bodies(self._place, f"downloading {file.path}"):
            for piece in body.iter_chunks(PIECE_BYTES):
                if self._stopped.is_set():
                    raise StoppedError
                partial.write(piece[: end - position], position)
                position += len(piece)
        if position != end:
            raise BrokenBodyError(
                f"{self._place.field}: {self._place.where} sent {position - begin} bytes of "
                f"{file.path} instead of {end - begin}."
            )
        partial.arrived(number)

    def _known_check(self, file: RemoteFile) -> PieceCheck | None:
        """Return what the store knows of the object's content and we can compute, if anything."""
        with s3_errors(self._place, f"asking for {file.path}"):
            head = self._client.head_object(**self._at(file), ChecksumMode="ENABLED")
        algorithm, stated = "sha256", str(head.get("ChecksumSHA256", ""))
        if not stated:
            algorithm, stated = "md5", file.tag.strip('"')
            if not MD5_ETAG.fullmatch(stated) or self._hides_content(head):
                return None
        parts = int(stated.rpartition("-")[2]) if "-" in stated else 0
        if not parts:
            return PieceCheck(algorithm, (), stated)
        # Nearly every program makes all parts but the last of one size.
        length = self._part_bytes(file, 1)
        if not length or -(-file.size_bytes // length) != parts:
            return None
        sizes = [length] * (parts - 1)
        return PieceCheck(algorithm, [*sizes, file.size_bytes - sum(sizes)], stated)

    def _hides_content(self, head: Mapping[str, Any]) -> bool:
        """Say whether the object is encrypted in a way that makes its ETag no MD5 of the content.

        AWS says so of KMS; other stores, where they encrypt, also of their own keys.
        """
        encryption = str(head.get("ServerSideEncryption", ""))
        return encryption.startswith("aws:kms") or bool(encryption and self._place.endpoint)

    def _disproves(self, check: PieceCheck | None, partial: PartialFile) -> bool:
        """Say whether a check that does not hold proves that other bytes arrived."""
        if check is None:
            return False
        if not check.part_sizes:
            return True
        file = partial.file
        sizes = [self._part_bytes(file, part + 1) for part in range(len(check.part_sizes))]
        if sum(sizes) != file.size_bytes:
            _log.info("%s: its parts are not known, so its checksum proves nothing", file.path)
            return False
        return sizes == list(check.part_sizes) or not partial.satisfies(check.over(sizes))

    def _part_bytes(self, file: RemoteFile, number: int) -> int:
        """Return the size of one of an object's parts, 0 where the store does not say."""
        try:
            with s3_errors(self._place, f"asking for a part of {file.path}"):
                answer = self._client.head_object(**self._at(file), PartNumber=number)
        except AccessError:
            return 0
        return int(answer["ContentLength"])

    def _at(self, file: RemoteFile) -> dict[str, str]:
        return {"Bucket": self._place.bucket, "Key": self._place.key(file.path)}


class PieceCheck:
    """Computes an object's checksum as S3 states it.

    Of the whole, or over the digests of its parts.
    """

    def __init__(self, algorithm: str, part_sizes: Sequence[int], stated: str) -> None:
        """Expect `stated`: base64 for sha256, hexadecimal for md5, with "-<parts>" for parts.

        `part_sizes` are the parts' bytes, none where it is the whole's digest.
        """
        self.part_sizes = part_sizes
        self._algorithm = algorithm
        self._stated = stated
        self._digests: list[bytes] = []
        self._left = part_sizes[0] if part_sizes else 0
        self._hasher = hashlib.new(algorithm, usedforsecurity=False)

    def over(self, part_sizes: Sequence[int]) -> PieceCheck:
        """Return a fresh check of the same checksum over other parts."""
        return PieceCheck(self._algorithm, part_sizes, self._stated)

    def update(self, piece: bytes) -> None:
        """Take the next bytes of the object."""
        view = memoryview(piece)
        while len(self._digests) < len(self.part_sizes) and len(view) >= self._left:
            self._hasher.update(view[: self._left])
            view = view[self._left :]
            self._next_part()
        self._hasher.update(view)
        self._left -= len(view)

    def holds(self) -> bool:
        """Say whether the bytes, all of them, were the stated ones."""
        if not self.part_sizes:
            return self._text(self._hasher.digest()) == self._stated
        whole = hashlib.new(self._algorithm, b"".join(self._digests), usedforsecurity=False)
        return f"{self._text(whole.digest())}-{len(self._digests)}" == self._stated

    def _next_part(self) -> None:
        self._digests.append(self._hasher.digest())
        self._hasher = hashlib.new(self._algorithm, usedforsecurity=False)
        done = len(self._digests)
        self._left = self.part_sizes[done] if done < len(self.part_sizes) else 0

    def _text(self, digest: bytes) -> str:
        return digest.hex() if self._algorithm == "md5" else base64.b64encode(digest).decode()


class PartialFile:
    """One file on its way, with its log."""

    def __init__(self, into: Path, file: RemoteFile, on_bytes: Callable[[int], None]) -> None:
        """Go on with what an earlier run left of this very version of the object, or begin."""
        self.file = file
        self.finished: FileDigest | None = None
        self._target = into / file.path
        self._path = into / PARTIAL / file.path
        self._log = into / PARTIAL / f"{file.path}.log"
        self._on_bytes = on_bytes
        self._lock = threading.Lock()
        self._hash_lock = threading.Lock()
        self._hashed = 0
        self._hasher = hashlib.sha256()
        self._check: PieceCheck | None = None
        self._ranges = -(-file.size_bytes // RANGE_BYTES)
        self._head = json.dumps([file.tag, file.size_bytes, RANGE_BYTES])
        self._done = self._read_log()

    def __enter__(self) -> Self:
        """Open the file and the log."""
        self._target.parent.mkdir(parents=True, exist_ok=True)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        os.ftruncate(self._descriptor, self.file.size_bytes)
        if not self._done:
            self._log.write_text(self._head + "\n", encoding="utf-8")
        self._on_bytes(sum(end - begin for begin, end in map(self.bounds, self._done)))
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file; what arrived stays for the next try."""
        os.close(self._descriptor)

    def expect(self, check: PieceCheck | None) -> None:
        """Compute `check` beside the SHA-256."""
        self._check = check

    def missing(self) -> list[int]:
        """Return the numbers of the ranges that are not on disk yet."""
        return [number for number in range(self._ranges) if number not in self._done]

    def bounds(self, number: int) -> tuple[int, int]:
        """Return the first byte of a range and the one after its last."""
        return number * RANGE_BYTES, min((number + 1) * RANGE_BYTES, self.file.size_bytes)

    def write(self, piece: bytes, position: int) -> None:
        """Write bytes to their place in the file."""
        view = memoryview(piece)
        while view:
            count = os.pwrite(self._descriptor, view, position)
            view, position = view[count:], position + count

    def arrived(self, number: int) -> None:
        """Note that a range is on disk, and hash as far as there is no gap."""
        begin, end = self.bounds(number)
        with self._lock:
            self._done.add(number)
            with self._log.open("a", encoding="utf-8") as log:
                log.write(f"{number}\n")
        self._on_bytes(end - begin)
        if self._hash_lock.acquire(blocking=False):
            try:
                self._hash_on()
            finally:
                self._hash_lock.release()

    def holds(self) -> bool:
        """Say whether the file, whole by now, is what the check expects; True without one."""
        with self._hash_lock:
            self._hash_on()
        return self._check is None or self._check.holds()

    def satisfies(self, check: PieceCheck) -> bool:
        """Say whether the file, whole by now, is what another check expects."""
        for piece in self._pieces(0, self.file.size_bytes):
            check.update(piece)
        return check.holds()

    def finish(self) -> FileDigest:
        """Give the file its name and return its digest."""
        digest = FileDigest(self.file.path, self.file.size_bytes, self._hasher.hexdigest())
        self._path.replace(self._target)
        with self._log.open("a", encoding="utf-8") as log:
            log.write(f"sha256 {digest.sha256}\n")
        return digest

    def begin_again(self) -> None:
        """Forget what arrived: it is not what the store holds."""
        self._on_bytes(-self.file.size_bytes)
        self._log.unlink()

    def _pieces(self, begin: int, end: int) -> Iterator[bytes]:
        for position in range(begin, end, PIECE_BYTES):
            yield os.pread(self._descriptor, min(PIECE_BYTES, end - position), position)

    def _hash_on(self) -> None:
        while self._hashed in self._done and self._hashed < self._ranges:
            for piece in self._pieces(*self.bounds(self._hashed)):
                self._hasher.update(piece)
                if self._check is not None:
                    self._check.update(piece)
            self._hashed += 1

    def _read_log(self) -> set[int]:
        """Return the ranges that are on disk, and set `finished` where all of it is."""
        lines: list[str] = []
        with suppress(FileNotFoundError):
            lines = self._log.read_text(encoding="utf-8").split("\n")
        if not lines or lines[0] != self._head:
            return set()
        if lines[-2].startswith("sha256 ") and self._target.is_file():
            digest = FileDigest(self.file.path, self.file.size_bytes, lines[-2].split()[1])
            if self._target.stat().st_size == self.file.size_bytes:
                self._on_bytes(self.file.size_bytes)
                self.finished = digest
        if not self._path.is_file():
            return set()
        # A last line without its end was being written when the run was killed.
        return {int(line) for line in lines[1:-1] if line.isdigit()}
