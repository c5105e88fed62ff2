"""Whether the conversion lost anything.

The converted model's logits against transformers' in float32.

Pure comparison; `gguf_convert` computes the one side in its child, llama.cpp the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.evaluation.perplexity import divergence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kubequant_worker.evaluation.runtime import FloatRows

# What half precision and rounded activations do to a sound conversion stays far below; a transposed
# or missing tensor, a wrong rotary base or norm goes far above.
MOST_DIVERGENCE = 0.02
# In units of the logits' own standard deviation.
MOST_DIFFERENCE = 1.0

# Short, and with what tokenizers differ on: capitals, digits, accents, code, spaces.
CHECK_TEXT = (
    "The harbour master counted 1,274 crates on Tuesday, and signed for each of them. \u201cDéjà "
    "vu,\u201d she "
    "said, folding the list.\n\ndef total(crates):\n    return sum(crate.weight for crate in "
    "crates)\n\n"
    "Nothing was missing; the tide turned at 16:45, and by evening the last ship had left for the "
    "north."
)


@dataclass(frozen=True, slots=True)
class ConversionCheck:
    """How far the converted model is from the original's code.

    Over `tokens` tokens of a short text.
    """

    tokens: int
    mean_kl_divergence: float
    largest_difference: float
    top_token_agreement_percent: float


def compare(reference: FloatRows, converted: FloatRows) -> ConversionCheck:
    """Return the distance of two arrays of logits, shape (tokens, vocabulary), for the same tokens.

    A file may pad the vocabulary or cut off padding: what both have is compared.
    `largest_difference` is of the logits less their mean, since an offset common to a row changes
    nothing, in units of the reference's standard deviation.
    """
    width = min(reference.shape[1], converted.shape[1])
    left = np.array(reference[:, :width], np.float32)
    right = np.array(converted[:, :width], np.float32)
    agreement = float((left.argmax(axis=1) == right.argmax(axis=1)).mean()) * 100
    left -= left.mean(axis=1, keepdims=True)
    right -= right.mean(axis=1, keepdims=True)
    largest = float(np.abs(left - right).max() / left.std())
    left -= left.max(axis=1, keepdims=True)
    right -= right.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(right).sum(axis=1)).astype(np.float64)
    mean = float(divergence(left, right, log_sum).mean())
    return ConversionCheck(len(left), mean, largest, agreement)


def judge(
    check: ConversionCheck,
    *,
    target: str = "GGUF",
    advice: str = "llama.cpp may not implement this model's variant of its architecture; use "
    "another method",
) -> None:
    """Raise BadRequestError (VerificationFailed) where the conversion to `target` lost something.

    `advice` says what may be the matter, and the way out.
    """
    sound = check.mean_kl_divergence <= MOST_DIVERGENCE
    if not sound or not check.largest_difference <= MOST_DIFFERENCE:
        raise BadRequestError(
            f"the conversion to {target} lost something: against transformers in float32, over "
            f"{check.tokens} "
            f"tokens, the mean divergence is {check.mean_kl_divergence:.4f} nats (at most "
            f"{MOST_DIVERGENCE}) "
            f"and the largest difference of a logit {check.largest_difference:.2f} standard "
            "deviations (at most "
            f"{MOST_DIFFERENCE})",
            reason=FailureReason.VERIFICATION_FAILED,
            advice=advice,
        )


def tokenization_warning(reference: Sequence[int], converted: Sequence[int]) -> str | None:
    """Return a sentence where the two tokenizers cut the check's text differently, or None."""
    if list(reference) == list(converted):
        return None
    pairs = zip(reference, converted, strict=False)
    shorter = min(len(reference), len(converted))
    at = next((index for index, (left, right) in enumerate(pairs) if left != right), shorter)
    return (
        f"llama.cpp's tokenizer cuts a short text differently from transformers' (from token {at} "
        "on; "
        f"{len(converted)} tokens against {len(reference)}), so prompts are not read quite as in "
        "training"
    )
