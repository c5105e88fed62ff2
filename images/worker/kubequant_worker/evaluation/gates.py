"""Whether what was measured is good enough.

The manifest's gates against each variant's numbers. Pure; the words for a result stand in
`kubequant.api.gating`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING

from kubequant.api.contract import GateResult
from kubequant.api.fields import decimal_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kubequant.api.enums import Metric
    from kubequant.api.spec import Gate

# A verdict stands beyond its error where the number is so many standard errors from the bound.
SURE_ERRORS = 2
_PLACES = 9


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number, with its standard error where it has one that is known."""

    value: float | int
    standard_error: float | None = None


Numbers = dict[tuple["Metric", str], Estimate]
"""A variant's numbers by metric and, for a benchmark's, task; the task is empty for all others."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A variant that gates are held against.

    `stands_for` are the variants of the spec whose gates it has to hold: its own name and, when
    a run escalates, those whose place it takes.
    """

    name: str
    numbers: Mapping[tuple[Metric, str], Estimate] = field(default_factory=dict)
    stands_for: frozenset[str] = frozenset()


def gate_results(gates: Sequence[Gate], candidates: Sequence[Candidate]) -> tuple[GateResult, ...]:
    """Return every gate's result for every variant that it is for.

    A number that was not measured fails its gate: what nobody looked at cannot be promised. The
    verdict is by the value alone, compared as decimals at full precision, before any rounding for
    the report; `certain` says whether the error could turn it.
    """
    return tuple(
        _result(index, gate, candidate)
        for index, gate in enumerate(gates)
        for candidate in candidates
        if gate.variant is None or gate.variant in (candidate.stands_for or {candidate.name})
    )


def _result(index: int, gate: Gate, candidate: Candidate) -> GateResult:
    estimate = candidate.numbers.get((gate.metric, gate.task or ""))
    value = None if estimate is None else Decimal(str(estimate.value))
    if estimate is None or value is None or not value.is_finite():
        return _written(index, gate, candidate, passed=False)
    margins = []
    if gate.min is not None:
        margins.append(value - Decimal(gate.min))
    if gate.max is not None:
        margins.append(Decimal(gate.max) - value)
    margin = min(margins)
    error = _error(estimate)
    return _written(
        index,
        gate,
        candidate,
        passed=margin >= 0,
        value=decimal_text(estimate.value, _PLACES),
        standard_error=None if error is None else decimal_text(float(error), _PLACES),
        margin=decimal_text(float(margin), _PLACES),
        certain=None if error is None else abs(margin) >= SURE_ERRORS * error,
    )


def _error(estimate: Estimate) -> Decimal | None:
    if estimate.standard_error is None:
        return None
    error = Decimal(str(estimate.standard_error))
    return error if error.is_finite() else None


def _written(
    index: int, gate: Gate, candidate: Candidate, *, passed: bool, **measured: str | bool | None
) -> GateResult:
    return GateResult(
        gate=index,
        variant=candidate.name,
        metric=gate.metric.value,
        task=gate.task or "",
        max=gate.max,
        min=gate.min,
        passed=passed,
        **measured,
    )
