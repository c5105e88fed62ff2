"""Which gates hold, and what their sentences say."""

from __future__ import annotations

import pytest
from tests.worker.evaluation.meters import Recorder

from kubequant.api.contract import VariantReport
from kubequant.api.enums import Metric
from kubequant.api.gating import gate_sentence, listed
from kubequant.api.spec import Gate
from kubequant_worker.evaluation.estimates import estimates
from kubequant_worker.evaluation.gates import Candidate, Estimate, gate_results
from kubequant_worker.evaluation.meter import Portion

INCREASE = Metric.PERPLEXITY_INCREASE_PERCENT


@pytest.mark.parametrize(
    ("bounds", "number", "passed", "says"),
    [
        pytest.param({"max": "2.0"}, 2.0, True, "is 2, at most 2.0: holds", id="exactly at most"),
        pytest.param(
            {"max": "2.0"},
            2.0000001,
            False,
            "does not hold, by 1e-07",
            id="just above, never rounded",
        ),
        pytest.param(
            {"min": "70"}, 69.9, False, "is 69.9, at least 70: does not hold, by 0.1", id="below"
        ),
        pytest.param({"min": "1", "max": "2"}, 1.5, True, "at least 1 and at most 2", id="within"),
        pytest.param({"max": "2.0"}, None, False, "was not measured", id="nobody measured it"),
        pytest.param({"max": "2.0"}, float("nan"), False, "no finite number", id="no number"),
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
    numbers = {} if number is None else {(INCREASE, ""): Estimate(number)}
    (result,) = gate_results([gate], [Candidate("Q4_0", numbers)])
    assert result.passed is passed
    assert says in gate_sentence(result)
    assert gate_sentence(result).startswith("spec.gates[0]: Q4_0: PerplexityIncreasePercent ")
    assert result.certain is None


@pytest.mark.parametrize(
    ("number", "error", "passed", "certain", "margin", "says"),
    [
        pytest.param(
            *(1.9, 0.3, True, False, "0.1"),
            "is 1.9 ± 0.3, at most 2.0: holds, but not beyond two standard errors",
            id="holds within its error",
        ),
        pytest.param(
            *(1.0, 0.3, True, True, "1"), "is 1 ± 0.3, at most 2.0: holds", id="surely holds"
        ),
        pytest.param(
            *(1.4, 0.3, True, True, "0.6"), "at most 2.0: holds", id="two errors off to the last"
        ),
        pytest.param(
            *(2.1, 0.3, False, False, "-0.1"),
            "does not hold, by 0.1, which is within two standard errors",
            id="fails within its error: the value decides",
        ),
        pytest.param(
            *(4.0, 0.3, False, True, "-2"), "at most 2.0: does not hold, by 2", id="surely fails"
        ),
        pytest.param(
            *(1.9, float("inf"), True, None, "0.1"), "is 1.9, at most", id="an error without end"
        ),
    ],
)
def test_a_gate_says_whether_its_verdict_stands_beyond_the_error(
    number: float, error: float, *, passed: bool, certain: bool | None, margin: str, says: str
) -> None:
    gate = Gate(metric=INCREASE, max="2.0")
    candidate = Candidate("Q4_0", {(INCREASE, ""): Estimate(number, error)})
    (result,) = gate_results([gate], [candidate])

    assert (result.passed, result.certain, result.margin) == (passed, certain, margin)
    assert gate_sentence(result).endswith(says) or says in gate_sentence(result)


def test_the_nearer_of_two_bounds_is_the_margin() -> None:
    gate = Gate(metric=INCREASE, min="0", max="10")
    results = [
        gate_results([gate], [Candidate("A", {(INCREASE, ""): Estimate(value, 1)})])[0]
        for value in (1, 5, 11)
    ]

    assert [(one.margin, one.certain) for one in results] == [
        ("1", False),
        ("5", True),
        ("-1", False),
    ]


def test_a_gate_is_for_every_variant_unless_it_names_one() -> None:
    gates = [
        Gate(metric=INCREASE, max="1"),
        Gate.model_validate({"metric": "SizeReductionPercent", "min": "70", "variant": "Q4_0"}),
    ]
    numbers = {
        (INCREASE, ""): Estimate(0.5),
        (Metric.SIZE_REDUCTION_PERCENT, ""): Estimate(60.0),
    }
    results = gate_results(gates, [Candidate("Q4_0", numbers), Candidate("Q8_0", numbers)])
    assert [(one.gate, one.variant, one.passed) for one in results] == [
        (0, "Q4_0", True),
        (0, "Q8_0", True),
        (1, "Q4_0", False),
    ]


def test_a_variant_holds_the_gates_of_those_whose_place_it_takes() -> None:
    gates = [
        Gate.model_validate({"metric": "SizeReductionPercent", "min": "70", "variant": kind})
        for kind in ("Q4_0", "Q8_0")
    ]
    numbers = {(Metric.SIZE_REDUCTION_PERCENT, ""): Estimate(60.0)}
    in_place = Candidate("Q5_0", numbers, frozenset({"Q4_0"}))

    assert [one.gate for one in gate_results(gates, [in_place])] == [0]


TOLD = VariantReport.model_validate(
    {
        "name": "Q4_0",
        "sizeBytes": 100,
        "sizeReductionPercent": "70.12",
        "perplexity": "6.5",
        "perplexityIncreasePercent": "1.235",
        "perplexityIncreaseStandardError": "0.3",
        "meanKLDivergence": "0.02",
        "topTokenAgreementPercent": "93.5",
        "tokensPerSecond": "70",
        "speedup": "1.8",
        "speedupStandardError": "0.05",
        "peakMemoryBytes": 4000,
        "perplexityDetail": {"standardError": "0.04"},
        "divergenceDetail": {"standardError": "0.001", "topTokenAgreementStandardError": "0.4"},
        "performanceDetail": {"repetitions": 4, "tokensPerSecondDeviation": "2"},
        "benchmarkDetails": [
            {
                "task": "arc_easy",
                "metric": "acc",
                "original": "0.80",
                "originalStandardError": "0.03",
                "quantized": "0.78",
                "quantizedStandardError": "0.04",
            },
            {"task": "arc_easy", "metric": "acc_norm", "original": "0.1", "quantized": "0.2"},
        ],
    }
)


def test_every_metric_is_read_from_the_report_with_its_error() -> None:
    numbers = estimates(TOLD, {INCREASE: 1.2345678})

    assert {metric for metric, _ in numbers} == set(Metric)
    assert numbers[INCREASE, ""] == Estimate(1.2345678, 0.3)
    assert numbers[Metric.SIZE_BYTES, ""] == Estimate(100, None)
    assert numbers[Metric.PERPLEXITY, ""] == Estimate(6.5, 0.04)
    assert numbers[Metric.MEAN_KL_DIVERGENCE, ""] == Estimate(0.02, 0.001)
    assert numbers[Metric.TOP_TOKEN_AGREEMENT_PERCENT, ""] == Estimate(93.5, 0.4)
    assert numbers[Metric.SPEEDUP, ""] == Estimate(1.8, 0.05)
    # The median of four has 1.2533 times the error of a mean of four.
    assert numbers[Metric.TOKENS_PER_SECOND, ""].standard_error == pytest.approx(1.2533, abs=1e-4)
    assert numbers[Metric.BENCHMARK_SCORE, "arc_easy"] == Estimate(0.78, 0.04)
    change = numbers[Metric.BENCHMARK_CHANGE, "arc_easy"]
    assert change.value == pytest.approx(-0.02)
    assert change.standard_error == pytest.approx(0.05)


def test_what_was_not_measured_is_not_there() -> None:
    numbers = estimates(VariantReport(name="Q4_0", size_bytes=1), {})

    assert set(numbers) == {(Metric.SIZE_BYTES, "")}


def test_a_gate_on_a_benchmark_holds_the_task_that_it_names() -> None:
    gates = [
        Gate.model_validate({"metric": "BenchmarkChange", "min": "-0.01", "task": "arc_easy"}),
        Gate.model_validate({"metric": "BenchmarkScore", "min": "0.5", "task": "other"}),
    ]
    results = gate_results(gates, [Candidate("Q4_0", estimates(TOLD, {}))])

    assert [(one.passed, one.certain) for one in results] == [(False, False), (False, None)]
    assert "BenchmarkChange of arc_easy is -0.02 ± 0.05" in gate_sentence(results[0])


@pytest.mark.parametrize(
    ("higher", "change"),
    [(True, 888.0), (False, -888.0), (None, 888.0)],
    ids=["more is better", "less is better", "nobody says"],
)
def test_a_change_for_the_worse_is_negative(*, higher: bool | None, change: float) -> None:
    detail = {"task": "prose", "metric": "word_perplexity", "original": "12", "quantized": "900"}
    told = VariantReport.model_validate(
        {"name": "Q4_0", "benchmarkDetails": [{**detail, "higherIsBetter": higher}]}
    )
    gate = Gate.model_validate({"metric": "BenchmarkChange", "min": "-0.02", "task": "prose"})
    numbers = estimates(told, {})
    (result,) = gate_results([gate], [Candidate("Q4_0", numbers)])

    assert numbers[Metric.BENCHMARK_CHANGE, "prose"].value == change
    assert result.passed is (change > 0)


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


@pytest.mark.parametrize(
    ("sentences", "longest", "text"),
    [
        pytest.param([], 9, "", id="none"),
        pytest.param(["ab", "cd"], 6, "ab; cd", id="all, to the last character"),
        pytest.param(
            ["abcdefghijkl", "mno"], 16, "abcdefghijkl…", id="none whole beside the count"
        ),
        pytest.param(
            ["ab", "cdefghijkl", "mn"], 16, "ab; and 2 more", id="whole ones, and the rest counted"
        ),
        pytest.param(["abcdefghi"], 5, "abcd…", id="one that is too long is cut"),
    ],
)
def test_sentences_that_do_not_fit_are_counted(
    sentences: list[str], longest: int, text: str
) -> None:
    assert listed(sentences, longest) == text
    assert len(text) <= longest
