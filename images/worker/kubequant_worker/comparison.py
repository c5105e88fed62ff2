"""Several reports laid side by side: one row a variant, and which are the best trade-offs.

Numbers of two reports may be compared where both were held against the same original on the same
text; `Comparison.warnings` says where that is not so.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from itertools import count, islice, product
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any, Final

from kubequant_worker.page.plots import Point
from kubequant_worker.readable import GIB, MIB
from kubequant_worker.sources.selection import is_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kubequant.api.contract import RunReport, VariantReport

KL_DIVERGENCE: Final = "mean KL divergence, nats"
PERPLEXITY_CHANGE: Final = "perplexity change, %"


@dataclass(frozen=True, slots=True)
class Compared:
    """One variant of one report.

    `key` is its letter, `damage` how far it is from its original by the comparison's measure, None
    where that was not measured, and `is_optimal` whether no other is better in both size and
    damage.
    """

    key: str
    place: str
    report: RunReport
    variant: VariantReport
    damage: float | None
    error: float
    is_optimal: bool

    @property
    def name(self) -> str:
        """The run's name and the variant's."""
        return f"{self.report.name} {self.variant.name}".strip()


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rows in the order of the reports; `measure` names what `damage` is, "" where nothing is."""

    rows: tuple[Compared, ...]
    measure: str
    warnings: tuple[str, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        """The originals' addresses, each once."""
        named = (row.report.source.uri for row in self.rows if row.report.source)
        return tuple(dict.fromkeys(named))

    def axes(self) -> tuple[str, str]:
        """Return what a plot's axes say."""
        return f"weights, {self._unit()[1]}", self.measure

    def points(self) -> tuple[Point, ...]:
        """Return what a plot shows: every variant whose size and damage are known.

        Those that lie on one spot share a point.
        """
        unit, _ = self._unit()
        found: dict[tuple[float, float], Point] = {}
        for row in self.rows:
            if row.damage is None or row.variant.size_bytes is None:
                continue
            spot = (row.variant.size_bytes / unit, row.damage)
            key = f"{found[spot].key},{row.key}" if spot in found else row.key
            found[spot] = Point(key, *spot, row.is_optimal, row.error)
        return tuple(found.values())

    def _unit(self) -> tuple[int, str]:
        largest = max((row.variant.size_bytes or 0 for row in self.rows), default=0)
        return (GIB, "GiB") if largest >= GIB else (MIB, "MiB")


def compare(reports: Sequence[tuple[str, RunReport]]) -> Comparison:
    """Return (place, report) pairs laid side by side."""
    pairs = [(place, report, one) for place, report in reports for one in report.variants]
    measure, read = _measure([variant for _, _, variant in pairs])
    damages = [read(variant) for _, _, variant in pairs]
    sizes = [variant.size_bytes for _, _, variant in pairs]
    known = [
        (size, damage) if size is not None and damage is not None else None
        for size, (damage, _) in zip(sizes, damages, strict=True)
    ]
    rows = tuple(
        Compared(key, place, report, variant, damage, error, _is_optimal(point, known))
        for key, (place, report, variant), (damage, error), point in zip(
            islice(_letters(), len(pairs)), pairs, damages, known, strict=True
        )
    )
    return Comparison(rows, measure, tuple(_warnings(reports)))


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as JSON: its rows with the numbers of a status, and its warnings."""
    return {
        "measure": comparison.measure,
        "warnings": list(comparison.warnings),
        "rows": [
            {
                "key": row.key,
                "place": row.place,
                "name": row.report.name,
                "digest": row.report.digest,
                "optimal": row.is_optimal,
                **row.variant.for_status().to_json(),
                "variant": row.variant.name,
            }
            for row in comparison.rows
        ],
    }


def _letters() -> Iterator[str]:
    """Yield A to Z, then AA and so on."""
    for length in count(1):
        for letters in product(ascii_uppercase, repeat=length):
            yield "".join(letters)


def _measure(
    variants: Sequence[VariantReport],
) -> tuple[str, Callable[[VariantReport], tuple[float | None, float]]]:
    """Return the measure that most variants have, and how to read it with its error.

    Divergence where as many have it: it sees damage that perplexity hides, and has no lucky sign.
    """
    diverged = sum(one.mean_kl_divergence is not None for one in variants)
    changed = sum(one.perplexity_increase_percent is not None for one in variants)
    if not diverged and not changed:
        return "", lambda _: (None, 0.0)
    if diverged >= changed:
        return KL_DIVERGENCE, _divergence
    return PERPLEXITY_CHANGE, _perplexity_change


def _divergence(one: VariantReport) -> tuple[float | None, float]:
    detail = one.divergence_detail
    return _number(one.mean_kl_divergence), _number(detail.standard_error if detail else None) or 0


def _perplexity_change(one: VariantReport) -> tuple[float | None, float]:
    return (
        _number(one.perplexity_increase_percent),
        _number(one.perplexity_increase_standard_error) or 0,
    )


def _number(text: str | None) -> float | None:
    return None if text is None or not math.isfinite(float(text)) else float(text)


def _is_optimal(
    point: tuple[int, float] | None, others: Sequence[tuple[int, float] | None]
) -> bool:
    """Say whether no other point is at least as good in both and better in one."""
    if point is None:
        return False
    size, damage = point
    return not any(
        other[0] <= size and other[1] <= damage and other != point for other in others if other
    )


def _warnings(reports: Sequence[tuple[str, RunReport]]) -> Iterator[str]:
    """Yield why numbers of these reports may not be comparable, each with who differs from whom."""
    for sameness in _MUST_BE_SAME:
        values = [(place, sameness.read(report)) for place, report in reports]
        known = [(place, value) for place, value in values if value]
        other = next((one for one in known if one[1] != known[0][1]), None)
        if other is not None:
            place, value = known[0]
            named = f"{sameness.what} {value} and {other[1]}"
            yield f"{place} and {other[0]}: {sameness.consequence} ({named})"
        unknown = [place for place, value in values if not value]
        if unknown and sameness.must_be_named and len(reports) > 1:
            yield f"{', '.join(unknown)}: the report does not name its {sameness.what} by digest"


def _original(report: RunReport) -> str:
    """Return a digest of the digests of the original's weights, whatever its files are named."""
    files = report.source.files if report.source else ()
    digests = sorted(file.sha256 for file in files if is_weights(file.path))
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:12] if digests else ""


