"""What a full disk means, and digests of files that are already here."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import DISK_FULL, UnavailableError
from kubequant_worker.file_digest import FileDigest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

PIECE_BYTES = 1024 * 1024


@contextmanager
def full_disk_explained(folder: Path) -> Iterator[None]:
    """Turn "no space left" while writing below `folder` into a sentence (DiskFull)."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise UnavailableError(
            f"There is no space left in {folder}, where the model is fetched to.",
            reason=FailureReason.DISK_FULL,
            advice="Give the run a larger scratch volume (spec.pod.scratch.size), or free space.",
        ) from error


def digest_file(
    folder: Path, path: str, on_bytes: Callable[[int], None], *, also: Sequence[hashlib._Hash] = ()
) -> FileDigest:
    """Return the size and SHA-256 of a file, feeding the hashers in `also` from the same read."""
    hasher, size, buffer = hashlib.sha256(), 0, memoryview(bytearray(PIECE_BYTES))
    with (folder / path).open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
            for other in also:
                other.update(buffer[:count])
            size += count
            on_bytes(count)
    return FileDigest(path, size, hasher.hexdigest())


def digest_files(
    folder: Path, paths: Sequence[str], on_bytes: Callable[[int], None]
) -> list[FileDigest]:
    """Return the digests of several files, hashed side by side."""
    workers = min(4, len(os.sched_getaffinity(0)), max(len(paths), 1))
    with ThreadPoolExecutor(workers, thread_name_prefix="digest") as pool:
        return list(pool.map(lambda path: digest_file(folder, path, on_bytes), paths))
