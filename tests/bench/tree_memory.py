"""The peak memory of a program and everything it starts, sampled while it runs.

Memory is Pss_Anon of /proc/PID/smaps_rollup, summed over the tree: anonymous memory, each page that
processes share counted once. Mapped files, which the kernel can drop, are not in it.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable

INTERVAL_SECONDS = 0.1


def tree_bytes(root: int) -> int:
    """Return what a process and its descendants hold; those that are gone hold nothing."""
    try:
        family = [root, *(one.pid for one in psutil.Process(root).children(recursive=True))]
    except psutil.NoSuchProcess:
        return 0
    return sum(map(_bytes, family))


def _bytes(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    found = re.search(r"^Pss_Anon:\s+(\d+) kB", text, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0


class TreePeak(threading.Thread):
    """Samples a tree until it is stopped; `highest` is the most that it saw while `counts`."""

    def __init__(self, root: int, counts: Callable[[], bool] = lambda: True) -> None:
        super().__init__(daemon=True)
        self.highest = 0
        self._root = root
        self._counts = counts
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(INTERVAL_SECONDS):
            if self._counts():
                self.highest = max(self.highest, tree_bytes(self._root))

    def stop(self) -> int:
        """Stop, and return the peak."""
        self._stopped.set()
        self.join()
        return self.highest
