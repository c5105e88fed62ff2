"""What counts as a checkpoint that loads and is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods.checkpoint_check import (
    MOST_DIVERGENCE,
    Reference,
    judge,
    judge_saved,
)

ROWS = np.random.default_rng(0).normal(0, 4, (50, 300)).astype(np.float32)
REFERENCE = Reference(np.arange(50, dtype=np.int32), ROWS)


@pytest.mark.parametrize("bits", MOST_DIVERGENCE)
def test_the_original_itself_passes_and_is_told_with_its_number(bits: int) -> None:
    assert judge(REFERENCE, ROWS + 3, bits=bits).endswith("mean divergence 0.0000 nats")


@pytest.mark.parametrize("bits", MOST_DIVERGENCE)
def test_the_logits_of_other_tokens_fail_at_any_bits(bits: int) -> None:
    with pytest.raises(BadRequestError, match="is not the original's likeness") as refused:
        judge(REFERENCE, np.roll(ROWS, 1, axis=1), bits=bits)
    assert refused.value.reason is FailureReason.VERIFICATION_FAILED


def test_what_four_bits_may_lose_eight_may_not() -> None:
    noise = np.random.default_rng(1).normal(0, 0.8, ROWS.shape).astype(np.float32)
    judge(REFERENCE, ROWS + noise, bits=4)
    with pytest.raises(BadRequestError, match=r"with 8 bits at most 0\.1 are expected"):
        judge(REFERENCE, ROWS + noise, bits=8)


def test_logits_that_are_no_numbers_fail() -> None:
    rows = ROWS.copy()
    rows[3, 7] = np.nan
    with pytest.raises(BadRequestError, match="not finite numbers"):
        judge(REFERENCE, rows, bits=4)


def test_a_model_that_comes_back_as_another_fails_at_any_bits() -> None:
    noise = np.random.default_rng(1).normal(0, 0.8, ROWS.shape).astype(np.float32)
    assert "mean divergence 0.0000" in judge_saved(REFERENCE, ROWS + noise, ROWS + noise)
    assert judge_saved(REFERENCE, ROWS + noise, ROWS)  # no further than quantizing was
    with pytest.raises(BadRequestError, match="not what transformers loads again") as refused:
        judge_saved(REFERENCE, ROWS, ROWS + noise)
    assert refused.value.reason is FailureReason.VERIFICATION_FAILED
