"""How many weights of a saved checkpoint are zero: read from the files, tensor by tensor.

What an engine says of its work is not asked. A tensor is read in pieces, so that memory does not
grow with the model; neither torch nor an engine is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.sources.safetensors_header import read_header, tensor_offset

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from kubequant_worker.sources.safetensors_header import TensorSpan

# A float is zero where all its bits but the sign are.
_MAGNITUDE_BITS: Final = {
    "F16": (np.uint16, 0x7FFF),
    "BF16": (np.uint16, 0x7FFF),
    "F32": (np.uint32, 0x7FFF_FFFF),
    "F64": (np.uint64, 0x7FFF_FFFF_FFFF_FFFF),
}
FOUR: Final = 4
_TWO: Final = 2
# Read at once; whole groups of four.
_PIECE: Final = 4 << 20
# How far, as a share of all weights, a matrix may stay below what was asked for.
TOLERANCE: Final = 0.001


@dataclass(frozen=True, slots=True)
class Matrix:
    """One pruned matrix: its weights, how many are zero, and in how many fours at least two are.

    `fours` is None where a row is no whole number of fours.
    """

    module: str
    rows: int
    columns: int
    zeros: int
    fours: int | None

    @property
    def weights(self) -> int:
        """Return how many weights it has."""
        return self.rows * self.columns

    @property
    def share(self) -> float:
        """Return the share of zeros."""
        return self.zeros / self.weights

    @property
    def is_two_of_four(self) -> bool:
        """Say whether of every four weights in a row at least two are zero."""
        return self.fours is not None and FOUR * self.fours == self.weights


@dataclass(frozen=True, slots=True)
class Sparsity:
    """What was asked for, as a share, and what the saved matrices hold."""

    asked: float
    matrices: tuple[Matrix, ...]

    @property
    def share(self) -> float:
        """Return the share of zeros among the weights of all pruned matrices."""
        return sum(one.zeros for one in self.matrices) / sum(one.weights for one in self.matrices)


def saved_matrices(folder: Path, modules: Iterable[str]) -> tuple[Matrix, ...]:
    """Return the weights of `modules` as the safetensors files in `folder` hold them, in order.

    Raises:
        BadRequestError: A module's weight is not there, or is no matrix of floats.
    """
    there = {
        span.name: (path, span)
        for path in sorted(folder.glob("*.safetensors"))
        for span in read_header(path)
    }
    found = []
    for module in modules:
        path, span = there.get(f"{module}.weight", (None, None))
        if path is None or span is None:
            raise _unreadable(f"{module}.weight is not in what the engine saved")
        if (
            span.dtype not in _MAGNITUDE_BITS
            or len(span.shape) != _TWO
            or not math.prod(span.shape)
        ):
            raise _unreadable(f"{span.name} was saved as {span.dtype} of shape {list(span.shape)}")
        found.append(_counted(module, path, span))
    return tuple(found)


def _unreadable(what: str) -> BadRequestError:
    return BadRequestError(
        f"the sparsity cannot be measured: {what}",
        reason=FailureReason.VERIFICATION_FAILED,
        advice="name that module in ignore, and report it with the model's architecture",
    )


def _counted(module: str, path: Path, span: TensorSpan) -> Matrix:
    rows, columns = span.shape
    whole = columns % FOUR == 0
    zeros = fours = 0
    for piece in _zeros(path, span):
        zeros += int(np.count_nonzero(piece))
        if whole:
            fours += int(np.count_nonzero(piece.reshape(-1, FOUR).sum(axis=1) >= _TWO))
    return Matrix(module, rows, columns, zeros, fours if whole else None)


def _zeros(path: Path, span: TensorSpan) -> Iterator[np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Yield for each weight, in order and in pieces, whether it is zero."""
    kind, mask = _MAGNITUDE_BITS[span.dtype]
    with path.open("rb") as file:
        file.seek(tensor_offset(path, span))
        left = math.prod(span.shape)
        while left:
            piece = np.fromfile(file, kind, min(left, _PIECE))
            if not piece.size:
                raise _unreadable(f"{path.name} ends within {span.name}")
            left -= piece.size
            yield (piece & kind(mask)) == 0


def require_sparsity(found: Sparsity, *, two_of_four: bool) -> tuple[str, ...]:
    """Return sentences on the zeros that were measured.

    Rows are pruned by whole weights, so that a narrow matrix may stay below what was asked for by
    less than one weight a row. More zeros than asked are no fault: an input that the calibration
    text never used, or what was zero before.

    Raises:
        BadRequestError: A matrix has fewer zeros than were asked for, or a four fewer than two.
    """
    for one in found.matrices:
        if found.asked - one.share > max(TOLERANCE, 1 / one.columns):
            raise BadRequestError(
                f"{one.module}: {100 * one.share:.2f} % of its weights were saved as zeros, and "
                f"{100 * found.asked:g} % were asked for",
                reason=FailureReason.VERIFICATION_FAILED,
                advice="ignore that module, or take another algorithm, and report it",
            )
        if two_of_four and not one.is_two_of_four:
            raise BadRequestError(
                f"{one.module} was saved with less than two zeros in some four weights",
                reason=FailureReason.VERIFICATION_FAILED,
                advice="ignore that module, or take another algorithm, and report it",
            )
    least = min(found.matrices, key=lambda one: one.share)
    most = max(found.matrices, key=lambda one: one.share)
    told = (
        f"{100 * found.share:.2f} % of the weights of {len(found.matrices)} linear modules are "
        f"zero in the saved files, where {100 * found.asked:g} % were asked for: from "
        f"{100 * least.share:.2f} % ({least.module}) to {100 * most.share:.2f} % ({most.module})"
    )
    if not two_of_four:
        return (told,)
    return (told, "of every four weights in a row of these modules at least two are zero")
