"""Told errors against the true ones: how far means of texts drawn again and again really spread."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import lfilter

from kubequant_worker.evaluation.clusters import LEAST_CLUSTERS, cluster_starts, mean_error
from kubequant_worker.evaluation.perplexity import increase, perplexity

FloatArray = npt.NDArray[np.float64]

TEXTS = 300
# What the original loses on average, and how much more the variant does, in nats a token.
LOSS, MORE = 3.0, 0.02

CUTS = [
    pytest.param([2047, 1], id="a window and one token"),
    pytest.param([511, 511, 2], id="two windows and a sliver"),
    pytest.param([2048], id="one window"),
    pytest.param([4095, 4095], id="two windows"),
    pytest.param([511] * 8 + [8], id="eight windows and a sliver"),
    pytest.param([2047] * 32 + [32], id="33 windows"),
]


def levels(random: np.random.Generator, tokens: int) -> FloatArray:
    """Return what is common to neighbouring tokens: it fades over some twenty of them."""
    drawn = random.normal(0, 1, tokens + 200)
    return np.asarray(lfilter([math.sqrt(1 - 0.9**2)], [1, -0.9], drawn))[200:]


def losses(random: np.random.Generator, tokens: int) -> tuple[FloatArray, FloatArray]:
    """Return every token's loss by an original and a variant, of one text."""
    before = LOSS + 2 * (random.exponential(1, tokens) - 1) + levels(random, tokens)
    more = MORE + 0.3 * random.standard_t(5, tokens) + 0.1 * levels(random, tokens)
    return before, before + more


def assert_true(told: list[float], found: list[float], expected: float) -> None:
    true = math.sqrt(np.square(np.subtract(found, expected)).mean())
    assert math.sqrt(np.square(told).mean()) == pytest.approx(true, rel=0.2)
    within = np.abs(np.subtract(found, expected)) <= 2 * np.array(told)
    assert within.mean() > 0.88  # 0.954 where the errors themselves are known exactly


@pytest.mark.parametrize("lengths", CUTS)
def test_two_standard_errors_hold_what_they_say(lengths: list[int]) -> None:
    random = np.random.default_rng(3)
    edges = np.cumsum(lengths)[:-1]
    changes, means, divergences = [], [], []
    for _ in range(TEXTS):
        before, after = losses(random, sum(lengths))
        original = perplexity(np.split(before, edges))
        variant = perplexity(np.split(after, edges))
        changes.append(increase(original, variant))
        means.append((original.mean_loss, original.standard_error / original.value))
        some = np.square(after - before)
        divergences.append((some.mean(), mean_error(some, lengths)))

    expected = 100 * (math.exp(MORE) - 1)
    for pairs, mean in ((changes, expected), (means, LOSS), (divergences, None)):
        found, told = ([pair[at] for pair in pairs] for at in (0, 1))
        assert_true(told, found, float(np.mean(found)) if mean is None else mean)


def test_an_error_of_many_windows_is_by_windows() -> None:
    sums = np.arange(20.0)
    values = np.repeat(sums / 10, 10)
    # For clusters of one size: the standard deviation of the means over the root of their number.
    expected = np.std(sums / 10, ddof=1) / math.sqrt(20)

    assert mean_error(values, [10] * 20) == pytest.approx(expected)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=60), st.integers(1, 5000))
def test_clusters_are_as_many_as_an_error_needs_and_none_a_sliver(
    others: list[int], last: int
) -> None:
    longest = max(others)
    lengths = [longest] * len(others) + [min(last, longest)]
    starts = [*cluster_starts(lengths).tolist(), sum(lengths)]

    assert starts[0] == 0
    assert len(starts) > min(LEAST_CLUSTERS, sum(lengths))
    sizes = [after - before for before, after in pairwise(starts)]
    assert 2 * min(sizes) >= max(sizes) - 1
