"""What makes two trainings the same work, so that one goes on from the other's checkpoint. Pure."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

from kubequant_worker.sources.safetensors_header import HeaderError, read_header, read_metadata

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from kubequant.api.params import DistillParameters
    from kubequant_worker.file_digest import FileDigest

IDENTITY: Final = "identity"
# Raised where a checkpoint of an earlier version would be read wrongly.
_FORM: Final = 1


def identity(
    parameters: DistillParameters,
    *,
    seed: int,
    samples: Path,
    models: Mapping[str, Iterable[FileDigest]],
) -> str:
    """Return the digest of all that a training computes from.

    The parameters, the token ids in the file `samples`, and the files of both models by their
    digests: an address may come to hold other bytes between two attempts.
    """
    asked: dict[str, Any] = parameters.to_json()
    asked.pop("checkpointSeconds", None)
    with samples.open("rb") as file:
        text = hashlib.file_digest(file, "sha256").hexdigest()
    files = {
        role: sorted((file.path, file.sha256) for file in digests)
        for role, digests in models.items()
    }
    whole = {"form": _FORM, "asked": asked, "seed": seed, "text": text, "files": files}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def is_of(path: Path, wanted: str) -> bool:
    """Say whether a checkpoint is whole as far as its header tells, and of this work."""
    try:
        read_header(path)
        return read_metadata(path).get(IDENTITY) == wanted
    except HeaderError:
        return False
