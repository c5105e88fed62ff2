"""What a source is.

Values that describe what it holds, and the two operations that every kind of address has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from kubequant.api.contract import EarlierStep, SourceCard
    from kubequant.api.data import S3Options
    from kubequant_worker.file_digest import FileDigest


@dataclass(frozen=True, slots=True)
class Origin:
    """An address to read from, with what opens it.

    `credentials` is the role's folder of credential files, which may be absent; `field` is the part
    of the spec that an error's sentence names; `kind` decides whether something missing is
    ModelNotFound or DatasetNotFound.
    """

    uri: str
    revision: str | None
    s3: S3Options | None
    credentials: Path
    volumes: Path
    field: str
    kind: Literal["model", "dataset"]


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file as its listing has it. `path` is relative, with '/'; nobody has checked it yet.

    `sha256` and `git_blob` are what the listing says of its content, where it does; `tag` is the
    store's version of it.
    """

    path: str
    size_bytes: int
    sha256: str | None = None
    git_blob: str | None = None
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """What an address holds. `revision` is the resolved commit, where there is one."""

    revision: str | None
    files: tuple[RemoteFile, ...]


@dataclass(frozen=True, slots=True)
class ModelListing:
    """A model before it is fetched: what will be taken, in bytes in all and of weights.

    Where it `is_linked`, fetching takes no room.
    """

    uri: str
    revision: str | None
    files: tuple[RemoteFile, ...]
    size_bytes: int
    weight_bytes: int
    is_linked: bool


@dataclass(frozen=True, slots=True)
class FetchedModel:
    """A model that is there, was checked and may be opened.

    `size_bytes` counts the weights alone; `card` is what the model's own card says, `steps` how the
    provenance beside it says that it was made.
    """

    folder: Path
    uri: str
    revision: str | None
    files: tuple[FileDigest, ...]
    size_bytes: int
    card: SourceCard | None = None
    steps: tuple[EarlierStep, ...] = ()


@dataclass(frozen=True, slots=True)
class FetchedDataset:
    """A dataset's files, on local disk. `digests` are of the same files, in the same order."""

    uri: str
    revision: str | None
    files: tuple[Path, ...]
    digests: tuple[FileDigest, ...]


class Source(Protocol):
    """One address that can be listed and fetched from.

    `copies` says whether fetching moves bytes, or makes links to where they are.
    """

    copies: ClassVar[bool]

    def listing(self) -> Listing:
        """Return every file below the address; raises AccessError and UnavailableError."""

    def fetch(
        self,
        files: Sequence[RemoteFile],
        listing: Listing,
        into: Path,
        on_bytes: Callable[[int], None],
    ) -> Iterable[FileDigest]:
        """Bring `files` into `into` and return their digests; `on_bytes` hears of each piece."""
