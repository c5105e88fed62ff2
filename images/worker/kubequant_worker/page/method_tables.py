"""What report.html, card and terminal say of a single method's work: a pruning, a distillation."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kubequant_worker import readable
from kubequant_worker.page.tables import Table, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kubequant.api.contract import ModuleSparsity, RunReport, VariantReport


def sparsity_table(report: RunReport) -> Table:
    """Return how many weights of each kind of module are zero, over all layers.

    Modules that differ by numbers in their names alone, like the layers', are one kind.
    """
    rows: list[tuple[str, ...]] = []
    for variant in report.variants:
        detail = variant.sparsity_detail
        if detail is None or not detail.modules:
            continue
        kinds: dict[str, list[ModuleSparsity]] = {}
        for one in detail.modules:
            kinds.setdefault(re.sub(r"(?<=[.])\d+(?=[.])", "*", one.module), []).append(one)
        asked = readable.percent(detail.asked_percent, 2)
        rows += [
            (kind, str(len(found)), asked, _zeros(found), *_ends(found))
            for kind, found in kinds.items()
        ]
        share = readable.percent(detail.percent, 2)
        rows.append(("all", str(detail.module_count), asked, share, *_ends(detail.modules)))
    head = ("modules", "how many", "asked", "zeros", "least", "most")
    return table("What is zero, counted in the saved files", head, rows, words=1)


def _zeros(found: Sequence[ModuleSparsity]) -> str:
    share = sum(one.zeros for one in found) / max(1, sum(one.weights for one in found))
    return readable.percent(f"{100 * share:.2f}", 2)


def _ends(found: Sequence[ModuleSparsity]) -> tuple[str, str]:
    shares = sorted((one.percent for one in found), key=float)
    return readable.percent(shares[0], 2), readable.percent(shares[-1], 2)


def trainings(report: RunReport) -> tuple[str, ...]:
    """Return in a sentence for each student how it learned, and by how much it is better for it."""
    found = (_training(one) for one in report.variants)
    return tuple(sentence for sentence in found if sentence)


def _training(one: VariantReport) -> str:
    detail = one.distillation_detail
    if detail is None:
        return ""
    parts = [f"{detail.steps:,} steps, {detail.tokens:,} tokens"]
    if detail.points:
        first, last = detail.points[0], detail.points[-1]
        parts.append(f"loss {readable.decimal(first.loss)} → {readable.decimal(last.loss)}")
    before = detail.untrained
    if before is not None and one.perplexity is not None:
        parts.append(
            f"perplexity {readable.decimal(before.perplexity)} untrained, "
            f"{readable.decimal(one.perplexity)} trained"
            + _by(before.perplexity_reduction_percent, "lower", "higher")
        )
    if before is not None and one.mean_kl_divergence is not None:
        parts.append(
            f"divergence from the teacher {readable.divergence(before.mean_kl_divergence)} → "
            f"{readable.divergence(one.mean_kl_divergence)} nats"
            + _by(before.divergence_reduction_percent, "smaller", "larger")
        )
    return f"{one.name}: {'; '.join(parts)}"


def _by(reduction: str | None, less: str, more: str) -> str:
    if reduction is None:
        return ""
    size = readable.percent(reduction.removeprefix("-"))
    return f" ({size} {more if reduction.startswith('-') else less})"
