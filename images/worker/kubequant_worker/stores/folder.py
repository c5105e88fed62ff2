"""An artifact in a folder: what `pvc` and `file` share.

Staged files lie in `.staging/` beside the artifact, so that making one visible is a link or a
rename. Compare-and-swap is done under flock on a file of its own; its holder only looks and
renames, so it is held for moments.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import time
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, BinaryIO, Literal

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import (
    DISK_FULL,
    AccessError,
    BadRequestError,
    UnavailableError,
    WorkerError,
)
from kubequant_worker.stores.backend import (
    ConflictError,
    GoneError,
    Probe,
    StagedFile,
    Stat,
    Stored,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

STAGING = ".staging"
LOCK = ".claim.lock"
PIECE_BYTES = 4 * 1024 * 1024
LOCK_SECONDS = 30.0
# How often a small file is written that others delete before it is there.
SMALL_TRIES = 10
REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
NO_FOLDER = {errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG}
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class FolderBackend:
    """One prefix in a folder."""

    def __init__(self, uri: str, root: Path, field: str) -> None:
        """Publish to `root`, which people call `uri`; `field` is what errors name."""
        self._uri = uri.rstrip("/") + "/"
        self._root = root
        self._field = field

    @property
    def uri(self) -> str:
        """The prefix, with a '/' at its end."""
        return self._uri

    def probe(self) -> Probe:
        """Write, lock and delete a tiny file."""
        name = f".probe-{secrets.token_hex(4)}"
        tag = self.create(name, b"kubequant probes")
        self.remove(name, tag)
        return Probe(conditional_writes=True, checksums=True)

    def read(self, name: str) -> Stored | None:
        """Return a small file.

        Its age is not told: a network volume's clock may be another than ours.
        """
        with self._errors(f"reading {name}"):
            try:
                with (self._root / name).open("rb") as file:
                    return Stored(file.read(), _tag(os.fstat(file.fileno())), None)
            except (FileNotFoundError, NotADirectoryError):
                return None

    def stream(self, name: str) -> Iterator[bytes] | None:
        """Return a file's bytes in pieces, or None where it is absent."""
        return self._pieces(name) if (self._root / name).is_file() else None

    def create(self, name: str, body: bytes) -> str:
        """Write a small file that must be absent."""
        with self._errors(f"writing {name}"):
            return self._write_small(name, body, None)

    def replace(self, name: str, body: bytes, tag: str) -> str:
        """Write a small file that must have `tag`."""
        with self._errors(f"writing {name}"):
            return self._write_small(name, body, tag)

    def remove(self, name: str, tag: str) -> None:
        """Delete a small file that has `tag`, and with it the lock and folders that are empty."""
        with self._errors(f"deleting {name}"), self._locked() as lock:
            now = self.stat(name)
            if now is not None and now.tag == tag:
                (self._root / name).unlink()
                # Whoever waits for this lock file finds it unlinked and opens a new one.
                lock.unlink(missing_ok=True)
                self._tidy()

    def stat(self, name: str) -> Stat | None:
        """Return size and tag; a folder keeps no checksums."""
        try:
            status = (self._root / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Stat(status.st_size, _tag(status))

    def objects(self) -> dict[str, Stat]:
        """Return every visible file; what begins with a dot is ours."""
        found: dict[str, Stat] = {}
        for path in self._root.rglob("*"):
            name = path.relative_to(self._root).as_posix()
            if not name.startswith(".") and path.is_file() and (status := self.stat(name)):
                found[name] = status
        return found

    def folders(self, name: str, most: int) -> tuple[str, ...]:
        """Return the first `most` folders directly below `name`, in the order of their names."""
        with self._errors(f"listing {name or 'the folder'}"):
            place = self._root / name
            entries = sorted(place.iterdir()) if place.is_dir() else []
            found = [one.name for one in entries if one.is_dir() and not one.name.startswith(".")]
        return tuple(found[:most])

    def open_staging(self, name: str) -> str:
        """Create an empty file in the staging folder; its name there is the token."""
        token = secrets.token_hex(16)
        with self._errors(f"beginning to write {name}"):
            _made_in(self._root / STAGING / token, "xb").close()
        return token

    def fill(
        self,
        name: str,
        token: str,
        source: BinaryIO,
        size_bytes: int,
        on_bytes: Callable[[int], None],
    ) -> StagedFile:
        """Copy the bytes, hash them on the way and wait until they are on disk."""
        hasher, copied, buffer = hashlib.sha256(), 0, memoryview(bytearray(PIECE_BYTES))
        with self._errors(f"writing {name}"):
            try:
                target = (self._root / STAGING / token).open("r+b", buffering=0)
            except FileNotFoundError as error:
                raise GoneError(name) from error
            with target:
                while count := source.readinto(buffer):  # type: ignore[attr-defined]
                    _write_all(target, buffer[:count])
                    hasher.update(buffer[:count])
                    copied += count
                    on_bytes(count)
                os.fsync(target.fileno())
        if copied != size_bytes:
            raise ValueError(f"{name} changed its length while it was copied")
        return StagedFile(name, token, size_bytes, hasher.hexdigest())

    def place(self, staged: StagedFile, expected: str | None, *, conditional: bool) -> str:  # noqa: ARG002 - a folder always can
        """Link or rename the staged file to its name.

        No lock is needed between the look at the target and the rename: whoever takes the claim
        over in between deletes the staged file before it looks at anything.
        """
        source, target = self._root / STAGING / staged.token, self._root / staged.name
        with self._errors(f"writing {staged.name}"):
            if not source.exists():
                raise GoneError(staged.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            tag = self._make_visible(source, target, expected)
            _sync_folder(target.parent)
        return tag

    def discard(self, name: str, token: str) -> None:
        """Delete a staged file."""
        with self._errors(f"discarding {name}"):
            (self._root / STAGING / token).unlink(missing_ok=True)
            self._tidy()

    def sweep(self, *, older_than_seconds: float = 0) -> None:
        """Delete the staged files that were last written so long ago."""
        until = time.time() - older_than_seconds
        with self._errors("looking for unfinished files"):
            for path in (self._root / STAGING).glob("*"):
                with suppress(FileNotFoundError):
                    if not older_than_seconds or path.stat().st_mtime <= until:
                        path.unlink()

    def vanish(self) -> None:
        """Remove the folder where it is empty but for what is ours."""
        with suppress(OSError):
            (self._root / LOCK).unlink(missing_ok=True)
            (self._root / STAGING).rmdir()
        with suppress(OSError):
            self._root.rmdir()

    def close(self) -> None:
        """Nothing is held open."""

    def _pieces(self, name: str) -> Iterator[bytes]:
        with self._errors(f"reading {name}"), (self._root / name).open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                yield piece

    def _write_small(self, name: str, body: bytes, expected: str | None) -> str:
        """Write a small file, again where another publisher sweeps or tidies it away meanwhile."""
        for _ in range(SMALL_TRIES):
            with suppress(GoneError):
                staged = self._write_aside(body)
                with nullcontext() if expected is None else self._locked():
                    return self._make_visible(staged, self._root / name, expected)
        raise FileNotFoundError(errno.ENOENT, "others delete it before it is there", name)

    def _write_aside(self, body: bytes) -> Path:
        path = self._root / STAGING / secrets.token_hex(16)
        try:
            with _made_in(path, "xb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
        except FileNotFoundError as error:
            raise GoneError(path.name) from error
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return path

    def _make_visible(self, staged: Path, target: Path, expected: str | None) -> str:
        """Give `staged` its name if the target is as expected."""
        try:
            now = _tag(target.stat()) if target.exists() else None
            if now != expected:
                raise ConflictError(target.name)
            tag = _tag(staged.stat())
            if expected is None:
                _link(staged, target)
            else:
                staged.replace(target)
        except FileExistsError as error:
            raise ConflictError(target.name) from error
        except FileNotFoundError as error:
            raise GoneError(target.name) from error
        finally:
            staged.unlink(missing_ok=True)
        return tag

    def _tidy(self) -> None:
        """Remove the folders that a probe or an abandoned run made, as far as they are empty.

        An empty one would be taken for an artifact; whoever still writes makes it again.
        """
        with suppress(OSError):
            (self._root / STAGING).rmdir()
        with suppress(OSError):
            self._root.rmdir()

    @contextmanager
    def _locked(self) -> Iterator[Path]:
        """Hold the prefix's lock; its holder may have deleted the file that we waited for."""
        path, deadline = self._root / LOCK, time.monotonic() + LOCK_SECONDS
        while True:
            with _made_in(path, "ab") as file:
                _wait_for(file, deadline, self._uri)
                if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                    yield path
                    return

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        """Turn the system's errors into WorkerErrors with a sentence."""
        try:
            yield
        except OSError as error:
            raise _meaning(error, self._uri, self._field, doing) from error


def _meaning(error: OSError, uri: str, field: str, doing: str) -> WorkerError:
    if error.errno in DISK_FULL:
        return UnavailableError(
            f"{field}: {uri} has no space left ({doing}).",
            reason=FailureReason.DISK_FULL,
            advice="Free space there, or publish to a larger volume.",
        )
    if error.errno in REFUSED:
        return AccessError(
            f"{field}: {uri} may not be written to ({doing}).",
            advice="Let the user that runs this write there, or choose another place.",
        )
    if error.errno in NO_FOLDER:
        return BadRequestError(
            f"{field}: {uri} is no folder, or something above it is none ({doing}).",
            advice="Name a folder, or one that is still to be made.",
        )
    return UnavailableError(f"{field}: {doing} in {uri} failed: {error.strerror}.")


def _tag(status: os.stat_result) -> str:
    """Return what changes whenever a file is written or replaced."""
    return f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"


def _made_in(path: Path, mode: Literal["ab", "xb"]) -> BinaryIO:
    """Open a file in a folder that is made, again where another publisher tidies it away."""
    for _ in range(SMALL_TRIES):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            return path.open(mode)
    raise FileNotFoundError(errno.ENOENT, "others delete its folder before it is there", str(path))


def _link(staged: Path, target: Path) -> None:
    """Give `staged` a new name that must be free, also on file systems without hard links."""
    try:
        target.hardlink_to(staged)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        staged.rename(target)


def _write_all(target: BinaryIO, piece: memoryview) -> None:
    while piece:
        piece = piece[target.write(piece) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _wait_for(file: BinaryIO, deadline: float, uri: str) -> None:
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"Another run keeps {uri} locked.", reason=FailureReason.ANOTHER_PUBLISHER
                ) from None
            time.sleep(0.02)
        else:
            return
