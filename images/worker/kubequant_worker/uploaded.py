"""How much has reached the store. Uploading itself is `stores`'."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kubequant_worker.progress import StageProgress


class UploadedBytes:
    """Counts what has reached the store, before and while the Publishing stage shows it."""

    def __init__(self) -> None:
        """Start at nothing."""
        self._lock = threading.Lock()
        self._bytes = 0
        self._progress: StageProgress | None = None

    def count(self, amount: int) -> None:
        """Count `amount` more bytes; called from the uploading threads."""
        with self._lock:
            self._bytes += amount
            progress = self._progress
        if progress is not None:
            progress.advance(amount, "uploading")

    @contextmanager
    def shown_in(self, progress: StageProgress, total: int) -> Iterator[None]:
        """Let `progress` show what was uploaded before and in the block, of `total` bytes."""
        with self._lock:
            self._progress = progress
            done = self._bytes
        progress.set_total(total)
        progress.advance(done)
        yield
        with self._lock:
            self._progress = None
