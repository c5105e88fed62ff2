"""What the words of `ignore` mean, the same for every engine, and what is refused."""

from __future__ import annotations

import pytest
import torch

from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods.ignored import (
    classes_of,
    ignored,
    linear_modules,
    require_targets,
    require_whole_groups,
    widths_of,
    words_of_nothing,
)


class Rotated(torch.nn.Linear):
    """A kind of linear module."""


MODEL = torch.nn.ModuleDict(
    {
        "up": torch.nn.Linear(64, 96),
        "up_norm": torch.nn.LayerNorm(64),
        "down": Rotated(96, 64),
        "head": torch.nn.Linear(64, 8),
    }
)
# Words -> the linear modules that are left.
WORDS = {
    "a whole name": (["up"], {"down", "head"}),
    "no part of a name": (["u"], {"up", "down", "head"}),
    "an expression that names begin with": (["re:u"], {"down", "head"}),
    "an expression that a name only ends with": (["re:ead"], {"up", "down", "head"}),
    "a class": (["Rotated"], {"up", "head"}),
    "a class that others are made of": (["Linear"], set()),
    "several": (["up", "re:.*n$"], {"head"}),
    "nothing": ([], {"up", "down", "head"}),
}


@pytest.mark.parametrize("case", WORDS)
def test_what_is_left_is_what_no_word_means(case: str) -> None:
    words, left = WORDS[case]

    assert linear_modules(MODEL, words).keys() == left


def test_modules_without_classes_have_names_alone() -> None:
    assert ignored(["up", "down"], ["down", "Linear"]) == {"down"}


def test_words_that_mean_nothing_are_named_once_and_in_order() -> None:
    classes = classes_of(MODEL)
    words = ["wrong", "up", "re:.*d$", "LayerNorm", "also wrong", "wrong"]

    assert words_of_nothing(classes, words, classes) == ["also wrong", "wrong"]


def test_where_nothing_is_left_the_engine_is_named() -> None:
    with pytest.raises(BadRequestError, match=r"nothing for AutoRound to quantize: it has 3 "):
        require_targets(MODEL, {}, "AutoRound")


def test_groups_that_do_not_divide_a_row_are_refused_with_those_that_do() -> None:
    with pytest.raises(BadRequestError, match=r"64 does not divide the 96 columns of down") as said:
        require_whole_groups(widths_of(linear_modules(MODEL)), 64)

    assert said.value.advice.startswith("set groupSize to 32, -1, or ignore")


@pytest.mark.parametrize("size", [None, -1, 32])
def test_whole_groups_are_not_refused(size: int | None) -> None:
    require_whole_groups(widths_of(linear_modules(MODEL)), size)
