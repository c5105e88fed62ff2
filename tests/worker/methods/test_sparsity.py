"""Zeros are counted in the files themselves, whatever the type, and too few end the run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import save_file

from kubequant.api.outcome import FailureReason
from kubequant_worker.details import MOST_MODULES, sparsity_detail
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods import sparsity
from kubequant_worker.methods.sparsity import Matrix, Sparsity, require_sparsity, saved_matrices

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

# Per row: two zeros of the first four, none of the next, then one.
ROW = [0, 1, -0.0, 2, 3, 4, 5, 6, 0, 7, 8, 9]


def saved(folder: Path, values: npt.NDArray[np.generic], name: str = "a.weight") -> Path:
    save_file({name: values, "other.weight": values}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("piece", [4, 8, 1 << 20])
def test_zeros_of_both_signs_are_counted_in_pieces_of_any_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type, piece: int
) -> None:
    monkeypatch.setattr(sparsity, "_PIECE", piece)
    folder = saved(tmp_path, np.array([ROW] * 3, kind))

    assert saved_matrices(folder, ["a"]) == (Matrix("a", 3, 12, zeros=9, fours=3),)


def test_bfloat16_is_counted_as_well(tmp_path: Path) -> None:
    import torch  # noqa: PLC0415 - numpy has no such type
    from safetensors.torch import save_file as save  # noqa: PLC0415 - as above

    smallest = torch.finfo(torch.bfloat16).smallest_normal / 64  # a number below the normal ones
    values = torch.tensor([[0.0, -0.0, 1.0, smallest]], dtype=torch.bfloat16)
    save({"a.weight": values}, tmp_path / "model.safetensors")

    assert saved_matrices(tmp_path, ["a"]) == (Matrix("a", 1, 4, zeros=2, fours=1),)


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        pytest.param("b.weight", np.zeros((2, 4), np.float32), "a.weight is not in", id="not"),
        pytest.param("a.weight", np.zeros((2, 4), np.int8), "saved as I8 of shape", id="packed"),
        pytest.param("a.weight", np.zeros(4, np.float32), r"F32 of shape \[4\]", id="a vector"),
        pytest.param("a.weight", np.zeros((0, 4), np.float32), r"shape \[0, 4\]", id="nothing"),
    ],
)
def test_what_cannot_be_counted_is_no_success(
    tmp_path: Path, name: str, values: npt.NDArray[np.generic], says: str
) -> None:
    with pytest.raises(BadRequestError, match=says) as refused:
        saved_matrices(saved(tmp_path, values, name), ["a"])
    assert refused.value.reason is FailureReason.VERIFICATION_FAILED


GOOD = Matrix("a", 100, 1000, zeros=50_000, fours=25_000)


@pytest.mark.parametrize(
    ("matrix", "two_of_four", "says"),
    [
        pytest.param(replace(GOOD, zeros=49_899), False, "a: 49.90 % of its weights", id="fewer"),
        pytest.param(replace(GOOD, fours=24_999), True, "less than two zeros", id="one of four"),
        pytest.param(replace(GOOD, fours=None), True, "less than two zeros", id="no whole fours"),
    ],
)
def test_fewer_zeros_than_asked_end_the_run(
    matrix: Matrix, *, two_of_four: bool, says: str
) -> None:
    with pytest.raises(BadRequestError, match=says) as refused:
        require_sparsity(Sparsity(0.5, (GOOD, matrix)), two_of_four=two_of_four)
    assert refused.value.reason is FailureReason.VERIFICATION_FAILED


@pytest.mark.parametrize(
    "matrix",
    [
        pytest.param(replace(GOOD, zeros=49_901), id="within a thousandth"),
        pytest.param(Matrix("b", 10, 10, zeros=41, fours=None), id="a weight less in narrow rows"),
        pytest.param(replace(GOOD, zeros=70_000), id="more, which were zero before"),
    ],
)
def test_what_is_near_enough_passes_and_is_told(matrix: Matrix) -> None:
    (told,) = require_sparsity(Sparsity(0.5, (GOOD, matrix)), two_of_four=False)

    assert "of the weights of 2 linear modules are zero" in told
    assert "where 50 % were asked for" in told


def test_a_report_holds_the_modules_that_are_farthest_from_what_was_asked() -> None:
    many = tuple(replace(GOOD, module=f"layers.{n}") for n in range(MOST_MODULES + 5))
    far = replace(GOOD, module="x" * 300, zeros=60_000)
    detail = sparsity_detail(Sparsity(0.5, (*many, far)))

    assert (detail.module_count, len(detail.modules)) == (MOST_MODULES + 6, MOST_MODULES)
    assert detail.modules[-1].percent == "60"
    assert detail.asked_percent == "50"
