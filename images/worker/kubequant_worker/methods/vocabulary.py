"""Whether two models have the same vocabulary, as far as their tokenizers' files tell.

Distributions over next tokens can be compared only where a token is the same number in both. Files
are read as data; a tokenizer that they do not tell is loaded by transformers later, in
`distill_child`.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_FIELD = "spec.distill.student"
_SHOWN = 40


def require_same_files(teacher: Path, student: Path) -> None:
    """Raise BadRequestError where the files say that the tokens are other ones."""
    theirs, ours = tokens_of(teacher), tokens_of(student)
    if theirs is not None and ours is not None:
        require_same(theirs, ours)
        return
    models = [folder / "tokenizer.model" for folder in (teacher, student)]
    if all(path.is_file() for path in models) and theirs is None and ours is None:
        first, second = (hashlib.sha256(path.read_bytes()).digest() for path in models)
        if first != second:
            raise _refusal("their tokenizer.model are two files")


def require_same(teacher: Mapping[str, int], student: Mapping[str, int]) -> None:
    """Raise BadRequestError where a token of one is none, or another number, in the other.

    What only one of them adds behind the last token of the other is no contradiction: rows of
    logits that stand for nothing, or for nothing that the text holds.
    """
    shared = min(max(teacher.values(), default=-1), max(student.values(), default=-1)) + 1
    first = {token: number for token, number in teacher.items() if number < shared}
    second = {token: number for token, number in student.items() if number < shared}
    different = [token for token, number in first.items() if second.get(token) != number]
    different += [token for token in second if token not in first]
    if different:
        raise _refusal(
            f"of the teacher's {len(teacher)} tokens and the student's {len(student)}, "
            f"{len(different)} are not the same token with the same number, like "
            f"{different[0][:_SHOWN]!r}"
        )


def tokens_of(folder: Path) -> dict[str, int] | None:
    """Return the tokens of tokenizer.json with their numbers, None where it tells none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        listed: Any = content["model"]["vocab"]
        if isinstance(listed, list):  # Unigram: pairs of token and score, in order
            listed = {token: number for number, (token, _) in enumerate(listed)}
        added = {one["content"]: one["id"] for one in content.get("added_tokens") or ()}
        tokens = {str(token): int(number) for token, number in {**listed, **added}.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return tokens or None


def _refusal(what: str) -> BadRequestError:
    return BadRequestError(
        f"{_FIELD}: the student's vocabulary is not the teacher's, so what one predicts cannot be "
        f"held against the other: {what}",
        reason=FailureReason.UNSUPPORTED_MODEL,
        advice="take a student of the teacher's own family, or set "
        f"{_FIELD}.keepLayers, which makes one of the teacher's layers",
    )
