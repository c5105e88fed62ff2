"""Greedy generations of the original and a variant side by side, and a flag for degenerate text.

Only texts and token ids are judged here; `runtime.Runtime` makes them.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from itertools import zip_longest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kubequant_worker.evaluation.runtime import Generation

# Used where a manifest names no prompts: a story, a fact, an explanation, code.
DEFAULT_PROMPTS = (
    "Once upon a time, in a village by the sea,",
    "The capital of France is",
    "Explain in simple words why the sky is blue:",
    "def read_lines(path):\n    ",
)

# A text shorter than this is too short to be called a loop.
_LEAST_LOOP_TOKENS = 16
# The share of tokens that the repetition at the end of a looping text covers.
_LOOP_SHARE = 0.6
_LONGEST_PERIOD = 16
_LEAST_REPEATS = 4
# A quarter of the characters being replacement characters, controls or unassigned is no text.
_GIBBERISH_SHARE = 0.25
# One character making up more than this share of a longer text is no text either.
_ONE_CHARACTER_SHARE = 0.8
_LEAST_CHARACTERS = 12


class Degeneration(StrEnum):
    """Why a text cannot be the output of a working model."""

    EMPTY = "Empty"
    LOOP = "Loop"
    GIBBERISH = "Gibberish"


@dataclass(frozen=True, slots=True)
class SideBySide:
    """One prompt's two greedy continuations.

    `first_difference` is the index of the first new token in which they differ, None where they are
    equal. `degenerate` judges the variant's text; `original_degenerate` the original's, since a
    loop that the original runs into as well is not the quantization's fault.
    """

    prompt: str
    original: str
    quantized: str
    first_difference: int | None
    degenerate: Degeneration | None
    original_degenerate: Degeneration | None


def first_difference(original: Sequence[int], quantized: Sequence[int]) -> int | None:
    """Return the index of the first token in which the two differ (an end counts), or None."""
    for index, (left, right) in enumerate(zip_longest(original, quantized)):
        if left != right:
            return index
    return None


def degeneration(tokens: Sequence[int], text: str) -> Degeneration | None:
    """Return why a continuation is degenerate, or None where it may be a working model's.

    A short answer that the model ended itself is no fault; nothing at all is.
    """
    visible = text.strip()
    if not visible:
        return Degeneration.EMPTY
    if _is_gibberish(visible):
        return Degeneration.GIBBERISH
    if _is_loop(tokens):
        return Degeneration.LOOP
    return None


def _is_gibberish(text: str) -> bool:
    bad = sum(
        character == "\N{REPLACEMENT CHARACTER}"
        or (unicodedata.category(character) in {"Cc", "Cn", "Co"} and character not in "\n\r\t")
        for character in text
    )
    if bad > _GIBBERISH_SHARE * len(text):
        return True
    dense = [character for character in text if not character.isspace()]
    if len(dense) < _LEAST_CHARACTERS:
        return False
    return Counter(dense).most_common(1)[0][1] > _ONE_CHARACTER_SHARE * len(dense)


def _is_loop(tokens: Sequence[int]) -> bool:
    """Return whether the text ends in one short phrase said again and again.

    For most of its length.
    """
    count = len(tokens)
    if count < _LEAST_LOOP_TOKENS:
        return False
    for period in range(1, min(_LONGEST_PERIOD, count // _LEAST_REPEATS) + 1):
        run = period
        while run < count and tokens[count - 1 - run] == tokens[count - 1 - run + period]:
            run += 1
        if run >= max(_LEAST_REPEATS * period, _LOOP_SHARE * count):
            return True
    return False


def side_by_side(
    prompts: Sequence[str], original: Sequence[Generation], quantized: Sequence[Generation]
) -> tuple[SideBySide, ...]:
    """Return each prompt's continuations beside each other, judged."""
    return tuple(
        SideBySide(
            prompt=prompt,
            original=left.text,
            quantized=right.text,
            first_difference=first_difference(left.tokens, right.tokens),
            degenerate=degeneration(right.tokens, right.text),
            original_degenerate=degeneration(left.tokens, left.text),
        )
        for prompt, left, right in zip(prompts, original, quantized, strict=True)
    )
