"""The source's own model card: which file it is, and what of it a derived model passes on.

Only the metadata at its head is read, as data; the words below it are its author's and stay there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from kubequant.api.contract import SourceCard

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from kubequant_worker.sources.source import RemoteFile

CARD_NAME = "README.md"
# A card larger than this is no card.
LARGEST_CARD_BYTES = 1024 * 1024
_FENCE = "---"
# The whole head of a real card has some hundred short lines; an alias could stand for any number.
_LARGEST_HEAD = 64 * 1024
_MOST_LANGUAGES = 64
_LONGEST_WORD = 253
_LONGEST_LINK = 2048
# What the YAML library raises, by design or, for a tag whose value does not fit, by accident.
_NO_HEAD = (
    yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError,
    ValueError,
)  # fmt: skip


def card_file(listed: Iterable[RemoteFile]) -> RemoteFile | None:
    """Return the model card among listed files, or None where there is none of a sane size."""
    return next(
        (f for f in listed if f.path == CARD_NAME and f.size_bytes <= LARGEST_CARD_BYTES), None
    )


def read_card(path: Path) -> SourceCard | None:
    """Return what the card's metadata says, or None where it says nothing that we pass on.

    A broken or hostile head is no head: a card never stops a run.
    """
    head = _head(path.read_text(encoding="utf-8", errors="replace"))
    card = SourceCard(
        license=_word(head.get("license")),
        license_name=_word(head.get("license_name")),
        license_link=_word(head.get("license_link"), _LONGEST_LINK),
        languages=_words(head.get("language")),
        pipeline_tag=_word(head.get("pipeline_tag")),
    )
    return None if card == SourceCard() else card


def _head(text: str) -> dict[str, Any]:
    """Return the metadata between the two fences at the beginning of a card."""
    first, _, rest = text.lstrip("\ufeff").partition("\n")
    head, fence, _ = rest.partition(f"\n{_FENCE}")
    if first.strip() != _FENCE or not fence or len(head) > _LARGEST_HEAD:
        return {}
    try:
        content = yaml.safe_load(head)
    except _NO_HEAD:
        return {}
    return content if isinstance(content, dict) else {}


def _word(value: object, longest: int = _LONGEST_WORD) -> str:
    """Return a line of text as it is, and nothing for anything else."""
    if not isinstance(value, str) or len(value) > longest or not value.isprintable():
        return ""
    return value.strip()


def _words(value: object) -> tuple[str, ...]:
    found = value if isinstance(value, list) else [value]
    return tuple(filter(None, map(_word, found[:_MOST_LANGUAGES])))
