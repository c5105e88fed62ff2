"""Whether what was measured is good enough.

The manifest's gates against each variant's numbers. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kubequant.api.spec import Gate, Metric


@dataclass(frozen=True, slots=True)
class GateResult:
    """One gate held against one variant.

    `sentence` says what was asked, what was measured, and what follows.
    """

    index: int
    variant: str
    passed: bool
    sentence: str


def gate_results(
    gates: Sequence[Gate], measured: Mapping[str, Mapping[Metric, float | int]]
) -> tuple[GateResult, ...]:
    """Return every gate's result for every variant that it is for.

    `measured` has each variant's numbers by its name. A number that was not measured fails its
    gate: what nobody looked at cannot be promised. Numbers are compared as decimals, at full
    precision, before any rounding for the report.
    """
    return tuple(
        _result(index, gate, name, numbers)
        for index, gate in enumerate(gates)
        for name, numbers in measured.items()
        if gate.variant is None or gate.variant == name
    )


def _result(
    index: int, gate: Gate, variant: str, numbers: Mapping[Metric, float | int]
) -> GateResult:
    where = f"spec.gates[{index}]: {variant}: {gate.metric.value}"
    asked = " and ".join(
        f"at {kind} {bound}" for kind, bound in (("least", gate.min), ("most", gate.max)) if bound
    )
    number = numbers.get(gate.metric)
    if number is None:
        return GateResult(index, variant, False, f"{where} was not measured; {asked} is asked")  # noqa: FBT003 - the field's value
    value = Decimal(str(number))
    passed = bool(
        value.is_finite()
        and (gate.min is None or value >= Decimal(gate.min))
        and (gate.max is None or value <= Decimal(gate.max))
    )
    verdict = "holds" if passed else "does not hold"
    return GateResult(index, variant, passed, f"{where} is {_shown(value)}, {asked}: {verdict}")


def _shown(value: Decimal) -> str:
    """Return a number as a sentence has it: five significant digits, whole numbers whole."""
    if not value.is_finite() or value == value.to_integral_value():
        return f"{value:f}" if value.is_finite() else str(value)
    return f"{float(value):.5g}"
