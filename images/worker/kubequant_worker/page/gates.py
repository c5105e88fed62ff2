"""The table of gates: each with its bound and its number, in the metric's unit.

Which gates hold is decided in `evaluation.gates`; nothing is decided here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kubequant.api.enums import Metric
from kubequant_worker import readable
from kubequant_worker.page.tables import (
    DOES_NOT_HOLD,
    NOT_MEASURED,
    Row,
    Table,
    without_empty_columns,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from kubequant.api.contract import GateResult, RunReport

# A gate's number that is nearer to its bound than this share of it is not rounded.
_NEAR: Final = 1e-3
_WRITTEN: Final[dict[str, Callable[[str], str]]] = {
    Metric.SIZE_BYTES: lambda value: readable.size(int(float(value))),
    Metric.SIZE_REDUCTION_PERCENT: readable.percent,
    Metric.PERPLEXITY: readable.decimal,
    Metric.PERPLEXITY_INCREASE_PERCENT: lambda value: readable.percent(value, 2, sign=True),
    Metric.MEAN_KL_DIVERGENCE: readable.divergence,
    Metric.TOP_TOKEN_AGREEMENT_PERCENT: readable.percent,
    Metric.TOKENS_PER_SECOND: readable.rate,
    Metric.SPEEDUP: readable.times,
    Metric.PEAK_MEMORY_BYTES: lambda value: readable.size(int(float(value))),
}


def gates_table(report: RunReport) -> Table:
    """Return every gate against every variant, with how sure the verdict is."""
    rows = []
    for gate in report.gates:
        bounds = [f"at most {_bound(gate.metric, gate.max)}"] if gate.max is not None else []
        bounds += [f"at least {_bound(gate.metric, gate.min)}"] if gate.min is not None else []
        sure = {True: "yes", False: "no", None: ""}[gate.certain]
        rows.append(
            Row(
                (
                    gate.variant,
                    f"{gate.metric} {gate.task}".strip(),
                    " and ".join(bounds),
                    _held(gate),
                    "holds" if gate.passed else DOES_NOT_HOLD,
                    sure,
                )
            )
        )
    head = ("variant", "gate", "bound", "measured", "verdict", "beyond its error")
    return without_empty_columns(Table("Gates", head, tuple(rows), words=3))


def _bound(metric: str, bound: str) -> str:
    """Return a bound as the manifest has it, with its unit."""
    if metric.endswith("Bytes"):
        return readable.size(int(float(bound)))
    return f"{bound} %" if metric.endswith("Percent") else bound


def _held(gate: GateResult) -> str:
    """Return the number that a gate held: short, unless it is too near to its bound for that."""
    if gate.value is None:
        return NOT_MEASURED
    write = _WRITTEN.get(gate.metric)
    text = write(gate.value) if write is not None else readable.decimal(gate.value, 4)
    if gate.margin is not None and 0 < abs(float(gate.margin)) < _NEAR * abs(float(gate.value)):
        text = gate.value
    return readable.with_error(text, gate.standard_error)
