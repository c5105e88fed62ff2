"""Which settings stand for what the spec asked for, and what is tried when gates do not hold.

A state and its transitions, no effects: `attempts` makes and measures what is asked for here.

Each variant of the spec is a slot. At first its own setting stands in it; where one of the slot's
gates does not hold, the next rung of its ladder takes its place. The gates of a slot are those that
name no variant and those that name the slot's: a gate for Q4_K_M is held by whatever stands in
Q4_K_M's place. Two slots may come to share one rung, which then has to hold the gates of both.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from kubequant.api.enums import Metric, OnGateFailure
from kubequant.api.evaluation import BENCHMARKED
from kubequant_worker import ladder

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from kubequant.api.contract import GateResult
    from kubequant.api.spec import Gate, QuantizationJobSpec
    from kubequant_worker.ladder import Rung

# What a more careful setting, which keeps more, can only make larger (True) or smaller (False).
# Quality may turn either way from one setting to the next, and so may speed: a kernel decides it.
_GROWS: Final = {
    Metric.SIZE_BYTES: True,
    Metric.PEAK_MEMORY_BYTES: True,
    Metric.SIZE_REDUCTION_PERCENT: False,
}


@dataclass(slots=True)
class Slot:
    """One variant of the spec, what stands for it, and what may follow."""

    asked: str
    standing: Rung
    rest: tuple[Rung, ...]

    tried: tuple[Rung, ...] = ()

    @property
    def escalated(self) -> bool:
        """Whether something else than the spec's own setting stands here."""
        return bool(self.tried)

    def advance(self) -> bool:
        """Let the next rung stand here, and say whether there was one."""
        if not self.rest:
            return False
        self.tried = (*self.tried, self.standing)
        self.standing, self.rest = self.rest[0], self.rest[1:]
        return True


class Escalation:
    """All slots of a run. Without `onGateFailure: Escalate` no ladder has a rung."""

    def __init__(self, spec: QuantizationJobSpec, engine: str, there: Container[str]) -> None:
        """Start with what `spec` asks for, done by `engine`; `there` are the image's engines."""
        self._spec = spec
        climbs = spec.on_gate_failure is OnGateFailure.ESCALATE
        self.slots = [
            Slot(rung.variant, rung, ladder.rungs(spec, rung, there) if climbs else ())
            for rung in ladder.standing(spec, engine)
        ]

    @property
    def standing(self) -> tuple[Rung, ...]:
        """What stands in the slots, each rung once, in the slots' order."""
        found = {slot.standing.variant: slot.standing for slot in self.slots}
        return tuple(found.values())

    @property
    def possible(self) -> tuple[Rung, ...]:
        """Every rung that may yet be tried, each once."""
        return tuple({rung.key: rung for s in self.slots for rung in s.rest}.values())

    def stands_for(self, variant: str) -> frozenset[str]:
        """Return the variants of the spec for which `variant` stands."""
        return frozenset(s.asked for s in self.slots if s.standing.variant == variant)

    def in_place_of(self, variant: str) -> tuple[str, ...]:
        """Return the variants of the spec whose place `variant` took, in the spec's order."""
        return tuple(s.asked for s in self.slots if s.standing.variant == variant and s.escalated)

    def may_stand(self, key: str) -> bool:
        """Say whether a rung stands in a slot or may come to."""
        return any(key in {s.standing.key, *(rung.key for rung in s.rest)} for s in self.slots)

    def missed(self, slot: Slot, results: Iterable[GateResult]) -> tuple[GateResult, ...]:
        """Return the gates of a slot that do not hold."""
        return tuple(
            one
            for one in results
            if one.variant == slot.standing.variant
            and not one.passed
            and _gate_variant(self._spec.gates, one) in {None, slot.asked}
        )


def may_help(missed: GateResult) -> bool:
    """Say whether a more careful setting may hold a gate that does not hold.

    Not where it can only miss the bound by more, nor where the number is one that is not measured:
    no setting changes that. A benchmark's alone may be missing for being no finite number.
    """
    metric = Metric(missed.metric)
    if missed.value is None:
        return metric in BENCHMARKED
    if metric not in _GROWS:
        return True
    too_large = missed.max is not None and Decimal(missed.value) > Decimal(missed.max)
    return _GROWS[metric] is not too_large


def _gate_variant(gates: Sequence[Gate], result: GateResult) -> str | None:
    named = gates[result.gate].variant
    return None if named is None else named.value
