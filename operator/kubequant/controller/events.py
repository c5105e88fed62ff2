"""What the newest event about an object says, in words that are fit for a status.

Pure, and the door where an event's dictionary dies. Whoever may write events in a namespace may
write any: they are shown to people and decide nothing.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from kubequant.controller.conditions import shortened
from kubequant.controller.failures import presentable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kubequant.controller.plan import Question

_LONGEST: Final = 800
_LEAD: Final = re.compile(r"^(\(combined from similar events\): )?(Error creating: )?")
_GENERATED: Final = 58
"""So much of a name's beginning a server keeps before it adds five characters of its own."""
_BEFORE_ALL: Final = datetime.min.replace(tzinfo=UTC)


def newest_words(events: Iterable[Mapping[str, Any]], question: Question) -> str:
    """Return what the newest of `events` (events.k8s.io/v1) says, cut; empty where none does.

    A pod that is refused has another name each time, which is left out: else a run that stands
    still would be news each time that Kubernetes tries again.
    """
    since = question.since or _BEFORE_ALL
    told = [(_seen(event), str(event.get("note") or "")) for event in events]
    told = [(seen, note) for seen, note in told if note and seen >= since]
    if not told:
        return ""
    note = _LEAD.sub("", max(told)[1], count=1)
    if question.job_name:
        base = f"{question.job_name}-"[:_GENERATED]
        note = re.sub(rf"{re.escape(base)}[a-z0-9]{{5}}\b", f"{base}…", note)
    return shortened(presentable(note), _LONGEST)


def _seen(event: Mapping[str, Any]) -> datetime:
    """Return when an event was seen last: which field says so depends on who wrote it."""
    series, metadata = event.get("series") or {}, event.get("metadata") or {}
    moments = (
        series.get("lastObservedTime"),
        event.get("deprecatedLastTimestamp"),
        event.get("eventTime"),
        metadata.get("creationTimestamp"),
    )
    return max((datetime.fromisoformat(one) for one in moments if one), default=_BEFORE_ALL)
