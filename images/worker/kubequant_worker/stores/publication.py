"""One run's publication.

Files staged while the run goes on, made visible together, the manifest last.

Nothing is visible before `commit`, so a failed gate or an interrupted run has nothing to take back.
`commit` registers its tokens in the claim, places the files, asks the store once more what it
holds, registers the manifest's token and places that where there must be none. `claim` says why a
publisher that slept through all of this can change nothing.
"""

from __future__ import annotations

import io
import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, cast

from pydantic import ValidationError

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import UnavailableError, WorkerError
from kubequant_worker.file_digest import FileDigest, sha256_hex
from kubequant_worker.manifest import MANIFEST_NAME, Manifest
from kubequant_worker.stores.backend import Backend, ConflictError, GoneError, StagedFile, Stat
from kubequant_worker.stores.claim import CLAIM_NAME, Claim, ClaimLostError, held_by_another

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_log = logging.getLogger(__name__)
# Two files at once keep the connections busy while one of them is hashed to its end or completed.
FILES_AT_ONCE = 2
PLACES_AT_ONCE = 4
PLACE_TRIES = 4
# How long an abandoned publication waits for requests in flight: SIGTERM leaves ten seconds in all.
ABANDON_SECONDS = 3.0


def _open_unbuffered(path: Path) -> BinaryIO:
    """Open a file whose reads go straight into the caller's buffers."""
    return cast("BinaryIO", path.open("rb", buffering=0))


def _is_what_was_sent(now: Stat, staged: StagedFile, tag: str) -> bool:
    """Compare size, version and, where the store keeps one, checksum."""
    return (
        now.size_bytes == staged.size_bytes
        and now.tag == tag
        and (staged.checksum is None or now.checksum in {None, staged.checksum})
    )


class AlreadyPublishedError(Exception):
    """The manifest of this digest is there; not a failure of the run."""

    def __init__(self, uri: str, manifest: Manifest, manifest_sha256: str) -> None:
        """Keep what is published at `uri`."""
        super().__init__(f"{uri} is already published")
        self.uri = uri
        self.manifest = manifest
        self.manifest_sha256 = manifest_sha256


class StoppedError(Exception):
    """The publication was abandoned while this file was on its way."""


@dataclass(frozen=True, slots=True)
class Published:
    """A published artifact.

    `strays` are objects below the prefix that the manifest does not name.
    """

    uri: str
    manifest: Manifest
    manifest_sha256: str
    strays: tuple[str, ...] = ()


def read_published(backend: Backend) -> tuple[Manifest, str] | None:
    """Return the manifest below the prefix and its SHA-256, or None where there is none."""
    stored = backend.read(MANIFEST_NAME)
    if stored is None:
        return None
    try:
        return Manifest.from_bytes(stored.body), sha256_hex(stored.body)
    except ValidationError as error:
        raise UnavailableError(
            f"{backend.uri}{MANIFEST_NAME} is there, but it is no manifest of kubequant.",
            advice="Look at the object, and publish under another spec.output.uri "
            "or remove it by hand.",
        ) from error


