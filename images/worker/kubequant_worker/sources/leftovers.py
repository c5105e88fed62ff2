"""What an earlier run with the same working space left where a model is fetched to.

Whole files and begun downloads of what the source still has are gone on from; the rest must not be
taken for the model.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kubequant_worker.sources.s3_download import PARTIAL

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kubequant_worker.sources.source import RemoteFile

# Where begun downloads are noted, ours and those of the Hub's client.
NOTES: Final = frozenset({PARTIAL, ".cache"})


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
