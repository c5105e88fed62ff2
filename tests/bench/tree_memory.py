"""The peak memory of a program and everything it starts, sampled while it runs.

Memory is RssAnon of /proc/PID/status, summed over the tree: anonymous memory. Mapped files, which
the kernel can drop, are not in it. Pages shared by a fork count twice; no engine here forks.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Saving holds a shard's bytes for a moment only.
INTERVAL_SECONDS = 0.02
_FIELD = b"RssAnon:"


def tree_bytes(root: int) -> list[int]:
    """Return what a process and each of its descendants holds; those that are gone hold nothing."""
    return [_bytes(pid) for pid in _family(root)]


def _family(pid: int) -> Iterator[int]:
    # psutil looks at every process of the machine for it, which so often would slow what is timed.
    yield pid
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return
    for task in tasks:
        try:
            children = (task / "children").read_bytes().split()
        except OSError:
            continue
        for child in children:
            yield from _family(int(child))


def _bytes(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return 0
    start = text.find(_FIELD)  # one that is ending has none
    return int(text[start + len(_FIELD) :].split(maxsplit=1)[0]) * 1024 if start >= 0 else 0


class TreePeak(threading.Thread):
    """Samples a tree until it is stopped.

    `highest` is the most that it saw while `counts`, `largest` the most that one process held.
    """

    def __init__(self, root: int, counts: Callable[[], bool] = lambda: True) -> None:
        super().__init__(daemon=True)
        self.highest = self.largest = 0
        self._root = root
        self._counts = counts
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(INTERVAL_SECONDS):
            if self._counts():
                held = tree_bytes(self._root)
                self.highest = max(self.highest, sum(held))
                self.largest = max(self.largest, *held)

    def stop(self) -> None:
        """Stop sampling."""
        self._stopped.set()
        self.join()
