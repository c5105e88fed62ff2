"""Where two generated texts part: what is marked in the quantized model's text.

A report holds texts, not tokens. The mark begins at the word in which the texts part, which is the
first that holds a token of difference.
"""

from __future__ import annotations

from dataclasses import dataclass

# Scripts without blanks would carry the mark back to the beginning; no word is longer.
_LONGEST_WORD = 32


@dataclass(frozen=True, slots=True)
class Marked:
    """A text in two: what both models wrote, and what only this one did."""

    same: str
    different: str


def marked(original: str, quantized: str) -> tuple[Marked, Marked]:
    """Return both texts, each cut where they part."""
    pairs = enumerate(zip(original, quantized, strict=False))
    shorter = min(len(original), len(quantized))
    at = _word_start(original, quantized, next((n for n, (a, b) in pairs if a != b), shorter))
    return Marked(original[:at], original[at:]), Marked(quantized[:at], quantized[at:])


def _word_start(original: str, quantized: str, at: int) -> int:
    if not any(text[at : at + 1].isalnum() for text in (original, quantized)):
        return at
    start = at
    while start > max(0, at - _LONGEST_WORD) and original[start - 1].isalnum():
        start -= 1
    return start if start == 0 or not original[start - 1].isalnum() else at