def _text(report: RunReport) -> str:
    used = [one for one in report.datasets if one.role == "evaluation"]
    return "+".join(f"{(one.sha256 or '')[:12]} of {one.tokens} tokens" for one in used)


def _context(report: RunReport) -> str:
    detail = report.original.perplexity_detail if report.original else None
    return f"of {detail.context_length} tokens" if detail and detail.context_length else ""


def _runtime(report: RunReport) -> str:
    """Return the runtime's name alone: versions and the original's form may differ."""
    runtime = report.original.runtime if report.original else ""
    return runtime.partition(" ")[0].rstrip(",")


def _device(report: RunReport) -> str:
    """Return what the models were timed on; on a CPU the number of threads is part of it."""
    models = (*((report.original,) if report.original else ()), *report.variants)
    details = (one.performance_detail for one in models)
    detail = next((one for one in details if one and one.device), None)
    if detail is None:
        return ""
    on_gpu = detail.peak_gpu_memory_bytes is not None
    return detail.device if on_gpu else f"{detail.device} with {detail.threads} threads"


@dataclass(frozen=True, slots=True)
class _Sameness:
    """What must be the same for numbers to compare, and what follows where it is not."""

    what: str
    read: Callable[[RunReport], str]
    consequence: str
    must_be_named: bool = False


_MUST_BE_SAME: Final = (
    _Sameness(
        "original",
        _original,
        "they do not have the same original, so no number compares",
        must_be_named=True,
    ),
    _Sameness(
        "text",
        _text,
        "they were not measured on the same text, so perplexity and divergence do not compare",
        must_be_named=True,
    ),
    _Sameness(
        "windows",
        _context,
        "their windows are not equally long, so perplexity does not compare",
    ),
    _Sameness(
        "runtime",
        _runtime,
        "they were measured by different runtimes, so speed does not compare",
    ),
    _Sameness(
        "device",
        _device,
        "they were timed on different devices, so speed does not compare",
    ),
)
