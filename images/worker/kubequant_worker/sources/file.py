"""A model or text in a folder of this machine, for runs on a laptop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kubequant_worker.sources.mounted import MountedSource

if TYPE_CHECKING:
    from kubequant_worker.sources.source import Origin


def open_source(origin: Origin) -> MountedSource:
    """Return the source for a file:// address; a relative path is below the current folder."""
    return MountedSource(Path(origin.uri.removeprefix("file://")).absolute(), origin)
