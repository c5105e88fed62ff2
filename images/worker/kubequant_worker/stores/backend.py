"""What a place to publish to must be able to do, in few and small operations.

The algorithm that keeps manifests true (`claim`, `publication`) is written once above these; `s3`
and `folder` implement them and know nothing of claims. Two ideas carry it:

- Small objects (the claim) are created only where absent and replaced only where unchanged.
- A file is staged first: its bytes go where no reader sees them, under a token. `place` makes it
  visible in one step, and only while the token lives; `discard` ends the token for good. Whoever
  takes a dead publisher's claim over discards the tokens that stand in it, so nothing that the dead
  one still has in flight can become visible, however late it wakes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


class ConflictError(Exception):
    """The object is not as the caller expected it: it exists, is gone, or has changed."""


class GoneError(Exception):
    """The staged file was discarded."""


@dataclass(frozen=True, slots=True)
class Stat:
    """A visible object.

    `tag` changes whenever it is written; `checksum` is the store's own, where it keeps one.
    """

    size_bytes: int
    tag: str
    checksum: str | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A small object, read whole.

    `age_seconds` is by the store's clock, None where it has none to trust.
    """

    body: bytes
    tag: str
    age_seconds: float | None


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A file whose bytes are in the store and not yet visible.

    `checksum` is what the store must say of it once it is placed (None where it keeps no
    checksums); `parts` is the backend's own.
    """

    name: str
    token: str
    size_bytes: int
    sha256: str
    checksum: str | None = None
    parts: tuple[Mapping[str, object], ...] = ()


@dataclass(frozen=True, slots=True)
class Probe:
    """What Preflight learned of a store. `notes` are sentences for the report."""

    conditional_writes: bool
    checksums: bool
    notes: tuple[str, ...] = ()


class Backend(Protocol):
    """One prefix of one store. Every operation raises WorkerError for the world's trouble."""

    @property
    def uri(self) -> str:
        """The prefix, as people write it, with a '/' at its end."""

    def probe(self) -> Probe:
        """Prove with real writes that a run can publish here, leaving nothing behind."""

    def read(self, name: str) -> Stored | None:
        """Return a small object, or None where it is absent."""

    def stream(self, name: str) -> Iterator[bytes] | None:
        """Return the bytes of an object of any size in pieces, or None where it is absent."""

    def create(self, name: str, body: bytes) -> str:
        """Write a small object that must be absent and return its tag; raises ConflictError."""

    def replace(self, name: str, body: bytes, tag: str) -> str:
        """Write a small object that must still have `tag` and return the new one.

        Raises ConflictError.
        """

    def remove(self, name: str, tag: str) -> None:
        """Delete a small object that has `tag`, where the store can; what it refuses stays."""

    def stat(self, name: str) -> Stat | None:
        """Ask the store what it has, or None where the object is absent."""

    def objects(self) -> dict[str, Stat]:
        """Return every visible object below the prefix, without checksums."""

    def folders(self, name: str, most: int) -> tuple[str, ...]:
        """Return the first `most` names directly below `name` that hold something themselves."""

    def open_staging(self, name: str) -> str:
        """Begin to stage a file and return its token."""

    def fill(
        self,
        name: str,
        token: str,
        source: BinaryIO,
        size_bytes: int,
        on_bytes: Callable[[int], None],
    ) -> StagedFile:
        """Send the bytes of `source`, telling `on_bytes` of each piece; raises GoneError."""

    def place(self, staged: StagedFile, expected: str | None, *, conditional: bool) -> str:
        """Make a staged file visible in one step and return its tag.

        `expected` is the tag of the object that it replaces, None where there must be none; raises
        ConflictError where that does not hold and GoneError where the token was discarded.
        """

    def discard(self, name: str, token: str) -> None:
        """End a token, so that it can never be placed; one that is gone already is fine."""

    def sweep(self, *, older_than_seconds: float = 0) -> None:
        """Discard what anybody has staged below the prefix, where the store can list it.

        Only what was begun so long ago.
        """

    def vanish(self) -> None:
        """Remove the prefix itself where it is empty and the store has folders.

        Only where nobody else works below it.
        """

    def close(self) -> None:
        """Let go of threads and connections."""
