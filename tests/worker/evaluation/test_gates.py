"""Which gates hold, and what their sentences say."""

from __future__ import annotations

import pytest
from tests.worker.evaluation.meters import Recorder

from kubequant.api.spec import Gate, Metric
from kubequant_worker.evaluation.gates import gate_results
from kubequant_worker.evaluation.meter import Portion

INCREASE = Metric.PERPLEXITY_INCREASE_PERCENT


@pytest.mark.parametrize(
    ("bounds", "number", "passed", "says"),
    [
        pytest.param({"max": "2.0"}, 2.0, True, "is 2.0, at most 2.0: holds", id="exactly at most"),
        pytest.param(
            {"max": "2.0"}, 2.0000001, False, "does not hold", id="just above, never rounded"
        ),
        pytest.param({"min": "70"}, 69.9, False, "is 69.9, at least 70: does not hold", id="below"),
        pytest.param({"min": "1", "max": "2"}, 1.5, True, "at least 1 and at most 2", id="within"),
        pytest.param({"max": "2.0"}, None, False, "was not measured", id="nobody measured it"),
        pytest.param({"max": "2.0"}, float("nan"), False, "is NaN", id="no number"),
        pytest.param({"max": "0"}, -0.25, True, "is -0.25", id="better than the original"),
        pytest.param(
            {"max": "5000000000"}, 4920739232, True, "is 4920739232", id="a count of bytes"
        ),
    ],
)
def test_a_gate_holds_a_number_between_its_bounds(
    bounds: dict[str, str], number: float | None, *, passed: bool, says: str
) -> None:
    gate = Gate(metric=INCREASE, **bounds)
    (result,) = gate_results([gate], {"Q4_0": {} if number is None else {INCREASE: number}})
    assert result.passed is passed
    assert says in result.sentence
    assert result.sentence.startswith("spec.gates[0]: Q4_0: PerplexityIncreasePercent ")


def test_a_gate_is_for_every_variant_unless_it_names_one() -> None:
    gates = [
        Gate(metric=INCREASE, max="1"),
        Gate.model_validate({"metric": "SizeReductionPercent", "min": "70", "variant": "Q4_0"}),
    ]
    numbers = {INCREASE: 0.5, Metric.SIZE_REDUCTION_PERCENT: 60.0}
    results = gate_results(gates, {"Q4_0": numbers, "Q8_0": numbers})
    assert [(one.index, one.variant, one.passed) for one in results] == [
        (0, "Q4_0", True),
        (0, "Q8_0", True),
        (1, "Q4_0", False),
    ]


def test_a_portion_counts_in_its_own_unit_and_never_more_than_its_share() -> None:
    stage = Recorder()
    portion = Portion(stage, 10)
    portion.set_total(200)
    portion.advance(50, "a quarter")
    assert stage.done == pytest.approx(2.5)
    portion.advance(500)
    assert stage.done == pytest.approx(10)
    portion.finish()
    assert stage.done == pytest.approx(10)
    assert stage.messages[0] == "a quarter"
