"""Perplexity, divergence and agreement against the textbook's formulas, on given logits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, rel_entr
from tests.worker.evaluation.meters import Recorder
from tests.worker.evaluation.runtimes import Table

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.evaluation.perplexity import (
    KEPT_TOKENS,
    Comparison,
    Original,
    Windows,
    increase,
    kept_rows,
    measure_original,
    measure_variant,
    perplexity,
    windows,
)

if TYPE_CHECKING:
    from pathlib import Path

DRAW = np.random.default_rng(1)
VOCABULARY = 300
TABLE = DRAW.normal(0, 4, (VOCABULARY, VOCABULARY)).astype(np.float32)
WORSE = (TABLE + DRAW.normal(0, 1, TABLE.shape)).astype(np.float32)
STREAM = DRAW.integers(1, VOCABULARY, 1000).astype(np.int32)


def cut(bos_token: int | None = 0, tokens: int = 1000) -> Windows:
    return windows(STREAM, context_length=64, bos_token=bos_token, max_tokens=tokens)


def measured(
    folder: Path, table: npt.NDArray[np.float32], most_kept: int = KEPT_TOKENS
) -> tuple[Original, Comparison]:
    pieces = cut()
    rows = kept_rows(pieces, most_kept)
    original = measure_original(
        Table(TABLE), pieces, keep=folder / "kept", meter=Recorder(), rows=rows
    )
    return original, measure_variant(Table(table), pieces, original, meter=Recorder())


@given(
    length=st.integers(300, 700),
    context=st.integers(16, 400),
    bos=st.sampled_from([None, 5]),
    most=st.integers(300, 800),
)
def test_every_text_token_is_scored_exactly_once(
    length: int, context: int, bos: int | None, most: int
) -> None:
    stream = np.arange(100, 100 + length, dtype=np.int32)
    pieces = windows(stream, context_length=context, bos_token=bos, max_tokens=most)
    scored = np.concatenate(pieces.targets).tolist()
    used = stream[:most].tolist()
    if bos is None:
        firsts = set(used[::context])
        assert scored == [token for token in used if token not in firsts]
    else:
        assert scored == used
        assert all(piece[0] == bos for piece in pieces.inputs)
    assert pieces.scored_tokens == len(scored)
    for inputs, targets in zip(pieces.inputs, pieces.targets, strict=True):
        assert len(inputs) == len(targets) < context
        assert inputs[1:].tolist() == targets[:-1].tolist()


def test_a_text_too_short_is_refused_with_the_numbers() -> None:
    with pytest.raises(BadRequestError, match=r"gives 40 tokens .* at least 256") as caught:
        windows(STREAM[:40], context_length=64, bos_token=0, max_tokens=1000)
    assert caught.value.reason is FailureReason.UNUSABLE_DATASET


def test_perplexity_and_divergence_are_the_textbooks(tmp_path: Path) -> None:
    original, comparison = measured(tmp_path, WORSE)
    pieces = cut()
    inputs, targets = np.concatenate(pieces.inputs), np.concatenate(pieces.targets)
    right = log_softmax(TABLE[inputs].astype(np.float64), axis=1)
    wrong = log_softmax(WORSE[inputs].astype(np.float64), axis=1)
    rows = np.arange(len(targets))
    expected = math.exp(-right[rows, targets].mean())
    assert original.perplexity.value == pytest.approx(expected, rel=1e-6)
    assert comparison.perplexity.value == pytest.approx(
        math.exp(-wrong[rows, targets].mean()), rel=1e-6
    )
    divergence = rel_entr(np.exp(right), np.exp(wrong)).sum(axis=1).mean()
    assert comparison.mean_kl_divergence == pytest.approx(divergence, rel=1e-3)
    agreement = (right.argmax(axis=1) == wrong.argmax(axis=1)).mean()
    assert comparison.top_token_agreement_percent == pytest.approx(100 * agreement)
    change = 100 * (comparison.perplexity.value / original.perplexity.value - 1)
    assert comparison.perplexity_increase_percent == pytest.approx(change)


def test_a_model_against_itself_has_lost_nothing(tmp_path: Path) -> None:
    _, same = measured(tmp_path, TABLE)
    assert same.mean_kl_divergence < 1e-5
    assert same.top_token_agreement_percent == 100
    assert same.perplexity_increase_percent == 0
    assert same.perplexity_increase_standard_error == 0


def test_an_offset_common_to_a_row_changes_nothing(tmp_path: Path) -> None:
    shifted = TABLE + DRAW.normal(0, 30, (VOCABULARY, 1)).astype(np.float32)
    _, same = measured(tmp_path, shifted)
    assert same.mean_kl_divergence < 1e-5
    assert same.perplexity_increase_percent == pytest.approx(0, abs=1e-3)


def test_tokens_that_can_never_come_do_not_spoil_the_divergence(tmp_path: Path) -> None:
    masked = TABLE.copy()
    masked[:, -1] = -np.inf
    pieces = windows(STREAM % (VOCABULARY - 1), context_length=64, bos_token=0, max_tokens=1000)
    original = measure_original(Table(masked), pieces, keep=tmp_path / "kept", meter=Recorder())
    same = measure_variant(Table(masked), pieces, original, meter=Recorder())
    assert same.mean_kl_divergence < 1e-5


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_fail_verification(tmp_path: Path, value: float) -> None:
    broken = TABLE.copy()
    broken[STREAM[70], 5] = value
    with pytest.raises(BadRequestError, match="not finite") as caught:
        measured(tmp_path, broken)
    assert caught.value.reason is FailureReason.VERIFICATION_FAILED


def test_another_vocabulary_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(BadRequestError, match="has 299 tokens, the original's 300"):
        measured(tmp_path, TABLE[:, :-1])


def test_what_waits_on_disk_is_bounded_and_spread_over_the_text(tmp_path: Path) -> None:
    original, comparison = measured(tmp_path, WORSE, most_kept=400)
    assert (tmp_path / "kept").stat().st_size == original.kept.tokens * VOCABULARY * 2
    assert 300 < original.kept.tokens <= 400
    assert comparison.compared_tokens == original.kept.tokens
    assert all(original.kept.rows)


def test_what_is_kept_is_compared_with_the_same_positions(tmp_path: Path) -> None:
    original, comparison = measured(tmp_path, WORSE, most_kept=400)
    inputs = np.concatenate(
        [
            piece[rows.start : rows.stop]
            for piece, rows in zip(cut().inputs, original.kept.rows, strict=True)
        ]
    )
    right = log_softmax(TABLE[inputs].astype(np.float64), axis=1)
    wrong = log_softmax(WORSE[inputs].astype(np.float64), axis=1)
    divergence = rel_entr(np.exp(right), np.exp(wrong)).sum(axis=1).mean()

    assert comparison.mean_kl_divergence == pytest.approx(divergence, rel=1e-3)
    agreement = (right.argmax(axis=1) == wrong.argmax(axis=1)).mean()
    assert comparison.top_token_agreement_percent == pytest.approx(100 * agreement)


@pytest.mark.parametrize(
    ("context", "parts"),
    [
        pytest.param(512, 16, id="short windows whole"),
        pytest.param(2048, 16, id="a quarter of every second"),
        pytest.param(4096, 16, id="an eighth of each"),
        pytest.param(8192, 8, id="fewer windows, an eighth of each"),
        pytest.param(32768, 2, id="two windows"),
        pytest.param(65536, 1, id="one window"),
    ],
)
def test_rows_are_kept_of_as_many_windows_as_an_error_needs(context: int, parts: int) -> None:
    stream = np.ones(65536, np.int32)
    pieces = windows(stream, context_length=context, bos_token=0, max_tokens=65536)
    rows = kept_rows(pieces)
    kept = [part for part in rows if part]

    assert len(kept) == parts
    assert 0.98 * KEPT_TOKENS < sum(map(len, kept)) <= KEPT_TOKENS
    assert all(part.stop <= len(piece) for part, piece in zip(rows, pieces.targets, strict=True))
    # Long and short contexts are about as frequent among the kept as among all.
    positions = np.concatenate([np.array(part) for part in kept])
    assert positions.mean() == pytest.approx(context / 2, rel=0.01 if parts >= 8 else 0.15)


def test_the_standard_error_takes_windows_as_clusters() -> None:
    means = DRAW.normal(2, 0.5, 20)
    found = perplexity([np.full(10, mean) for mean in means])
    # For clusters of one size: the standard deviation of the means over the root of their number.
    expected = np.std(means, ddof=1) / math.sqrt(20)
    assert found.mean_loss == pytest.approx(means.mean())
    assert found.standard_error == pytest.approx(found.value * expected)


def test_the_standard_error_is_what_repeated_texts_show() -> None:
    # Many texts whose windows differ are drawn; their means spread as far as the error says.
    means, errors = [], []
    for _ in range(400):
        counts = DRAW.integers(30, 60, 30)
        found = perplexity([DRAW.normal(DRAW.normal(3, 0.5), 1, count) for count in counts])
        means.append(found.mean_loss)
        errors.append(found.standard_error / found.value)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)


def test_a_single_window_is_paired_too(tmp_path: Path) -> None:
    pieces = windows(STREAM, context_length=2000, bos_token=0, max_tokens=1000)
    original = measure_original(Table(TABLE), pieces, keep=tmp_path / "kept", meter=Recorder())
    almost = Table((TABLE * 0.999).astype(np.float32))
    comparison = measure_variant(almost, pieces, original, meter=Recorder())
    own = 100 * original.perplexity.standard_error / original.perplexity.value

    assert len(pieces.inputs) == 1
    assert 0 < comparison.perplexity_increase_standard_error < own / 20


def test_the_increase_is_known_better_than_either_perplexity(tmp_path: Path) -> None:
    original, comparison = measured(tmp_path, (TABLE * 0.999).astype(np.float32))
    _, error = increase(original.perplexity, comparison.perplexity)
    own = 100 * original.perplexity.standard_error / original.perplexity.value
    assert error < own / 20


def test_progress_counts_every_scored_token(tmp_path: Path) -> None:
    meter = Recorder()
    measure_original(Table(TABLE), cut(), keep=tmp_path / "kept", meter=meter)
    assert meter.done == cut().scored_tokens
    assert meter.messages[-1] == "window 16 of 16"
