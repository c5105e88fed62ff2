"""What a run may go on from, should its pod be killed: checkpoints beside the artifact's place.

They lie in `<output.uri>/<name>/<digest>.checkpoints/`, one file each, so that a checkpoint is
made visible in one step or not at all; its name holds the SHA-256 of its bytes, which are compared
before anything is read of it. Whoever keeps checkpoints holds the claim on the digest meanwhile
(see `claim`). No manifest names them, and nothing of them is left once the artifact is published.
"""

from __future__ import annotations

import hashlib
import logging
import re
from contextlib import ExitStack
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from kubequant_worker.errors import WorkerError
from kubequant_worker.stores.backend import ConflictError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kubequant_worker.stores.backend import Backend

_log = logging.getLogger(__name__)
# The one before the newest stays, for a store that lost or damaged the newest.
KEPT: Final = 2
_NAME: Final = re.compile(r"step-([0-9]{9})-([0-9a-f]{64})\.safetensors")


class Checkpoints:
    """The checkpoints of one run's digest. Used by one thread at a time; opened when first used."""

    def __init__(self, open_backend: Callable[[], Backend]) -> None:
        """Reach the place by `open_backend`, which is not called before anything is asked."""
        self._open_backend = open_backend
        self._backend: Backend | None = None
        self._conditional = False
        self._uri = ""

    def newest(self, into: Path, is_ours: Callable[[Path], bool]) -> tuple[int, Path] | None:
        """Bring the newest whole checkpoint into the folder `into`; return its step and its file.

        `is_ours` looks at a whole file and says whether this very run can go on from it. What is
        damaged, or another run's, is passed over, with a line in the log.
        """
        backend = self._opened()
        into.mkdir(parents=True, exist_ok=True)
        for step, name, sha256 in self._listed(backend):
            path = into / name
            if not _brought(backend, name, sha256, path):
                _log.warning("%s%s is damaged and is not gone on from", backend.uri, name)
            elif not is_ours(path):
                _log.warning("%s%s is of other work and is not gone on from", backend.uri, name)
            else:
                return step, path
            path.unlink(missing_ok=True)
        return None

    def keep(self, path: Path, step: int) -> None:
        """Put the file at `path` beside the artifact's place, and remove those before the last."""
        backend = self._opened()
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        name = f"step-{step:09d}-{sha256}.safetensors"
        token = backend.open_staging(name)
        try:
            with path.open("rb", buffering=0) as source:
                unbuffered = cast("BinaryIO", source)
                staged = backend.fill(name, token, unbuffered, path.stat().st_size, _ignore)
            backend.place(staged, None, conditional=self._conditional)
        except ConflictError:
            _log.info("%s%s is there already", backend.uri, name)
        finally:
            backend.discard(name, token)
        for _, old, _ in list(self._listed(backend))[KEPT:]:
            _remove(backend, old)

    def clear(self) -> str:
        """Remove every checkpoint; return the place where some could not be, "" where all are gone.

        Raises nothing: what it cleans up after is done.
        """
        try:
            backend = self._opened()
            for _, name, _ in list(self._listed(backend)):
                _remove(backend, name)
            left = next(self._listed(backend), None)
            backend.vanish()
        except WorkerError as error:
            _log.warning("the checkpoints were not removed: %s", error.message)
            return self._uri
        return backend.uri if left else ""

    def close(self) -> None:
        """Let go of threads and connections."""
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    def _opened(self) -> Backend:
        if self._backend is None:
            backend = self._open_backend()
            self._uri = backend.uri
            with ExitStack() as unless_opened:
                unless_opened.callback(backend.close)
                self._conditional = backend.probe().conditional_writes
                # Whoever staged something here before us is dead.
                backend.sweep()
                unless_opened.pop_all()
            self._backend = backend
        return self._backend

    def _listed(self, backend: Backend) -> Iterator[tuple[int, str, str]]:
        """Yield (step, name, SHA-256) of what is there, the newest first."""
        for name in sorted(backend.objects(), reverse=True):
            if found := _NAME.fullmatch(name):
                yield int(found[1]), name, found[2]


def _brought(backend: Backend, name: str, sha256: str, path: Path) -> bool:
    """Copy an object to `path`, and say whether it is what its name says."""
    hasher = hashlib.sha256()
    with path.open("wb") as file:
        for piece in backend.stream(name) or ():
            hasher.update(piece)
            file.write(piece)
    return hasher.hexdigest() == sha256


def _remove(backend: Backend, name: str) -> None:
    now = backend.stat(name)
    if now is not None:
        backend.remove(name, now.tag)


def _ignore(_amount: int) -> None:
    return None
