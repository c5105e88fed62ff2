"""Which event answers, whoever wrote it, and which words of it are the same the next time."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from tests.controller.builders import START, at

from kubequant.controller.events import newest_words
from kubequant.controller.plan import Question

JOB = "tiny-9f2c41aa"
LATER, LATEST = START + timedelta(seconds=1), START + timedelta(seconds=2)


def event(note: str | None, **moments: Any) -> dict[str, Any]:
    """Return an event that was made at the start, and seen again as `moments` say."""
    return {"metadata": {"creationTimestamp": at(START)}, "note": note, **moments}


@pytest.mark.parametrize(
    "newest",
    [
        pytest.param({"deprecatedLastTimestamp": at(LATEST)}, id="of the older library"),
        pytest.param({"eventTime": "2026-01-02T03:00:02.000000Z"}, id="of the newer library"),
        pytest.param({"series": {"count": 2, "lastObservedTime": at(LATEST)}}, id="of a series"),
    ],
)
def test_the_event_that_was_seen_last_answers(newest: dict[str, Any]) -> None:
    events = [
        event("first"),
        event("newest", **newest),
        event("between", deprecatedLastTimestamp=at(LATER), eventTime=None, series=None),
    ]
    assert newest_words(events, Question(uid="u")) == "newest"


def test_what_was_said_before_the_question_matters_is_passed_over() -> None:
    events = [event("old"), event(None, eventTime=at(LATEST))]
    assert newest_words(events, Question(uid="u", since=LATER)) == ""
    assert newest_words(events, Question(uid="u", since=START)) == "old"


@pytest.mark.parametrize(
    ("job", "pod"),
    [
        pytest.param(JOB, f"{JOB}-x7k2p", id="a short name"),
        pytest.param("a" * 63, f"{'a' * 58}x7k2p", id="a name that the server cuts"),
    ],
)
@pytest.mark.parametrize("lead", ["", "(combined from similar events): "])
def test_a_refused_pod_has_no_name_of_its_own(job: str, pod: str, lead: str) -> None:
    note = f'{lead}Error creating: pods "{pod}" is forbidden: no class'
    words = newest_words([event(note)], Question(uid="u", job_name=job))
    assert words == f'pods "{pod[:-5]}…" is forbidden: no class'
