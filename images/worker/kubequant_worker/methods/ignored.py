"""Which modules a spec's `ignore` names: the same words mean the same for every engine.

A word is a module's whole name, or "re:" and a regular expression that a name begins with, as
compressed-tensors matches them. Pure: names in, names out.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from kubequant_worker.errors import BadRequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_PATTERN: Final = "re:"


def matches(name: str, word: str) -> bool:
    """Say whether the module `name` is meant by a word of `ignore`.

    Raises:
        BadRequestError: It is no regular expression.
    """
    if not word.startswith(_PATTERN):
        return name == word
    try:
        return re.match(word.removeprefix(_PATTERN), name) is not None
    except re.error as error:
        raise BadRequestError(
            f"ignore: {word} is no regular expression ({error}); mend it"
        ) from error


def ignored(names: Iterable[str], words: Sequence[str]) -> frozenset[str]:
    """Return those of `names` that `words` mean."""
    return frozenset(name for name in names if any(matches(name, word) for word in words))


def words_of_nothing(names: Sequence[str], words: Iterable[str]) -> list[str]:
    """Return those of `words` that mean none of `names`, sorted."""
    return sorted({word for word in words if not any(matches(name, word) for name in names)})
