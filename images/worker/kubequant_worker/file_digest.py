"""A file by its content, as sources and stores speak of it; no model of the API is needed here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class FileDigest:
    """One file by content: `path` relative to its folder, with '/' as the separator."""

    path: str
    size_bytes: int
    sha256: str


def sha256_hex(content: bytes) -> str:
    """Return the SHA-256 of `content` in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
