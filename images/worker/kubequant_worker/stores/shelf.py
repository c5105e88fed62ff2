"""All artifacts below one output address, `<uri>/<name>/<digest>/`, as a reader finds them.

A run looks there for what an earlier one measured. Nothing is written, and what cannot be listed
or read counts as absent: it only spares work.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from kubequant_worker.errors import WorkerError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kubequant_worker.stores.backend import Backend

MOST_NAMES = 32
MOST_ARTIFACTS = 64
_MANIFEST, _REPORT = "manifest.json", "report.json"
_log = logging.getLogger(__name__)


class Shelf:
    """The artifacts below one output address."""

    def __init__(self, backend: Backend) -> None:
        """Look through `backend`, whose prefix is the output address itself."""
        self._backend = backend

    def reports(self, first: str) -> Iterator[tuple[str, bytes]]:
        """Yield (address, content) of published artifacts' report.json, those of `first` first.

        At most `MOST_ARTIFACTS` of at most `MOST_NAMES` names are looked at.
        """
        try:
            for folder in self._artifacts(first):
                # A prefix without a manifest does not exist.
                if self._backend.stat(f"{folder}/{_MANIFEST}") is None:
                    continue
                stored = self._backend.read(f"{folder}/{_REPORT}")
                if stored is not None:
                    yield f"{self._backend.uri}{folder}/{_REPORT}", stored.body
        except WorkerError as error:
            _log.info("earlier runs are not looked at: %s", error.message)

    def close(self) -> None:
        """Let go of connections."""
        self._backend.close()

    def _artifacts(self, first: str) -> Iterator[str]:
        others = [name for name in self._backend.folders("", MOST_NAMES) if name != first]
        left = MOST_ARTIFACTS
        for name in (first, *others):
            digests = self._backend.folders(name, left)
            left -= len(digests)
            yield from (f"{name}/{digest}" for digest in digests)
            if left <= 0:
                return
