"""The file by which a run's report reaches its supervisor: there as a whole, or not at all.

A full disk is what a run may have to report, so its room is taken before the run begins. What the
report says is `record`'s affair.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from kubequant.api.contract import RunReport
from kubequant.api.problems import InvalidInputError, parse_json
from kubequant_worker.errors import DISK_FULL

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Several times the longest report that was seen.
RESERVED_BYTES = 4 * 1024 * 1024


def reserve(path: Path) -> None:
    """Take the room of the report at `path`, where there is some; raises nothing."""
    with suppress(OSError), _beside(path).open("ab") as file:
        os.posix_fallocate(file.fileno(), 0, RESERVED_BYTES)


def write(path: Path, content: bytes, *, make_room: Callable[[], None]) -> None:
    """Write the report to `path`, into the room that was taken.

    Where there was none, `make_room` is called, which removes what may go.

    Raises:
        OSError: The disk is full all the same, or the folder is not to be written to.
    """
    try:
        _write(path, content)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        make_room()
        _write(path, content)


def read(path: Path) -> RunReport | None:
    """Return the report at `path`, or None where the run died before it wrote a whole one."""
    try:
        return parse_json(RunReport, path.read_bytes(), local=True)
    except (OSError, InvalidInputError):
        return None


def _write(path: Path, content: bytes) -> None:
    # Written over what is there and cut afterwards, so that its room is never given back between.
    descriptor = os.open(_beside(path), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.truncate()
    _beside(path).replace(path)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")
