"""The artifact's manifest.

Every file's size and SHA-256, written last; without it a prefix does not exist.

Only the document lives here; how it is written so that it is always true is said in
`stores.publication`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from kubequant.api.base import Model
from kubequant.api.contract import EngineDetail
from kubequant.api.fields import SHA256, ByteCount, RunDigest, ShortText
from kubequant_worker.file_digest import FileDigest

if TYPE_CHECKING:
    from collections.abc import Iterable

MANIFEST_NAME = "manifest.json"


class ManifestFile(Model):
    """One file of the artifact."""

    path: Annotated[str, Field(min_length=1, max_length=1024)]
    """Where it is below the prefix."""
    size: ByteCount
    """Its length in bytes."""
    sha256: SHA256
    """The SHA-256 of its bytes, in lower case hexadecimal digits."""


class Manifest(Model):
    """What a published prefix holds."""

    version: Literal[1] = 1
    """The form of this document."""
    name: ShortText
    """The QuantizationJob's name."""
    digest: RunDigest
    """The digest of the spec that the artifact was made from."""
    files: Annotated[tuple[ManifestFile, ...], Field(max_length=10_000)]
    """Every file but this one, by path."""
    engine: EngineDetail | None = None
    """What a TensorRT-LLM engine among the files was built on and for: it serves nothing else."""

    @classmethod
    def of(
        cls,
        name: str,
        digest: str,
        files: Iterable[FileDigest],
        *,
        engine: EngineDetail | None = None,
    ) -> Manifest:
        """Return the manifest of `files`, ordered by path."""
        listed = tuple(
            ManifestFile(path=file.path, size=file.size_bytes, sha256=file.sha256)
            for file in sorted(files)
        )
        return cls(name=name, digest=digest, files=listed, engine=engine)

    @classmethod
    def from_bytes(cls, content: bytes) -> Manifest:
        """Read a manifest; raises pydantic's ValidationError where it is none."""
        return cls.model_validate_json(content)

    def to_bytes(self) -> bytes:
        """Return the document as it is published: indented, one line at the end."""
        return self.model_dump_json(indent=2, exclude_none=True).encode() + b"\n"

    def digests(self) -> tuple[FileDigest, ...]:
        """Return the files as values to compare, ordered by path."""
        return tuple(sorted(FileDigest(f.path, f.size, f.sha256) for f in self.files))
