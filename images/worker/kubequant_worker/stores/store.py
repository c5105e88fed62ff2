"""A store as a run sees it.

Probe it, ask whether the artifact is there, publish to it, read from it.
"""

from __future__ import annotations

import hashlib
import io
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kubequant_worker.errors import UnavailableError
from kubequant_worker.stores.claim import Timing, acquire
from kubequant_worker.stores.publication import (
    AlreadyPublishedError,
    Publication,
    read_published,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from kubequant_worker.manifest import Manifest
    from kubequant_worker.stores.backend import Backend, Probe


# Longer than a run takes from its first upload to its manifest.
FORGOTTEN_SECONDS = 7 * 24 * 3600.0


def _ignore_bytes(_amount: int) -> None:
    return None


def _ignore_text(_text: str) -> None:
    return None


class Store:
    """One artifact's place: `<output.uri>/<name>/<digest>/`. Open it by `open_store`."""

    def __init__(self, backend: Backend, timing: Timing | None = None) -> None:
        """Publish through `backend`; `timing` says when a silent publisher counts as dead."""
        self._backend = backend
        self._timing = timing or Timing()
        self._probe: Probe | None = None

    @property
    def uri(self) -> str:
        """The artifact's prefix, with a '/' at its end."""
        return self._backend.uri

    def probe(self) -> Probe:
        """Prove by real writes, which leave nothing behind, that a run can publish here.

        Raises AccessError or UnavailableError with a sentence that names the bucket and the way
        out. The notes of the answer say what the store cannot do and what that means.
        """
        if self._probe is None:
            self._probe = self._backend.probe()
        return self._probe

    def published(self) -> Manifest | None:
        """Return the manifest of a finished artifact, or None where there is none yet."""
        found = read_published(self._backend)
        return found[0] if found else None

    def require_unpublished(self) -> None:
        """Raise AlreadyPublishedError where the manifest is there; writes nothing."""
        found = read_published(self._backend)
        if found is not None:
            raise AlreadyPublishedError(self.uri, *found)

    @contextmanager
    def claim(
        self,
        *,
        on_bytes: Callable[[int], None] = _ignore_bytes,
        on_wait: Callable[[str], None] = _ignore_text,
    ) -> Iterator[Publication]:
        """Take the claim and publish in the block.

        Leaving it without a commit discards what was uploaded.

        `on_bytes` hears of every piece that reached the store, from several threads; `on_wait` gets
        a sentence while a silent claim is watched. Raises AlreadyPublishedError where the manifest
        is there, and UnavailableError (AnotherPublisher) where another run holds the claim. Taken
        at a run's start, it keeps a second run of the same digest from working for hours in vain.
        """
        conditional = self.probe().conditional_writes
        claim = acquire(self._backend, self._timing, on_wait=on_wait) if conditional else None
        try:
            self._refuse_published()
            if claim is not None:
                claim.start()
                # Whoever staged something here before us is dead or has lost the claim.
                self._backend.sweep()
            else:
                # Without a claim only the time tells. Whoever still needs it fails, and runs again.
                self._backend.sweep(older_than_seconds=FORGOTTEN_SECONDS)
            publication = Publication(self._backend, claim, on_bytes)
        except BaseException:
            if claim is not None:
                claim.release(remove=True)
            raise
        try:
            yield publication
        finally:
            publication.abandon()

    def _refuse_published(self) -> None:
        found = read_published(self._backend)
        if found is not None:
            raise AlreadyPublishedError(self.uri, *found)

    def read(self, name: str) -> bytes | None:
        """Return a small file of the artifact, such as report.json, or None where it is absent."""
        stored = self._backend.read(name)
        return stored.body if stored else None

    def leave(self, documents: Mapping[str, bytes]) -> None:
        """Write small files that no manifest will name, over what an earlier run left here.

        For the documents of a run that published nothing; who calls it keeps others away.
        """
        self.probe()
        for name, content in documents.items():
            token = self._backend.open_staging(name)
            try:
                staged = self._backend.fill(
                    name, token, io.BytesIO(content), len(content), _ignore_bytes
                )
                before = self._backend.stat(name)
                self._backend.place(staged, before.tag if before else None, conditional=False)
            finally:
                self._backend.discard(name, token)

    def verify(self) -> Manifest:
        """Read every byte that the manifest names and compare.

        Raises UnavailableError with what differs.
        """
        found = read_published(self._backend)
        if found is None:
            raise UnavailableError(
                f"{self.uri} holds no manifest.json: nothing is published there."
            )
        for file in found[0].files:
            hasher, size = hashlib.sha256(), 0
            for piece in self._backend.stream(file.path) or ():
                hasher.update(piece)
                size += len(piece)
            if (size, hasher.hexdigest()) != (file.size, file.sha256):
                raise UnavailableError(
                    f"{self.uri}{file.path} is not the file that the manifest names: {size} bytes "
                    f"with SHA-256 {hasher.hexdigest()} instead of {file.size} with {file.sha256}."
                )
        return found[0]

    def close(self) -> None:
        """Let go of threads and connections."""
        self._backend.close()
