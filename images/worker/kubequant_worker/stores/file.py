"""An artifact in a folder of this machine, for runs on a laptop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kubequant_worker.stores.folder import FolderBackend

if TYPE_CHECKING:
    from kubequant_worker.stores import Place


def open_backend(place: Place) -> FolderBackend:
    """Return the backend for a file:// address; a relative path is below the current folder."""
    return FolderBackend(place.uri, Path(place.uri.removeprefix("file://")).absolute(), place.field)
