"""What a report recommends for a student that learned: part of `advice`. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kubequant.api.gating import shown
from kubequant.api.outcome import Outcome
from kubequant_worker.expectations import rise_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kubequant.api.contract import DistillationDetail, RunReport, TrainingPoint, VariantReport

# Below this reduction of perplexity, in percent, training was hardly worth its time.
HARDLY_PERCENT: Final = 10.0
# A loss that fell by more than this, in percent, from the third quarter of the steps to the last.
FALLING_PERCENT: Final = 2.0
# From this rise over the teacher on, in percent, a student that learned all it could is too small.
FAR_PERCENT: Final = 25.0
_QUARTERS: Final = 4
_LEAST_POINTS: Final = 8


def distilled(report: RunReport) -> Iterator[str]:
    """Yield what would make a better student, and what to do with this one."""
    for variant in report.variants:
        detail = variant.distillation_detail
        if detail is None:
            continue
        found = list(_training(variant, detail))
        yield from found
        yield from _size(report, variant, learned=not found)


def _training(variant: VariantReport, detail: DistillationDetail) -> Iterator[str]:
    won = detail.untrained.perplexity_reduction_percent if detail.untrained else None
    if won is not None and float(won) < HARDLY_PERCENT:
        how = f"{shown(won)} % lower" if float(won) > 0 else "no lower"
        yield (
            f"{variant.name}: training hardly helped (perplexity {how} than the untrained "
            f"student's): set spec.distill.steps above {detail.steps}, or a higher learningRate."
        )
        return
    falling = falling_percent(detail.points)
    if falling is not None and falling > FALLING_PERCENT:
        yield (
            f"{variant.name}: the loss was still falling at the end (by {falling:.1f} % over the "
            f"last quarter of the steps): set spec.distill.steps above {detail.steps}."
        )


def _size(report: RunReport, variant: VariantReport, *, learned: bool) -> Iterator[str]:
    saved = variant.size_reduction_percent
    if saved is not None and float(saved) <= 0:
        yield (
            f"{variant.name} takes as much room as its teacher or more ({shown(saved)} % smaller): "
            "keep fewer layers (spec.distill.student.keepLayers), or name a smaller student."
        )
        return
    rise = variant.perplexity_increase_percent
    if learned and rise is not None and float(rise) > FAR_PERCENT:
        yield (
            f"{variant.name} is far from its teacher (perplexity {rise_text(variant)}) and learns "
            "no more: keep more layers (spec.distill.student.keepLayers), or give more text in "
            "spec.calibration.dataset."
        )
    if report.outcome is Outcome.FAILED:  # then it was not published
        return
    place = f": {report.artifact.uri}" if report.artifact else ""
    yield (
        f"{variant.name} has weights of 16 bits: quantize it, with this artifact as "
        f"spec.model.uri{place}."
    )


def falling_percent(points: Sequence[TrainingPoint]) -> float | None:
    """Return by how many percent the loss of the last quarter is below that of the one before.

    None where there are too few points to tell.
    """
    if len(points) < _LEAST_POINTS:
        return None
    size = len(points) // _QUARTERS
    last, before = points[-size:], points[-2 * size : -size]
    now, then = (sum(float(one.loss) for one in part) / size for part in (last, before))
    return 100 * (1 - now / then) if then > 0 else None