class Publication:
    """A publication under way; open it by `Store.claim`. Thread-safe."""

    def __init__(
        self, backend: Backend, claim: Claim | None, on_bytes: Callable[[int], None]
    ) -> None:
        """Publish through `backend` under `claim`, None where the store knows no conditions."""
        self._backend = backend
        self._claim = claim
        self._on_bytes = on_bytes
        self._found = backend.objects()
        self._tokens: dict[str, str] = {}
        self._staging: dict[str, Future[StagedFile]] = {}
        self._pool = ThreadPoolExecutor(FILES_AT_ONCE, thread_name_prefix="stage")
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._ended = False

    @property
    def uri(self) -> str:
        """The prefix that this publishes to, with a '/' at its end."""
        return self._backend.uri

    def add(self, path: Path, name: str) -> None:
        """Start to upload the file at `path` under `name` and return at once.

        The file must stay as it is until `commit` has returned. Trouble is raised by `uploaded` or
        `commit`.
        """
        self._begin(name, lambda: _open_unbuffered(path), path.stat().st_size)

    def add_bytes(self, content: bytes, name: str) -> None:
        """Start to upload `content` under `name` and return at once."""
        self._begin(name, lambda: io.BytesIO(content), len(content))

    def uploaded(self) -> tuple[FileDigest, ...]:
        """Wait until all that was added is in the store, and return its digests by path."""
        return tuple(
            sorted(FileDigest(f.name, f.size_bytes, f.sha256) for f in self._staged_files())
        )

    def commit(self, manifest: bytes) -> Published:
        """Make everything visible, the manifest last.

        Raises AlreadyPublishedError where another publisher was first and published the same bytes,
        UnavailableError (AnotherPublisher) where it published others or holds the claim, ValueError
        where `manifest` does not name exactly what was added.
        """
        staged = self._staged_files()
        document = Manifest.from_bytes(manifest)
        if document.digests() != self.uploaded():
            raise ValueError("the manifest does not name the files that were added")
        try:
            self._refuse_published(document)
            self._register(staged)
            with ThreadPoolExecutor(PLACES_AT_ONCE, thread_name_prefix="place") as pool:
                tags = list(pool.map(self._place, staged))
                list(pool.map(self._verify, staged, tags))
            self._place_manifest(manifest)
        except (ClaimLostError, ConflictError) as error:
            raise self._other_publisher(document) from error
        except GoneError as error:
            raise self._discarded(document) from error
        self._end(remove_claim=True)
        strays = set(self._found) - {file.path for file in document.files} - {CLAIM_NAME}
        return Published(self.uri, document, sha256_hex(manifest), tuple(sorted(strays)))

    def abandon(self) -> None:
        """Discard all that was staged and give the claim up.

        Does nothing once committed or abandoned.
        """
        if self._ended:
            return
        self._stopped.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        wait(self._staging.values(), timeout=ABANDON_SECONDS)
        with self._lock:
            tokens = dict(self._tokens)
        with ThreadPoolExecutor(PLACES_AT_ONCE, thread_name_prefix="discard") as pool:
            list(pool.map(self._discard, tokens.items()))
        self._end(remove_claim=True)

    def _begin(self, name: str, open_source: Callable[[], BinaryIO], size: int) -> None:
        if name in self._staging or name in {MANIFEST_NAME, CLAIM_NAME}:
            raise ValueError(f"{name} was added already, or is ours to write")
        if self._claim is not None and self._claim.lost:
            raise self._other_publisher(None)
        self._staging[name] = self._pool.submit(self._stage, name, open_source, size)

    def _stage(self, name: str, open_source: Callable[[], BinaryIO], size: int) -> StagedFile:
        """Stage one file; a token is kept from its first moment on, so that `abandon` finds it."""
        if self._stopped.is_set():
            raise StoppedError
        token = self._backend.open_staging(name)
        with self._lock:
            self._tokens[name] = token
        with open_source() as source:
            return self._backend.fill(name, token, source, size, self._count)

    def _count(self, amount: int) -> None:
        if self._stopped.is_set():
            raise StoppedError
        self._on_bytes(amount)

    def _staged_files(self) -> list[StagedFile]:
        try:
            return [future.result() for _, future in sorted(self._staging.items())]
        except GoneError as error:
            raise self._discarded(None) from error

    def _discarded(self, document: Manifest | None) -> Exception:
        """Return what to raise where a token of ours is gone.

        Taken from us, or by the store's own rules.
        """
        try:
            if self._claim is not None:
                self._claim.renew()
        except ClaimLostError:
            return self._other_publisher(document)
        return UnavailableError(
            f"An unfinished upload to {self.uri} was aborted by somebody else.",
            advice="Look for a lifecycle rule of the bucket that aborts unfinished uploads "
            "too early; the run is tried again.",
        )

    def _register(self, staged: list[StagedFile]) -> None:
        if self._claim is not None:
            self._claim.renew(staged=[(file.name, file.token) for file in staged])

    def _place(self, staged: StagedFile) -> str:
        """Make one file visible.

        A conflict under a claim that is still ours is a late answer or an old leftover.
        """
        found = self._found.get(staged.name)
        expected = found.tag if found else None
        conditional = self._claim is not None
        for attempt in range(PLACE_TRIES):
            if self._claim is not None:
                self._claim.confirm()
            try:
                return self._backend.place(staged, expected, conditional=conditional)
            except ConflictError:
                if self._claim is None or attempt == PLACE_TRIES - 1:
                    raise
                self._claim.renew()
                now = self._backend.stat(staged.name)
                expected = now.tag if now else None
                time.sleep(0.1 * 2**attempt)
        raise ConflictError

    def _verify(self, staged: StagedFile, tag: str) -> None:
        """Ask the store what it holds now; the manifest is written only if it is what we sent."""
        now = self._backend.stat(staged.name)
        if now is not None and _is_what_was_sent(now, staged, tag):
            return
        if self._claim is not None:
            self._claim.renew()
        answer = f"{now.size_bytes} bytes" if now else "nothing"
        raise UnavailableError(
            f"{self.uri}{staged.name} is not what was uploaded: {staged.size_bytes} bytes were "
            f"sent, and the store has {answer}, or it has another checksum.",
            advice="Somebody else writes below this prefix, or the store lost data; "
            "the run is tried again.",
        )

    def _place_manifest(self, manifest: bytes) -> None:
        """Write the manifest where there must be none, and see whether it is the one that stays.

        Some stores answer an upload that was aborted as if it had been completed, where an object
        of its name exists: an answer alone proves nothing.
        """
        token = self._backend.open_staging(MANIFEST_NAME)
        with self._lock:
            self._tokens[MANIFEST_NAME] = token
        staged = self._backend.fill(
            MANIFEST_NAME, token, io.BytesIO(manifest), len(manifest), lambda _amount: None
        )
        self._register([staged])
        tag = self._backend.place(staged, None, conditional=self._claim is not None)
        now = self._backend.stat(MANIFEST_NAME)
        if now is None or not _is_what_was_sent(now, staged, tag):
            raise ConflictError(MANIFEST_NAME)
        if self._claim is not None:
            # The same bytes may be another publisher's; whoever holds the claim wrote them.
            self._claim.renew(staged=[])

    def _refuse_published(self, document: Manifest) -> None:
        """Look for a manifest before the first visible change.

        No object that it names may be touched.
        """
        if self._backend.stat(MANIFEST_NAME) is not None:
            raise self._other_publisher(document)

    def _other_publisher(self, document: Manifest | None) -> Exception:
        """Return what to raise when another publisher was faster: its manifest decides."""
        published = read_published(self._backend)
        if published is None:
            return held_by_another(self.uri)
        manifest, sha256 = published
        if document is None or manifest.digests() == document.digests():
            return AlreadyPublishedError(self.uri, manifest, sha256)
        return UnavailableError(
            f"Another run published {self.uri} first, with other bytes than this one has made.",
            reason=FailureReason.ANOTHER_PUBLISHER,
            advice="What is published is whole and stays; running again ends as AlreadyPublished.",
        )

    def _discard(self, item: tuple[str, str]) -> None:
        try:
            self._backend.discard(*item)
        except WorkerError as error:
            _log.warning("an unfinished upload of %s could not be aborted: %s", item[0], error)

    def _end(self, *, remove_claim: bool) -> None:
        self._ended = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._claim is not None:
            self._claim.release(remove=remove_claim)
