"""The files of a checkpoint's folder: which travel, how much they weigh, whether they are sound.

Pure looks at names and headers; what is done with the files is `checkpoint`'s.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.sources.model_folder import INDEXES
from kubequant_worker.sources.safetensors_header import HeaderError, read_header
from kubequant_worker.sources.selection import is_weights

if TYPE_CHECKING:
    from pathlib import Path

# Our own documents, whose names a model's files must not take.
_OURS = frozenset({"README.md", "report.json", "report.html", "provenance.json", "manifest.json"})
# The names that architectures of transformers give their embeddings and their output matrix.
_EMBEDDING = re.compile(r"(^|[.])(embed_tokens|wte|word_embeddings|embed_in|embed_out|lm_head)[.]")


def weight_bytes(folder: Path) -> int:
    """Return the bytes of weights in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir() if is_weights(path.name))


def embedding_bytes(folder: Path) -> int:
    """Return the bytes of the token embeddings and the output matrix in a folder of safetensors."""
    return sum(
        span.end - span.begin
        for path in folder.glob("*.safetensors")
        for span in read_header(path)
        if _EMBEDDING.search(span.name)
    )


def is_passenger(name: str) -> bool:
    """Say whether a model's file is neither weights, nor theirs, nor named as one of ours."""
    return not is_weights(name) and name not in INDEXES and name not in _OURS


def require_sound(path: Path) -> None:
    """Raise BadRequestError where a file is no safetensors file."""
    try:
        read_header(path)
    except HeaderError as error:
        raise BadRequestError(
            f"{path.name}: the engine wrote what is no safetensors file: {error}",
            reason=FailureReason.VERIFICATION_FAILED,
        ) from error
