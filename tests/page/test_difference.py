"""Where two texts part."""

from __future__ import annotations

import pytest

from kubequant_worker.page.difference import marked


@pytest.mark.parametrize(
    ("original", "quantized", "different"),
    [
        pytest.param("a b c", "a b c", "", id="equal texts have no mark"),
        pytest.param("a b c", "a x c", "x c", id="from the word that differs"),
        pytest.param("the harbour", "the harvest", "harvest", id="from the beginning of the word"),
        pytest.param("It is", "It is so", " so", id="a longer text, from where the other ends"),
        pytest.param("so it is", "so", "", id="a shorter text ends without a mark"),
        pytest.param("x", "y", "y", id="from the first character on"),
        pytest.param("", "anything", "anything", id="nothing against something"),
        pytest.param("山" * 40 + "川", "山" * 40 + "海", "海", id="no blanks to go back to"),
    ],
)
def test_the_mark_begins_at_the_first_word_that_differs(
    original: str, quantized: str, different: str
) -> None:
    before, after = marked(original, quantized)

    assert after.different == different
    assert after.same + after.different == quantized
    assert before.same + before.different == original
    assert before.same == after.same
