"""What an earlier run with the same working space left where a model is fetched to.

Whole files and begun downloads of what the source still has are gone on from; the rest must not be
taken for the model.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kubequant_worker.sources.source import ModelListing, RemoteFile

# Where begun downloads are noted, ours and those of the Hub's client. The name of ours stands here,
# not in `s3_download`: whoever imports `sources` would load boto3 for it.
PARTIAL: Final = ".partial"
HUB_CACHE: Final = ".cache"
NOTES: Final = frozenset({PARTIAL, HUB_CACHE})
_BLOCK_BYTES: Final = 512


def remove_others(folder: Path, files: Iterable[RemoteFile]) -> None:
    """Remove from `folder` all but `files` and the notes of begun downloads."""
    known = {file.path for file in files}
    for root, folders, names in os.walk(folder, topdown=False):
        for path in (Path(root, name) for name in (*names, *folders)):
            relative = path.relative_to(folder)
            if relative.parts[0] in NOTES:
                continue
            if path.is_dir() and not path.is_symlink():
                with suppress(OSError):
                    path.rmdir()  # where nothing is left in it
            elif relative.as_posix() not in known:
                path.unlink()


def bytes_there(listing: ModelListing, folder: Path) -> int:
    """Return how many of a model's bytes need no more room, where it is fetched to `folder`.

    All of them where it is only linked to, else what an earlier run has brought.
    """
    if listing.is_linked:
        return listing.size_bytes
    begun = [*folder.glob(f"{HUB_CACHE}/**/*.incomplete")]
    total = 0
    for file in listing.files:
        # The Hub's client names what it has begun after the content.
        content = f".{file.sha256 or file.git_blob}.incomplete"
        paths = [folder / file.path, folder / PARTIAL / file.path]
        paths += [path for path in begun if path.name.endswith(content)]
        total += min(file.size_bytes, sum(map(_bytes_on_disk, paths)))
    return total


def _bytes_on_disk(path: Path) -> int:
    """Return what a file takes; one that was begun is as long as the whole, and mostly a hole."""
    try:
        found = path.lstat()
    except OSError:
        return 0
    return min(found.st_size, found.st_blocks * _BLOCK_BYTES) if S_ISREG(found.st_mode) else 0
