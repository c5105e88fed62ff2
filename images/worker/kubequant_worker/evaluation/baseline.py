"""The original's losses as an earlier run measured them, taken instead of measured again.

What decides them has a digest: the model's files, the tokens and their windows, and the runtime
with its version and number type. Losses count only with that digest, and only where those of the
windows that this run computes to their ends come out the same once more.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from kubequant.api.contract import RunReport
from kubequant.api.fields import decimal_text
from kubequant.api.problems import InvalidInputError, parse_json
from kubequant_worker.evaluation.perplexity import (
    KEPT_TOKENS,
    Original,
    Windows,
    kept_rows,
    measure_original,
    perplexity_of_windows,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from kubequant_worker.evaluation.meter import Meter
    from kubequant_worker.evaluation.perplexity import FloatArray, Perplexity
    from kubequant_worker.evaluation.runtime import Runtime
    from kubequant_worker.file_digest import FileDigest

MOST_WINDOWS: Final = 4096
"""A report keeps the losses of so many windows; with more, every run measures its original."""
# Another processor, or another number of threads, adds up in another order.
_SAME: Final = 1e-3
_PLACES: Final = 6


@dataclass(frozen=True, slots=True)
class Earlier:
    """What an earlier run's report says: where it is, and the losses of all windows, in nats."""

    uri: str
    window_losses: FloatArray


def baseline_digest(files: Iterable[FileDigest], cut: Windows, runtime: str) -> str:
    """Return the SHA-256 of what decides the original's losses on `cut`.

    `runtime` says what computes, its version and in which type of numbers.
    """
    tokens = hashlib.sha256()
    for window, targets in zip(cut.inputs, cut.targets, strict=True):
        tokens.update(len(window).to_bytes(8, "little"))
        tokens.update(window.astype("<i4").tobytes())
        tokens.update(targets.astype("<i4").tobytes())
    value = {
        "files": sorted([file.path, file.sha256] for file in files),
        "tokens": tokens.hexdigest(),
        "runtime": runtime,
    }
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def reported_losses(measured: Perplexity) -> tuple[str, ...]:
    """Return the windows' losses as a report keeps them: none where there are too many."""
    losses = measured.window_losses
    if len(losses) > MOST_WINDOWS:
        return ()
    return tuple(decimal_text(float(loss), _PLACES) or "" for loss in losses)


def earlier_losses(
    reports: Iterable[tuple[str, bytes]], digest: str, windows: int
) -> Earlier | None:
    """Return the first of `reports` (address, content) that has the losses of this `digest`."""
    for uri, content in reports:
        try:
            report = parse_json(RunReport, content, local=True, tolerant=True)
        except InvalidInputError:
            continue
        original = report.original
        if original is None or original.baseline_sha256 != digest:
            continue
        detail = original.perplexity_detail
        losses = np.array([float(loss) for loss in detail.window_losses] if detail else [])
        if len(losses) == windows and np.isfinite(losses).all():
            return Earlier(uri, losses)
    return None


def taken_original(
    runtime: Runtime, cut: Windows, earlier: Earlier, *, keep: Path, meter: Meter
) -> Original | None:
    """Return what measuring the original would give, computing only as far as logits are kept.

    None where that would spare nothing, where the windows are too few for an error by their sums,
    or where the losses of those that are computed whole are not the earlier ones. `meter` counts
    tokens; its total is set here. See `measure_original` for `keep` and errors.
    """
    rows = kept_rows(cut, KEPT_TOKENS)
    lengths = [len(piece) for piece in cut.targets]
    known = perplexity_of_windows(earlier.window_losses, lengths)
    chosen = [window for window, kept in enumerate(rows) if kept]
    whole = np.array([rows[window].stop == lengths[window] for window in chosen])
    if len(chosen) == len(rows) or known is None or not whole.any():
        return None
    part = _part(cut, rows)
    meter.set_total(part.scored_tokens)
    kept = [rows[window] for window in chosen]
    measured = measure_original(runtime, part, keep=keep, meter=meter, rows=kept)
    found = measured.perplexity.window_losses[whole]
    expected = earlier.window_losses[chosen][whole]
    if not np.allclose(found, expected, rtol=_SAME, atol=0):
        return None
    return Original(known, replace(measured.kept, rows=rows))


def _part(cut: Windows, rows: Sequence[range]) -> Windows:
    """Return the windows of which rows are kept, each as far as these go."""
    targets = tuple(
        piece[: kept.stop] for piece, kept in zip(cut.targets, rows, strict=True) if kept
    )
    inputs = tuple(piece[: kept.stop] for piece, kept in zip(cut.inputs, rows, strict=True) if kept)
    return Windows(inputs, targets, cut.context_length, sum(len(piece) for piece in targets))
