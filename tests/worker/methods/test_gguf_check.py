"""A conversion that lost something is caught; rounding is not."""

from __future__ import annotations

import numpy as np
import pytest

from kubequant.api.outcome import FailureReason
from kubequant.api.params import GGUFType
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods.gguf_check import compare, judge, tokenization_warning
from kubequant_worker.methods.gguf_file import Tensor, TensorType
from kubequant_worker.methods.gguf_types import LEVELS, fallback_notes

LOGITS = np.random.default_rng(0).normal(0, 3, (40, 500)).astype(np.float32)


@pytest.mark.parametrize(
    "converted",
    [
        pytest.param(LOGITS, id="the same"),
        pytest.param(LOGITS + 5, id="an offset, which no distribution feels"),
        pytest.param(LOGITS.astype(np.float16).astype(np.float32), id="rounded to half precision"),
        pytest.param(np.pad(LOGITS, ((0, 0), (0, 12))), id="a padded vocabulary"),
    ],
)
def test_a_sound_conversion_passes(converted: np.ndarray) -> None:
    judge(compare(LOGITS, converted))


@pytest.mark.parametrize(
    "converted",
    [
        pytest.param(LOGITS[:, ::-1], id="columns in another order"),
        pytest.param(LOGITS * 0.8, id="a scale that was lost"),
        pytest.param(LOGITS - 9 * (np.arange(500) == 7), id="one rare token's row lost"),
        pytest.param(np.roll(LOGITS, 1, axis=0), id="positions off by one"),
        pytest.param(np.full_like(LOGITS, np.nan), id="no numbers at all"),
        pytest.param(np.where(np.arange(500) == 7, 9.0, LOGITS), id="one token's row replaced"),
    ],
)
def test_a_lossy_conversion_fails_verification(converted: np.ndarray) -> None:
    with pytest.raises(BadRequestError, match="lost something") as caught:
        judge(compare(LOGITS, converted.astype(np.float32)))
    assert caught.value.reason is FailureReason.VERIFICATION_FAILED


def test_another_tokenization_is_a_warning_that_says_where() -> None:
    assert tokenization_warning([1, 5, 6], [1, 5, 6]) is None
    assert "from token 1 on; 4 tokens against 3" in (
        tokenization_warning([1, 5, 6], [1, 7, 8, 6]) or ""
    )
    assert "from token 2 on" in (tokenization_warning([1, 5], [1, 5, 6]) or "")


def tensor(name: str, width: int, kind: str, block: int, size: int) -> Tensor:
    return Tensor(name, (width, 4), TensorType(kind, block, size), 0)


def test_fall_backs_are_counted_by_type_and_width() -> None:
    tensors = [
        tensor("a", 256, "Q4_K", 256, 144),
        tensor("b", 192, "Q5_0", 32, 22),
        tensor("c", 192, "Q5_0", 32, 22),
        tensor("d", 100, "F16", 1, 2),
        Tensor("norm", (192,), TensorType("F32", 1, 4), 0),
    ]
    notes = fallback_notes(LEVELS[GGUFType.Q4_K_M], tensors)
    assert [note.partition(",")[0] for note in notes] == [
        "1 of 4 tensors fell back to F16 because their rows are 100 wide",
        "2 of 4 tensors fell back to Q5_0 because their rows are 192 wide",
    ]
