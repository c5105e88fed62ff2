"""Models and texts that already lie in a folder of this machine: what `pvc` and `file` share.

Nothing is copied: the target folder gets links to the files that were chosen, so that an engine
sees those and no others. A link in the source is followed only where it stays in the folder, or
where the folder is a snapshot of the Hub's cache (`models--owner--name/snapshots/<commit>/`), whose
files are links to `../../blobs/<digest>` of the same cache.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import AccessError, BadRequestError, UnavailableError
from kubequant_worker.sources.source import Listing, RemoteFile
from kubequant_worker.sources.space import digest_files, full_disk_explained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from kubequant_worker.file_digest import FileDigest
    from kubequant_worker.sources.source import Origin

NOT_FOUND = {"model": FailureReason.MODEL_NOT_FOUND, "dataset": FailureReason.DATASET_NOT_FOUND}
MOST_LISTED = 20_000


class MountedSource:
    """One folder, or one file of it."""

    copies: ClassVar[bool] = False

    def __init__(self, root: Path, origin: Origin, *, stay_in: Path | None = None) -> None:
        """Read from `root`, which must lie in `stay_in` where that is given."""
        self._root = root
        self._origin = origin
        self._stay_in = stay_in

    def listing(self) -> Listing:
        """Return the files below the folder, each one whose links lead nowhere else."""
        with self._readable():
            return self._listing()

    def _listing(self) -> Listing:
        if not self._root.exists():
            raise AccessError(
                f"{self._origin.field}.uri: there is nothing at {self._origin.uri}.",
                reason=NOT_FOUND[self._origin.kind],
                advice=f"The folder looked at is {self._root}.",
            )
        if self._stay_in and not self._root.resolve().is_relative_to(self._stay_in.resolve()):
            raise self._leads_out(self._root)
        if self._root.is_file():
            return Listing(None, (RemoteFile(self._root.name, self._root.stat().st_size),))
        return Listing(None, tuple(self._files()))

    def fetch(
        self,
        files: Sequence[RemoteFile],
        listing: Listing,  # noqa: ARG002 - the folder has no revision
        into: Path,
        on_bytes: Callable[[int], None],
    ) -> Sequence[FileDigest]:
        """Link `files` into the folder `into` and digest them where they are."""
        base = self._root.parent if self._root.is_file() else self._root
        with full_disk_explained(into):
            for file in files:
                link = into / file.path
                link.parent.mkdir(parents=True, exist_ok=True)
                link.unlink(missing_ok=True)
                link.symlink_to((base / file.path).resolve())
        with self._readable():
            return digest_files(into, [file.path for file in files], on_bytes)

    def _files(self) -> list[RemoteFile]:
        found: list[RemoteFile] = []
        for folder, below, names in os.walk(self._root, onerror=self._pass_over):
            below[:] = [name for name in below if not name.startswith(".")]
            for name in names:
                path = self._root.__class__(folder, name)
                if name.startswith("."):
                    continue
                if path.is_symlink():
                    self._check_link(path)
                if path.is_file():
                    relative = path.relative_to(self._root).as_posix()
                    found.append(RemoteFile(relative, path.stat().st_size))
            if len(found) > MOST_LISTED:
                raise BadRequestError(
                    f"{self._origin.field}.uri: {self._origin.uri} holds more than {MOST_LISTED} "
                    "files; name the model's own folder."
                )
        return found

    def _pass_over(self, error: OSError) -> None:
        """Pass over a folder below that may not be read, as a volume's lost+found."""
        if error.filename == str(self._root):
            raise error

    def _check_link(self, path: Path) -> None:
        try:
            path.stat()
        except FileNotFoundError:
            pass  # where it would lead to is looked at all the same
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise self._unsafe(path, "leads to itself") from error
            raise
        if not self._may_follow(path):
            raise self._leads_out(path)

    def _may_follow(self, path: Path) -> bool:
        target, root = path.resolve(), self._root.resolve()
        if target.is_relative_to(root):
            return True
        is_snapshot = root.parent.name == "snapshots"
        return is_snapshot and target.parent == root.parent.parent / "blobs"

    def _leads_out(self, path: Path) -> BadRequestError:
        return self._unsafe(path, "leads out of the folder")

    def _unsafe(self, path: Path, how: str) -> BadRequestError:
        return BadRequestError(
            f"{self._origin.field}.uri: {path.name!r} of {self._origin.uri} is a link that {how}.",
            reason=FailureReason.UNSAFE_MODEL,
            advice="Put the file itself there.",
        )

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Turn what keeps us from reading into a sentence with the way out."""
        try:
            yield
        except PermissionError as error:
            raise AccessError(
                f"{self._origin.field}.uri: {self._named(error)} of {self._origin.uri} may not be "
                f"read by user {os.geteuid()}, as whom this runs.",
                advice="Let that user read it, and pass through the folders above it (chmod a+rX).",
            ) from error
        except OSError as error:
            raise UnavailableError(
                f"{self._origin.field}.uri: {self._named(error)} of {self._origin.uri} could not "
                f"be read: {error.strerror}.",
                advice="Look at the volume; the run is tried again.",
            ) from error

    def _named(self, error: OSError) -> str:
        """Return the name of the file or folder that an error is about."""
        return repr(os.path.basename(str(error.filename or self._root)))  # noqa: PTH119
