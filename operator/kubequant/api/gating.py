"""What a gate's result says in a sentence, for a person: the worker, the operator and the reports.

How a number is held against a gate is the worker's (`evaluation.gates`); here are words only.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kubequant.api.report import GateResult


def gate_sentence(result: GateResult) -> str:
    """Return what was asked of which number, what it is, and what follows.

    "spec.gates[0]: Q4_K_M: PerplexityIncreasePercent is 1.9 ± 0.3, at most 2.0: holds, but not
    beyond two standard errors".
    """
    task = f" of {result.task}" if result.task else ""
    where = f"spec.gates[{result.gate}]: {result.variant}: {result.metric}{task}"
    bounds = (("least", result.min), ("most", result.max))
    asked = " and ".join(f"at {kind} {bound}" for kind, bound in bounds if bound is not None)
    if result.value is None:
        return f"{where} was not measured, or is no finite number; {asked} is asked"
    error = f" ± {shown(result.standard_error)}" if result.standard_error is not None else ""
    return f"{where} is {shown(result.value)}{error}, {asked}: {_verdict(result)}"


def _verdict(result: GateResult) -> str:
    """Return whether the gate holds, and where it can be known how surely."""
    if result.passed:
        return (
            "holds" if result.certain is not False else "holds, but not beyond two standard errors"
        )
    by = f", by {shown(result.margin.removeprefix('-'))}" if result.margin is not None else ""
    unsure = "" if result.certain is not False else ", which is within two standard errors"
    return f"does not hold{by}{unsure}"


def listed(sentences: Sequence[str], longest: int) -> str:
    """Return sentences as one text of at most `longest` characters, none of them cut.

    Those that do not fit are counted at its end: "…; and 3 more".
    """
    for count in range(len(sentences), 0, -1):
        left = len(sentences) - count
        text = "; ".join([*sentences[:count], *([f"and {left} more"] if left else [])])
        if len(text) <= longest:
            return text
    return f"{sentences[0][: longest - 1]}…" if sentences else ""


def shown(decimal: str) -> str:
    """Return a decimal as a sentence has it: whole numbers whole, else five significant digits."""
    value = Decimal(decimal)
    return f"{value:f}" if value == value.to_integral_value() else f"{float(value):.5g}"
