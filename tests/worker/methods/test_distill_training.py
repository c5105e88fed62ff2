"""The training loop itself: parts of a batch add up, and a stopped training goes on as it was."""

from __future__ import annotations

import socket
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from tests.worker.methods.conftest import TINY

from kubequant_worker.methods.child import Parent
from kubequant_worker.methods.distill_child import StoppedError, Training
from kubequant_worker.methods.student_layers import cut_of, make_student

if TYPE_CHECKING:
    from pathlib import Path

STEPS = 4


class Line:
    """Both ends of what parent and child speak over."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.ours = Connection(ours.detach())
        self.parent = Parent(Connection(theirs.detach()))

    def heard(self) -> list[Any]:
        """Return what the child has said so far."""
        found = []
        while self.ours.poll(0):
            found.append(self.ours.recv())
        return found


@pytest.fixture(scope="module", autouse=True)
def own_accelerator() -> None:
    """Forget what other tests made of accelerate, which a process holds once: a child is new."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("job")
    make_student(TINY, folder / "student", cut_of({"num_hidden_layers": 4}, 1))
    rows = np.random.default_rng(0).integers(3, 2048, (8, 24), dtype=np.int32)
    np.save(folder / "samples.npy", rows)
    return {
        "model": str(TINY),
        "student": str(folder / "student"),
        "loading": {"device": "cpu", "dtype": "float32"},
        "samples": str(folder / "samples.npy"),
        "seed": 0,
        "width": 2048,
        "steps": STEPS,
        "batch": 4,
        "temperature": 2.0,
        "hard_weight": 0.1,
        "learning_rate": 0.01,
        "low_memory": False,
        "checkpoints": str(folder),
        "checkpoint_seconds": 3600,
        "identity": "a",
        "resume": None,
    }


def losses(training: Training) -> list[float]:
    found: list[float] = [point[1] for point in training.told()["points"]]
    return found


def trained(job: dict[str, Any], *, at_once: int = 4) -> Training:
    line = Line()  # a closed one is a parent that says something: its end
    training = Training(line.parent, job)
    training._at_once = at_once
    training.run()
    assert line.heard()
    return training


@pytest.fixture(scope="module")
def whole(job: dict[str, Any]) -> Training:
    return trained(job)


def test_a_student_learns(whole: Training) -> None:
    assert len(losses(whole)) == STEPS
    assert losses(whole)[-1] < losses(whole)[0]


@pytest.mark.parametrize("at_once", [1, 3])
def test_the_gradients_of_parts_add_up_to_those_of_the_batch(
    job: dict[str, Any], whole: Training, at_once: int
) -> None:
    assert losses(trained(job, at_once=at_once)) == pytest.approx(losses(whole), rel=0.01)


def test_low_memory_takes_one_sequence_at_a_time_and_learns_the_same(
    job: dict[str, Any], whole: Training
) -> None:
    training = trained({**job, "low_memory": True}, at_once=1)

    assert training._sequences_at_once() == 1
    assert whole._sequences_at_once() == 4
    assert losses(training) == pytest.approx(losses(whole), rel=0.01)


def test_a_training_that_is_told_to_stop_leaves_its_last_whole_step(
    job: dict[str, Any], whole: Training, tmp_path: Path
) -> None:
    line = Line()
    first = Training(line.parent, {**job, "checkpoints": str(tmp_path)})
    first._at_once = 2
    step, seen = first._step, []

    def stopped_in_the_third(number: int, rate: float) -> tuple[float, float, float]:
        seen.append(number)
        if len(seen) == 3:
            line.ours.send("stop")
        return step(number, rate)

    first._step = stopped_in_the_third  # type: ignore[method-assign] # the moment is the test's
    with pytest.raises(StoppedError):
        first.run()
    *_, last = line.heard()
    assert last == ("event", "checkpoint", 2, str(tmp_path / "2.safetensors"))

    second = trained({**job, "resume": last[3]}, at_once=2)

    assert second.told()["resumed_at"] == [2]
    assert losses(second) == pytest.approx(losses(whole), rel=0.01)


def test_checkpoints_are_left_as_often_as_asked_and_not_while_one_is_taken_away(
    job: dict[str, Any], tmp_path: Path
) -> None:
    line = Line()
    often = {**job, "checkpoints": str(tmp_path), "checkpoint_seconds": 0}
    training = Training(line.parent, often)
    training.run()
    steps = [message[2] for message in line.heard() if message[1] == "checkpoint"]

    # The first is never taken away here, and the last is left whatever happens.
    assert steps == [1, STEPS]
    assert not list(tmp_path.glob("*.part"))
