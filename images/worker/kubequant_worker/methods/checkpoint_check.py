"""Whether a quantized model is still its original's likeness.

A model can load without an error and be wrong: scales of another layer, a packing that the
reader takes for another. What it computes over a short text is held against the original's logits;
both come from processes that each loaded one of the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods.gguf_check import CHECK_TEXT, compare

if TYPE_CHECKING:
    from kubequant_worker.evaluation.runtime import FloatRows, Runtime, TokenArray

__all__ = [
    "CHECK_TEXT",
    "MOST_DIVERGENCE",
    "WRITTEN",
    "Reference",
    "check_ids",
    "computed_by",
    "judge",
    "judge_saved",
    "reference_of",
]

# How many tokens whoever loads a checkpoint writes.
WRITTEN: Final = 8
# The mean divergence, in nats, that a sound checkpoint of so many bits stays below by far (measured
# on the tiny model: at most 0.003, 0.014, 0.03 and 0.14 by bits 8, 4, 3, 2). One whose rows have
# each other's scales exceeds it (0.7 at 4 bits). Fewer bits may ruin a model without being wrong,
# so there the band is wide: `judge_saved`, the numbers and the gates then say what is the matter.
MOST_DIVERGENCE: Final = {16: 4.0, 8: 0.1, 4: 0.4, 3: 1.5, 2: 4.0}
# Whose weights have all their bits is pruned, which may ruin it as well: the widest band.
_PRUNED: Final = 16
# What saving and loading may always change: smoothed norms are rounded to the type that the
# original stores them in, and quantized activations then move to other levels here and there.
MOST_CHANGED_BY_SAVING: Final = 0.02


@dataclass(frozen=True, slots=True)
class Reference:
    """The original's logits over the ids of `CHECK_TEXT`, shape (tokens, vocabulary)."""

    ids: TokenArray
    rows: FloatRows


def computed_by(runtime: Runtime, ids: TokenArray) -> FloatRows:
    """Return the logits of a loaded model over `ids`, shape (tokens, vocabulary)."""
    return np.concatenate([piece.rows.copy() for piece in runtime.logits([ids])])


def check_ids(tokens: TokenArray, *, bos_token: int | None, context_length: int) -> TokenArray:
    """Return as much of the check text's `tokens` as leaves room to write, opened by BOS.

    Whoever computes over the check text takes its ids from here: logits over others cannot be
    compared.
    """
    opening = [] if bos_token is None else [bos_token]
    return np.array([*opening, *tokens], np.int32)[: max(2, context_length - WRITTEN)]


def reference_of(runtime: Runtime) -> Reference:
    """Return what the original computes over the ids of `CHECK_TEXT`."""
    ids = check_ids(
        runtime.tokenize([CHECK_TEXT])[0],
        bos_token=runtime.bos_token,
        context_length=runtime.context_length,
    )
    return Reference(ids, computed_by(runtime, ids))


def judge(reference: Reference, rows: FloatRows, *, bits: float) -> str:
    """Return a sentence on how near `rows`, the variant's logits, are to the original's.

    Raises:
        BadRequestError: They are no finite numbers, or too far for weights of `bits` bits.
    """
    if not np.isfinite(rows).all():
        raise BadRequestError(
            "the quantized model computes logits that are not finite numbers",
            reason=FailureReason.VERIFICATION_FAILED,
        )
    found = compare(reference.rows, rows)
    most = MOST_DIVERGENCE[max(known for known in MOST_DIVERGENCE if known <= bits)]
    if not found.mean_kl_divergence <= most:
        raise BadRequestError(
            "the quantized model loads, and is not the original's likeness: over "
            f"{found.tokens} tokens of a short text the mean divergence is "
            f"{found.mean_kl_divergence:.3f} nats, and with {_kind(bits)} at most {most} are "
            "expected",
            reason=FailureReason.VERIFICATION_FAILED,
            advice=f"take {_more_careful(bits)} or another method; if those differ as much, the "
            "engine does not write what its runtime reads",
        )
    return (
        f"loaded again and held against the original over {found.tokens} tokens: "
        f"mean divergence {found.mean_kl_divergence:.4f} nats"
    )


def _kind(bits: float) -> str:
    return "pruned weights" if bits >= _PRUNED else f"{bits:g} bits"


def _more_careful(bits: float) -> str:
    return "less sparsity" if bits >= _PRUNED else "more bits, smaller groups"


def judge_saved(reference: Reference, expected: FloatRows, rows: FloatRows) -> str:
    """Return a sentence on how near the loaded checkpoint is to the model that was saved.

    `expected` are the logits that the engine's own quantized model gave before it was saved. They
    tell a wrong packing at any number of bits. Saving may not change more than quantizing did.

    Raises:
        BadRequestError: Another model came back.
    """
    found = compare(expected, rows)
    quantizing = compare(reference.rows, expected).mean_kl_divergence
    most = max(MOST_CHANGED_BY_SAVING, quantizing)
    if not found.mean_kl_divergence <= most:
        raise BadRequestError(
            "the quantized model is not what transformers loads again: over "
            f"{found.tokens} tokens of a short text the mean divergence is "
            f"{found.mean_kl_divergence:.3f} nats, and at most {most:.3f} may come "
            "from saving it",
            reason=FailureReason.VERIFICATION_FAILED,
            advice="the engine writes what this version of transformers reads differently; take "
            "another engine or method, and report it",
        )
    return (
        "what was loaded again is what the engine had made: mean divergence "
        f"{found.mean_kl_divergence:.4f} nats"
    )
