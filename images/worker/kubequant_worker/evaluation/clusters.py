"""Standard errors of means over the tokens of a text, of which neighbours depend on each other.

Tokens are summed by clusters, and the clusters' spread tells the error: windows where there are
enough of them, else blocks of the text. Pure.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

    FloatArray = npt.NDArray[np.float64]
    IndexArray = npt.NDArray[np.int64]

LEAST_CLUSTERS = 16
"""With fewer the spread itself is hardly known, with more blocks grow too short to be independent:
10 to 30 are advised for means of such a sequence (Schmeiser, Batch size effects in the analysis of
simulation output, Operations Research 30, 1982)."""


def cluster_starts(lengths: Sequence[int]) -> IndexArray:
    """Return at which token each cluster begins, in a text whose windows have `lengths` tokens.

    The clusters are the windows, a last one of less than half a window joined to the one before,
    since a sliver's spread says nothing of a window's. Where that gives fewer than
    `LEAST_CLUSTERS`, as many blocks of equal size take their place.
    """
    edges = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    starts, total = edges[:-1], int(edges[-1])
    if len(lengths) > 1 and 2 * lengths[-1] < max(lengths):
        starts = starts[:-1]
    if len(starts) >= LEAST_CLUSTERS:
        return starts
    blocks = min(LEAST_CLUSTERS, total)
    return np.arange(blocks, dtype=np.int64) * total // blocks


def cluster_sizes(starts: IndexArray, tokens: int) -> FloatArray:
    """Return how many of `tokens` tokens each cluster has."""
    return np.diff(np.append(starts, tokens)).astype(np.float64)


def ratio_error(sums: FloatArray, sizes: FloatArray) -> float:
    """Return the standard error of the clusters' sums over their sizes, both added up.

    It is the ratio estimator's linearization: Cochran, Sampling Techniques, 3rd edition, section
    6.4.
    """
    clusters, total = len(sums), float(sizes.sum())
    residuals = sums - float(sums.sum()) / total * sizes
    return math.sqrt(clusters / (clusters - 1) * float(np.square(residuals).sum())) / total


def mean_error(values: FloatArray, lengths: Sequence[int]) -> float:
    """Return the standard error of the mean of `values`, of windows with `lengths` values each."""
    starts = cluster_starts(lengths)
    return ratio_error(np.add.reduceat(values, starts), cluster_sizes(starts, len(values)))
