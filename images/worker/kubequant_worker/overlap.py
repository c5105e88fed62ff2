"""What calibrates never measures: how much of one text is in another, whatever they are called.

A text is compared by what was read of it, before a chat template rewrites it: a row of a table as a
whole, plain text by its sentences, since its pieces shift with the first line that is added.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kubequant_worker.file_digest import FileDigest

_DIGEST: Final = np.dtype("<u8")
# Chinese and Japanese set no space after a full stop.
_SENTENCE: Final = re.compile("\\n|(?<=[.!?])\\s|(?<=[\u3002\uff01\uff1f])")
# A shorter one, in bytes, may stand in any text.
_SHORTEST_SENTENCE: Final = 32
# One in so many may be in both: a boilerplate is no reason to refuse.
_MOST_SHARED: Final = 10


def row_mark(row: str | list[Any]) -> bytes:
    """Return the mark of one row: text, or a list of messages."""
    text = row if isinstance(row, str) else json.dumps(row, sort_keys=True, default=str)
    raw = text.strip().encode("utf-8", errors="replace")
    return hashlib.blake2b(raw, digest_size=_DIGEST.itemsize).digest()


def sentence_marks(text: str) -> bytes:
    """Return the marks of the sentences of plain text, one after another; without any, its own."""
    parts = _SENTENCE.split(text)
    sentences = [part for part in parts if _size(part) >= _SHORTEST_SENTENCE]
    return b"".join(map(row_mark, sentences)) or row_mark(text)


def _size(text: str) -> int:
    return len(text.encode("utf-8", errors="replace"))


def require_different(calibration: bytes, measured: bytes) -> None:
    """Refuse to measure on the very text that calibrated; both are marks.

    Raises:
        BadRequestError: More than a tenth of what is measured on is in what calibrates.
    """
    mine = np.unique(np.frombuffer(measured, _DIGEST))
    shared = int(np.isin(mine, np.frombuffer(calibration, _DIGEST)).sum())
    if shared * _MOST_SHARED > len(mine):
        raise _refusal(f"{shared} of its {len(mine)} rows or sentences")


def require_other_files(calibration: Sequence[FileDigest], measured: Sequence[FileDigest]) -> None:
    """Refuse to measure on the very files that calibrated.

    Raises:
        BadRequestError: More than a tenth of the bytes measured on are in such files.
    """
    known = {file.sha256 for file in calibration}
    shared = [file for file in measured if file.sha256 in known]
    total = sum(file.size_bytes for file in measured)
    if sum(file.size_bytes for file in shared) * _MOST_SHARED > total:
        names = ", ".join(file.path for file in shared[:5])
        raise _refusal(f"its files, or the same bytes ({names}),")


def _refusal(what: str) -> BadRequestError:
    return BadRequestError(
        f"spec.evaluation.perplexity.dataset: {what} are in spec.calibration.dataset too; a text "
        "that the method has seen measures nothing",
        reason=FailureReason.UNUSABLE_DATASET,
        advice="give another split or another text",
    )
