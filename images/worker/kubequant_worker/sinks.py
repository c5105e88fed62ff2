"""How progress is shown: a live bar on a terminal, structured lines elsewhere.

The operator's status server will be one more sink. Nothing here knows what a stage does. A run goes
on where its terminal was closed, or what read its lines has ended.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Self

from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

if TYPE_CHECKING:
    from rich.console import Console

    from kubequant.api.outcome import Stage
    from kubequant_worker.progress import Snapshot

TENTHS = 10


class TerminalBar:
    """One live line: the stage, its bar, percent, what it is at, and the time left."""

    def __init__(self, console: Console) -> None:
        """Draw on `console`, which is a terminal."""
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<11}"),
            BarColumn(bar_width=28),
            TaskProgressColumn(),
            TextColumn("{task.fields[eta]}"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
        )
        self._task: TaskID | None = None
        self._stage: Stage | None = None

    def __enter__(self) -> Self:
        """Start drawing."""
        with suppress(OSError):
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing and leave the finished stages on the screen."""
        with suppress(OSError):
            self._bar.stop()

    def update(self, snapshot: Snapshot) -> None:
        """Show `snapshot`; a new stage starts a new line."""
        with suppress(OSError):
            self._draw(snapshot)

    def _draw(self, snapshot: Snapshot) -> None:
        if self._stage is not snapshot.stage or self._task is None:
            self._stage = snapshot.stage
            self._task = self._bar.add_task(str(snapshot.stage), total=1.0, eta="", note="")
        eta = snapshot.eta_seconds
        self._bar.update(
            self._task,
            completed=snapshot.fraction,
            eta="" if not eta else f"{duration(eta)} left",
            note="" if snapshot.finished else snapshot.message,
        )


class LogLines:
    """One JSON line when a stage starts, at each further ten percent, and when it ends."""

    def __init__(self, stream: IO[str]) -> None:
        """Write to `stream`, flushing each line, so that `kubectl logs -f` follows."""
        self._stream = stream
        self._stage: Stage | None = None
        self._tenth = -1
        self._finished = False
        self._started = time.monotonic()

    def update(self, snapshot: Snapshot) -> None:
        """Write a line if `snapshot` starts or ends a stage or reaches a further tenth."""
        tenth = int(snapshot.fraction * TENTHS)
        if snapshot.stage is not self._stage:
            self._stage, self._tenth, self._finished = snapshot.stage, -1, False
        if self._finished or (tenth <= self._tenth and (tenth == TENTHS or not snapshot.finished)):
            return
        self._tenth, self._finished = tenth, snapshot.finished
        line: dict[str, object] = {
            "elapsedSeconds": round(time.monotonic() - self._started, 1),
            "stage": str(snapshot.stage),
            "percent": int(snapshot.fraction * 100),
        }
        if snapshot.eta_seconds is not None:
            line["etaSeconds"] = round(snapshot.eta_seconds)
        if snapshot.message:
            line["message"] = snapshot.message
        with suppress(OSError):
            self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._stream.flush()


def duration(seconds: float) -> str:
    """Return `seconds` as a person reads a time left: "40 s", "12 min", "3 h 5 min"."""
    whole = round(seconds)
    if whole < 100:  # noqa: PLR2004 -- up to 99 s seconds say more than "1 min"
        return f"{whole} s"
    hours, minutes = divmod(round(whole / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
