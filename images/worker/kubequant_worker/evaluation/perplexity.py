"""Perplexity, divergence and agreement, all from one pass over one token stream.

The stream is cut into windows of `context_length` tokens, stride equal to it. Where the tokenizer
opens texts with a BOS token, each window starts with it and holds `context_length` - 1 text tokens,
all of which are scored; without BOS the first token of each window only serves as context. The
original and every variant see the same windows, so a difference is the method's. No engine is
imported here; `runtime.Runtime` gives the logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.evaluation.clusters import (
    LEAST_CLUSTERS,
    cluster_sizes,
    cluster_starts,
    mean_error,
    ratio_error,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kubequant_worker.evaluation.meter import Meter
    from kubequant_worker.evaluation.runtime import FloatRows, Runtime, TokenArray

FloatArray = npt.NDArray[np.float64]

# A mean over fewer tokens than this says more about the text than about the model.
LEAST_TOKENS = 256
# The original's logits of this many tokens wait on scratch: vocabulary x tokens x 2 bytes.
KEPT_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Windows:
    """A token stream cut for measuring.

    `inputs[i]` is what the model reads and `targets[i]` what it must predict: `targets[i][j]`
    follows `inputs[i][j]`. `scored_tokens` counts the targets.
    """

    inputs: tuple[TokenArray, ...]
    targets: tuple[TokenArray, ...]
    context_length: int
    scored_tokens: int


@dataclass(frozen=True, slots=True)
class Perplexity:
    """The token-weighted perplexity of a text and its standard error, with what they came from.

    `window_losses[i]` is the sum of the negative log-likelihoods, in nats, of the targets of window
    i; `cluster_losses` and `cluster_sizes` are sums and numbers of targets by what the error is
    reckoned with (`clusters`).
    """

    value: float
    standard_error: float
    mean_loss: float
    tokens: int
    window_losses: FloatArray = field(repr=False)
    cluster_losses: FloatArray = field(repr=False)
    cluster_sizes: FloatArray = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeptLogits:
    """The original's logits, waiting on scratch for its variants.

    The file holds float16 of shape (tokens, vocabulary): each row less its maximum, since what
    matters for a distribution are the logits near the maximum, and there float16 is finest.
    `rows[i]` are the positions of window i that were kept; `top_tokens` are the arg max of each
    kept row.
    """

    path: Path
    tokens: int
    vocabulary_size: int
    rows: tuple[range, ...]
    top_tokens: npt.NDArray[np.int64] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Original:
    """What measuring the original left.

    Its perplexity and the logits that its variants are held against.
    """

    perplexity: Perplexity
    kept: KeptLogits


@dataclass(frozen=True, slots=True)
class Comparison:
    """A variant against its original, on the same tokens.

    `perplexity_increase_percent` has a paired standard error, far smaller than the two
    perplexities' own. The divergence is KL(original || variant) of the next-token distributions, in
    nats, mean per token; agreement is how often both find the same token most likely. The errors of
    both means are by clusters too.
    """

    perplexity: Perplexity
    perplexity_increase_percent: float
    perplexity_increase_standard_error: float
    mean_kl_divergence: float
    kl_standard_error: float
    median_kl_divergence: float
    kl_percentile99: float
    most_kl_divergence: float
    top_token_agreement_percent: float
    agreement_standard_error: float
    compared_tokens: int


def windows(
    tokens: TokenArray, *, context_length: int, bos_token: int | None, max_tokens: int
) -> Windows:
    """Cut `tokens` (at most the first `max_tokens`) into windows; the last may be shorter.

    Raises:
        BadRequestError: There are too few tokens to say anything about a model.
    """
    stream = np.asarray(tokens[:max_tokens], dtype=np.int32)
    stride = context_length - 1 if bos_token is not None else context_length
    inputs: list[TokenArray] = []
    targets: list[TokenArray] = []
    for start in range(0, len(stream), stride):
        piece = stream[start : start + stride]
        if bos_token is not None:
            inputs.append(np.concatenate(([np.int32(bos_token)], piece[:-1]), dtype=np.int32))
            targets.append(piece)
        elif len(piece) > 1:
            inputs.append(piece[:-1])
            targets.append(piece[1:])
    scored = sum(len(piece) for piece in targets)
    if scored < LEAST_TOKENS:
        raise BadRequestError(
            f"spec.evaluation.perplexity: the text gives {scored} tokens to score (of "
            f"{len(tokens)}, "
            f"maxTokens {max_tokens}); at least {LEAST_TOKENS} are needed for a number that means "
            "something. "
            "Give a longer dataset or a larger maxTokens",
            reason=FailureReason.UNUSABLE_DATASET,
        )
    return Windows(tuple(inputs), tuple(targets), context_length, scored)


def perplexity(token_losses: Sequence[FloatArray]) -> Perplexity:
    """Return the perplexity of windows whose targets have these losses, in nats.

    The mean loss is a ratio of two sums over clusters of tokens; the perplexity's error follows
    from its by the delta method.
    """
    starts = cluster_starts([len(losses) for losses in token_losses])
    every = np.concatenate(token_losses)
    return _perplexity(
        np.array([losses.sum() for losses in token_losses]),
        np.add.reduceat(every, starts),
        cluster_sizes(starts, len(every)),
    )


def perplexity_of_windows(losses: FloatArray, lengths: Sequence[int]) -> Perplexity | None:
    """Return the perplexity of windows with these sums of losses and numbers of targets.

    None where the windows are too few to be the clusters of the error.
    """
    starts = cluster_starts(lengths)
    edges = np.concatenate(([0], np.cumsum(lengths)))
    if not np.isin(starts, edges).all():
        return None
    sums = np.add.reduceat(losses, np.searchsorted(edges, starts))
    return _perplexity(losses, sums, cluster_sizes(starts, int(edges[-1])))


def _perplexity(windows: FloatArray, clusters: FloatArray, sizes: FloatArray) -> Perplexity:
    total = float(sizes.sum())
    mean = float(windows.sum()) / total
    value = math.exp(min(mean, 700.0))
    error = value * ratio_error(clusters, sizes)
    return Perplexity(value, error, mean, int(total), windows, clusters, sizes)


def increase(original: Perplexity, variant: Perplexity) -> tuple[float, float]:
    """Return the increase in percent and its standard error, both measured on the same windows.

    The losses are subtracted cluster by cluster before their spread is taken, so what the clusters
    have in common (some text is harder than other) falls out.
    """
    ratio = math.exp(min(variant.mean_loss - original.mean_loss, 700.0))
    differences = variant.cluster_losses - original.cluster_losses
    return 100 * (ratio - 1), 100 * ratio * ratio_error(differences, variant.cluster_sizes)


def kept_rows(cut: Windows, most_tokens: int = KEPT_TOKENS) -> tuple[range, ...]:
    """Return which positions of each window to keep, at most `most_tokens` in all.

    A part of many windows says more than all of a few, whose tokens depend on each other. The
    windows are spread evenly over the text, and their parts evenly over the positions, as long and
    short contexts lose differently. A tail of less than half a window is left out.
    """
    lengths = [len(piece) for piece in cut.targets]
    if sum(lengths) <= most_tokens:
        return tuple(range(length) for length in lengths)
    longest = max(lengths)
    whole = [index for index, length in enumerate(lengths) if 2 * length >= longest]
    count = min(len(whole), max(LEAST_CLUSTERS, most_tokens // longest))
    parts = math.ceil(longest / (most_tokens // count))
    kept = [range(0)] * len(lengths)
    for step in range(count):
        window = whole[(2 * step + 1) * len(whole) // (2 * count)]
        part = step % parts if parts <= count else (2 * step + 1) * parts // (2 * count)
        length = lengths[window]
        kept[window] = range(part * length // parts, (part + 1) * length // parts)
    return tuple(kept)


def _overlap(kept: range, first: int, last: int) -> slice:
    """Return which of the rows at `first` to `last` are kept, counted from `first`."""
    start = min(max(kept.start, first), last)
    return slice(start - first, max(min(kept.stop, last), start) - first)


class _Pass:
    """One pass over all windows.

    The losses of every target, and a hook for the rows that are kept.
    """

    # Blocks of rows stay in a core's second-level cache while several operations go over them.
    BLOCK_BYTES = 512 * 1024

    def __init__(self, cut: Windows, vocabulary_size: int) -> None:
        self.cut = cut
        self.block_rows = max(1, self.BLOCK_BYTES // (4 * vocabulary_size))
        self.losses = [np.empty(len(piece), np.float64) for piece in cut.targets]

    def block(
        self, rows: FloatRows, targets: TokenArray, out: FloatArray
    ) -> tuple[npt.NDArray[np.int64], FloatRows, FloatArray]:
        """Write the losses of `rows` (shape (n, vocabulary)) and return (arg max.

        Rows less max, log sums).
        """
        index = np.arange(len(rows))
        top = rows.argmax(axis=1)
        highest = rows[index, top]
        if not np.isfinite(highest).all():
            raise BadRequestError(
                "the model computes logits that are not finite numbers; it cannot be measured",
                reason=FailureReason.VERIFICATION_FAILED,
            )
        shifted = rows - highest[:, None]
        log_sum = np.log(np.exp(shifted).sum(axis=1)).astype(np.float64)
        np.subtract(log_sum, shifted[index, targets], out=out)
        return top, shifted, log_sum

    def perplexity(self) -> Perplexity:
        """Return what the losses amount to."""
        return perplexity(self.losses)


def measure_original(
    runtime: Runtime,
    cut: Windows,
    *,
    keep: Path,
    meter: Meter,
    rows: Sequence[range] | None = None,
) -> Original:
    """Measure the original on `cut` and keep the logits of a bounded number of tokens in `keep`.

    `rows` are the positions of each window to keep, `kept_rows` unless they are given.
    `meter` counts tokens, `scored_tokens` of them in all; its total is the caller's to set.

    Raises:
        BadRequestError: The model computes what are not numbers.
        OSError: The scratch space is full.
    """
    rows_kept = kept_rows(cut) if rows is None else tuple(rows)
    run = _Pass(cut, runtime.vocabulary_size)
    tops: list[npt.NDArray[np.int64]] = []
    with keep.open("wb") as file:
        for piece in runtime.logits(cut.inputs):
            for first, block in _blocks(piece.first_position, piece.rows, run.block_rows):
                last = first + len(block)
                targets = cut.targets[piece.window][first:last]
                losses = run.losses[piece.window][first:last]
                top, shifted, _ = run.block(block, targets, losses)
                wanted = _overlap(rows_kept[piece.window], first, last)
                if wanted.stop > wanted.start:
                    near = np.maximum(shifted[wanted], np.finfo(np.float16).min)
                    file.write(near.astype(np.float16).data)
                    tops.append(top[wanted])
            _tell(meter, piece.window, len(piece.rows), cut)
    top_tokens = np.concatenate(tops)
    kept = KeptLogits(keep, len(top_tokens), runtime.vocabulary_size, rows_kept, top_tokens)
    return Original(run.perplexity(), kept)


def measure_variant(
    runtime: Runtime, cut: Windows, original: Original, *, meter: Meter
) -> Comparison:
    """Measure a variant on the same windows as `original` and hold it against it.

    Raises:
        BadRequestError: The variant computes what are not numbers, or has another vocabulary.
    """
    kept = original.kept
    if runtime.vocabulary_size != kept.vocabulary_size:
        raise BadRequestError(
            f"the variant's vocabulary has {runtime.vocabulary_size} tokens, the original's "
            f"{kept.vocabulary_size}; they cannot be compared",
            reason=FailureReason.VERIFICATION_FAILED,
        )
    run = _Pass(cut, runtime.vocabulary_size)
    references = np.memmap(kept.path, np.float16, "r", shape=(kept.tokens, kept.vocabulary_size))
    lengths = [len(rows) for rows in kept.rows]
    # Where the row of a window's position 0 would lie in the file.
    origins = np.cumsum([0, *lengths[:-1]]) - [rows.start for rows in kept.rows]
    divergences = np.empty(kept.tokens, np.float64)
    agreed = np.empty(kept.tokens, np.float64)
    for piece in runtime.logits(cut.inputs):
        for first, rows in _blocks(piece.first_position, piece.rows, run.block_rows):
            last = first + len(rows)
            targets = cut.targets[piece.window][first:last]
            top, shifted, log_sum = run.block(rows, targets, run.losses[piece.window][first:last])
            wanted = _overlap(kept.rows[piece.window], first, last)
            if wanted.stop > wanted.start:
                begin = int(origins[piece.window]) + first
                here = slice(begin + wanted.start, begin + wanted.stop)
                reference = references[here].astype(np.float32)
                divergences[here] = divergence(reference, shifted[wanted], log_sum[wanted])
                agreed[here] = top[wanted] == kept.top_tokens[here]
        _tell(meter, piece.window, len(piece.rows), cut)
    measured = run.perplexity()
    change, change_error = increase(original.perplexity, measured)
    compared = [length for length in lengths if length]
    median, percentile99, most = np.quantile(divergences, (0.5, 0.99, 1.0))
    return Comparison(
        perplexity=measured,
        perplexity_increase_percent=change,
        perplexity_increase_standard_error=change_error,
        mean_kl_divergence=float(divergences.mean()),
        kl_standard_error=mean_error(divergences, compared),
        median_kl_divergence=float(median),
        kl_percentile99=float(percentile99),
        most_kl_divergence=float(most),
        top_token_agreement_percent=100 * float(agreed.mean()),
        agreement_standard_error=100 * mean_error(agreed, compared),
        compared_tokens=kept.tokens,
    )


def divergence(reference: FloatRows, shifted: FloatRows, log_sum: FloatArray) -> FloatArray:
    """Return KL(reference || variant) of each row, in nats.

    The arrays have the shape (rows, vocabulary).

    `reference` holds logits of any offset, `shifted` the variant's, whose log of the sum of
    exponentials is `log_sum`. KL = sum p (r - s) - log sum exp r + log sum exp s, with p the
    softmax of r.
    """
    np.maximum(shifted, np.finfo(np.float16).min, out=shifted)
    weights = np.exp(reference)
    total = weights.sum(axis=1)
    reference -= shifted
    mean_difference = np.einsum("ij,ij->i", weights, reference) / total
    divergences: FloatArray = np.maximum(mean_difference - np.log(total) + log_sum, 0.0)
    return divergences


def _blocks(first: int, rows: FloatRows, size: int) -> Sequence[tuple[int, FloatRows]]:
    """Return `rows` in blocks of `size`, each with the position of its first row."""
    return [(first + start, rows[start : start + size]) for start in range(0, len(rows), size)]


def _tell(meter: Meter, window: int, tokens: int, cut: Windows) -> None:
    meter.advance(tokens, f"window {window + 1} of {len(cut.inputs)}")
