"""What a training step sees and how large it is follows from its number alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

from kubequant_worker.methods.distill_schedule import (
    LAST_SHARE,
    MOST_POINTS,
    Curve,
    Order,
    learning_rate,
)


@pytest.mark.parametrize(
    ("step", "share"),
    [
        pytest.param(0, 1 / 50, id="the first step is a fiftieth of the warm-up"),
        pytest.param(49, 1.0, id="the warm-up ends at the peak"),
        pytest.param(50, 1.0, id="the cosine begins there"),
        pytest.param(525, (1 + LAST_SHARE) / 2, id="in the middle it is half way down"),
        pytest.param(1000, LAST_SHARE, id="it comes down to a tenth"),
    ],
)
def test_the_learning_rate_rises_and_falls_along_a_cosine(step: int, share: float) -> None:
    assert learning_rate(step, steps=1000, peak=0.002) == pytest.approx(0.002 * share)


@pytest.mark.parametrize("steps", [1, 2, 19, 100])
def test_the_shortest_trainings_have_rates_too(steps: int) -> None:
    rates = [learning_rate(step, steps=steps, peak=1.0) for step in range(steps)]

    assert max(rates) == pytest.approx(1.0)
    assert min(rates) > 0


def test_every_sequence_is_seen_once_before_any_is_seen_again() -> None:
    order = Order(sequences=7, batch=3, seed=1)
    seen = np.concatenate([order.batch_of(step) for step in range(7)])

    assert sorted(seen[:7]) == sorted(seen[7:14]) == sorted(seen[14:]) == list(range(7))
    assert list(seen[:7]) != list(seen[7:14])


def test_the_order_is_the_seeds_and_needs_nothing_of_the_steps_before() -> None:
    late = Order(sequences=50, batch=4, seed=3).batch_of(100)

    assert list(late) == list(Order(sequences=50, batch=4, seed=3).batch_of(100))
    assert list(late) != list(Order(sequences=50, batch=4, seed=4).batch_of(100))


def test_a_batch_may_be_larger_than_the_text() -> None:
    assert sorted(Order(sequences=2, batch=5, seed=0).batch_of(0))[:2] == [0, 0]


@pytest.mark.parametrize("steps", [1, 200, 201, 999, 100_000])
def test_a_curve_is_bounded_and_ends_with_the_last_step(steps: int) -> None:
    curve = Curve(steps)
    for step in range(1, steps + 1):
        curve.add(step, (1.0, 2.0, 3.0), 0.1)

    assert len(curve.points) <= MOST_POINTS
    assert curve.points[-1] == (steps, 1.0, 2.0, 3.0, 0.1)


def test_a_curve_that_was_kept_on_the_way_is_the_same_at_its_end() -> None:
    whole, first = Curve(1000), Curve(1000)
    for step in range(1, 1001):
        losses = (1 / step, 2 / step, 3 / step)
        whole.add(step, losses, step / 1000)
        first.add(step, losses, step / 1000)
        if step == 503:  # in the middle of a point
            first = Curve.from_json(1000, json.loads(json.dumps(first.to_json())))

    assert first == whole
