"""Which texts are degenerate, and where two continuations part."""

from __future__ import annotations

import pytest

from kubequant_worker.evaluation.generations import (
    Degeneration,
    degeneration,
    first_difference,
    side_by_side,
)
from kubequant_worker.evaluation.runtime import Generation

PROSE = (
    "The harbour master counted the crates on Tuesday and signed for each of them; nothing was "
    "missing, the tide turned at a quarter to five, and by evening the last ship had left."
)


def words(text: str) -> list[int]:
    """Return a token for every word, the same for the same word."""
    seen: dict[str, int] = {}
    return [seen.setdefault(word, len(seen)) for word in text.split()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(PROSE, None, id="prose"),
        pytest.param("Paris.", None, id="a short answer"),
        pytest.param("", Degeneration.EMPTY, id="nothing"),
        pytest.param(" \n\t ", Degeneration.EMPTY, id="white space only"),
        pytest.param("the " * 40, Degeneration.LOOP, id="one word again and again"),
        pytest.param("I am a cat. " * 10, Degeneration.LOOP, id="one sentence again and again"),
        pytest.param(PROSE + " and so" * 40, Degeneration.LOOP, id="prose that ends in a loop"),
        pytest.param(PROSE + " no" * 6, None, id="prose that ends in a short repetition"),
        pytest.param(
            "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17", None, id="counting"
        ),
        pytest.param(
            "\ufffd\ufffd\ufffda\ufffd b", Degeneration.GIBBERISH, id="bytes that are no UTF-8"
        ),
        pytest.param("!!!!!!!!!!!!!!!!!!!!!!!!", Degeneration.GIBBERISH, id="one character"),
        pytest.param(
            "! ! ! ! ! ! ! ! ! ! ! ! ! ! !", Degeneration.GIBBERISH, id="one character, spaced"
        ),
        pytest.param("\x00\x01\x02 x \x03", Degeneration.GIBBERISH, id="control characters"),
        pytest.param("井不说话。可是谁来过它都记得。后来村里通了自来水。", None, id="Chinese"),
        pytest.param(
            "def f(x):\n    return x\n\n\ndef g(y):\n    return f(y) + 1\n", None, id="code"
        ),
        pytest.param("👍🏽 привет", None, id="emoji and Cyrillic"),
    ],
)
def test_degenerate_text_is_told_from_text(text: str, expected: Degeneration | None) -> None:
    assert degeneration(words(text), text) is expected


@pytest.mark.parametrize(
    ("left", "right", "index"),
    [
        pytest.param([1, 2, 3], [1, 2, 3], None, id="the same"),
        pytest.param([1, 2, 3], [1, 9, 3], 1, id="one token differs"),
        pytest.param([1, 2, 3], [1, 2], 2, id="one ends before"),
        pytest.param([], [4], 0, id="one is empty"),
    ],
)
def test_the_first_difference_is_an_index(
    left: list[int], right: list[int], index: int | None
) -> None:
    assert first_difference(left, right) == index


def test_both_texts_are_judged_and_kept() -> None:
    left = Generation((1, 2), "a b", stopped=True)
    right = Generation((), "", stopped=True)
    (pair,) = side_by_side(["p"], [left], [right])
    assert (pair.prompt, pair.original, pair.quantized) == ("p", "a b", "")
    assert pair.degenerate is Degeneration.EMPTY
    assert pair.original_degenerate is None
    assert pair.first_difference == 0
