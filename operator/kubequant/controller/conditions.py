"""A verdict on a resource as conditions and as a phase.

One verdict makes all six conditions, so that no two of them can contradict each other; the phase is
derived from them and never the other way round.

    standing    True conditions       kstatus, Flux, kubectl wait
    COMPLETE    Complete, Ready       Current
    FAILED      Failed, Stalled       Failed
    STUCK       Stalled               Failed; heals when the world changes
    SUSPENDED   Suspended             InProgress
    QUEUED      Suspended, Reconciling    InProgress
    WORKING     Reconciling           InProgress
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from kubequant.api.status import Condition, ConditionType, Phase
from kubequant.controller.reasons import Reason

if TYPE_CHECKING:
    from datetime import datetime

    from kubequant.api.status import QuantizationJobStatus

LONGEST_MESSAGE: Final = 2048


_CUT: Final = "…"
"""The sign that there was more."""


class Standing(Enum):
    """How a resource stands; see the table above."""

    COMPLETE = auto()
    FAILED = auto()
    STUCK = auto()
    SUSPENDED = auto()
    QUEUED = auto()
    WORKING = auto()


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a resource stands, why in a word, and why in a sentence."""

    standing: Standing
    reason: Reason
    message: str


_TRUE: Final[dict[Standing, frozenset[ConditionType]]] = {
    Standing.COMPLETE: frozenset({ConditionType.COMPLETE, ConditionType.READY}),
    Standing.FAILED: frozenset({ConditionType.FAILED, ConditionType.STALLED}),
    Standing.STUCK: frozenset({ConditionType.STALLED}),
    Standing.SUSPENDED: frozenset({ConditionType.SUSPENDED}),
    Standing.QUEUED: frozenset({ConditionType.SUSPENDED, ConditionType.RECONCILING}),
    Standing.WORKING: frozenset({ConditionType.RECONCILING}),
}

_RUNS: Final = frozenset({Reason.RUNNING, Reason.RETRYING, Reason.DISRUPTED, Reason.FINISHING})


def conditions(
    verdict: Verdict, before: QuantizationJobStatus | None, *, now: datetime, generation: int
) -> tuple[Condition, ...]:
    """Return all six conditions; each keeps its time of change while its status stays."""
    old = {condition.type: condition for condition in before.conditions} if before else {}
    made = []
    for kind in ConditionType:
        holds = kind in _TRUE[verdict.standing]
        status = "True" if holds else "False"
        same = kind in old and old[kind].status == status
        # Tools that know only Ready show its message, so it says why it is not.
        says = holds or kind is ConditionType.READY
        made.append(
            Condition(
                type=kind,
                status="True" if holds else "False",
                reason=verdict.reason.value,
                message=shortened(verdict.message, LONGEST_MESSAGE) if says else "",
                last_transition_time=old[kind].last_transition_time if same else now,
                observed_generation=generation,
            )
        )
    return tuple(made)


def phase_of(made: tuple[Condition, ...]) -> Phase:
    """Return the one word for people."""
    true = {condition.type: condition.reason for condition in made if condition.status == "True"}
    if ConditionType.COMPLETE in true:
        return Phase.SUCCEEDED
    if ConditionType.FAILED in true:
        return Phase.FAILED
    if ConditionType.SUSPENDED in true:
        return Phase.SUSPENDED
    if true.get(ConditionType.RECONCILING) in _RUNS:
        return Phase.RUNNING
    return Phase.PENDING


def condition_of(status: QuantizationJobStatus | None, kind: ConditionType) -> Condition | None:
    """Return a condition where it is True."""
    found = known_condition(status, kind)
    return found if found is not None and found.status == "True" else None


def known_condition(status: QuantizationJobStatus | None, kind: ConditionType) -> Condition | None:
    """Return a condition, whether it is True or not."""
    known = status.conditions if status else ()
    return next((one for one in known if one.type is kind), None)


def reason_of(status: QuantizationJobStatus | None) -> str:
    """Return the reason of the verdict that a status was made from; all its conditions share it."""
    return status.conditions[0].reason if status and status.conditions else ""


def shortened(text: str, limit: int) -> str:
    """Return at most `limit` characters of a text, and a sign that there was more."""
    return text if len(text) <= limit else text[: limit - len(_CUT)] + _CUT


def shortened_to_bytes(text: str, limit: int) -> str:
    """Return a text of at most `limit` bytes in UTF-8, with the same sign, no character cut."""
    whole = text.encode()
    if len(whole) <= limit:
        return text
    return whole[: limit - len(_CUT.encode())].decode(errors="ignore") + _CUT
