"""Progress comes from work done, and is shown as a bar on a terminal and as lines elsewhere."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from kubequant.api.outcome import Stage
from kubequant_worker.evaluation.meter import Portion
from kubequant_worker.progress import Progress, Snapshot
from kubequant_worker.redaction import Redactor
from kubequant_worker.sinks import LogLines, TerminalBar, duration


@dataclass
class Seen:
    """A sink that keeps what it was shown."""

    snapshots: list[Snapshot] = field(default_factory=list)

    def update(self, snapshot: Snapshot) -> None:
        self.snapshots.append(snapshot)


@dataclass
class Clock:
    """A clock that is set by hand."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_eta_is_what_the_work_left_will_take_at_the_pace_so_far() -> None:
    seen, clock = Seen(), Clock()
    with Progress([seen], clock).stage(Stage.FETCHING, total=200) as progress:
        clock.now = 30
        progress.advance(50, "a.safetensors")

    last = seen.snapshots[-2]
    assert (last.fraction, last.eta_seconds, last.message) == (0.25, 90, "a.safetensors")
    assert seen.snapshots[-1].finished


def test_without_work_done_there_is_no_eta_however_long_it_takes() -> None:
    seen, clock = Seen(), Clock()
    with Progress([seen], clock).stage(Stage.FETCHING, total=200) as progress:
        clock.now = 1000
        progress.advance(0)

    assert [snapshot.eta_seconds for snapshot in seen.snapshots[:-1]] == [None, None]


def test_a_stage_that_fails_is_not_said_to_be_finished() -> None:
    seen = Seen()
    with pytest.raises(ValueError, match="no"), Progress([seen]).stage(Stage.FETCHING, 1):
        raise ValueError("no")

    assert not any(snapshot.finished for snapshot in seen.snapshots)


@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(0, 1000)), max_size=20))
def test_the_fraction_never_falls_and_never_exceeds_one(steps: list[tuple[int, int]]) -> None:
    seen = Seen()
    with Progress([seen]).stage(Stage.FETCHING) as progress:
        for total, amount in steps:
            progress.set_total(total)
            progress.advance(amount)

    fractions = [snapshot.fraction for snapshot in seen.snapshots]
    assert fractions == sorted(fractions)
    assert 0 <= fractions[0] <= fractions[-1] == 1


def test_portions_count_in_their_own_units() -> None:
    seen = Seen()
    with Progress([seen]).stage(Stage.EVALUATING, total=4) as progress:
        portion = Portion(progress, 1)
        portion.set_total(1000)
        portion.advance(500)
        assert seen.snapshots[-1].fraction == pytest.approx(0.125)
        portion.advance(5000)
        portion.finish()
        assert seen.snapshots[-1].fraction == pytest.approx(0.25)


def test_there_is_a_line_for_each_stage_and_tenth_and_no_more() -> None:
    stream = io.StringIO()
    with Progress([LogLines(stream)]).stage(Stage.FETCHING, total=1000) as progress:
        for _ in range(1000):
            progress.advance(1, "a.safetensors")

    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["percent"] for line in lines] == list(range(0, 101, 10))
    assert {line["stage"] for line in lines} == {"Fetching"}
    assert lines[1]["message"] == "a.safetensors"


def test_a_terminal_shows_a_bar_for_each_stage() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with TerminalBar(console) as bar:
        progress = Progress([bar])
        with progress.stage(Stage.FETCHING, total=10) as stage:
            stage.advance(10)
        with progress.stage(Stage.QUANTIZING, total=10) as stage:
            stage.advance(5, "layer 5 of 10")

    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "Fetching" in shown
    assert "Quantizing" in shown
    assert "100%" in shown


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (99, "99 s"), (150, "2 min"), (11_100, "3 h 5 min")]
)
def test_a_time_left_is_said_as_people_do(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_known_secrets_are_replaced_and_short_values_left_alone() -> None:
    redactor = Redactor(["hf_abcdefgh", "hf_abcdefgh_longer\n", "ab"])

    assert redactor.clean("hf_abcdefgh_longer hf_abcdefgh ab") == "[redacted] [redacted] ab"
