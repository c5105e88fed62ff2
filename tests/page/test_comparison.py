"""Several reports side by side: the best trade-offs, and what forbids to compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.page.documents import Document
from tests.page.reports import SHA, whole_report

from kubequant.api.enums import Method
from kubequant_worker.comparison import KL_DIVERGENCE, PERPLEXITY_CHANGE, as_json, compare
from kubequant_worker.page import comparison_page

if TYPE_CHECKING:
    from kubequant.api.contract import RunReport

OTHER = "0d11be52" * 8


def of(*points: tuple[int | None, str | None]) -> RunReport:
    """Return a report whose variants have these sizes and divergences."""
    variants: list[dict[str, Any]] = [
        {"name": f"v{n}", "sizeBytes": size, "meanKLDivergence": damage}
        for n, (size, damage) in enumerate(points)
    ]
    return whole_report(variants=variants, gates=[], recommended="")


def timed(**detail: Any) -> dict[str, Any]:
    """Return the changes of a report whose original was timed otherwise."""
    before = whole_report().to_json()["original"]["performanceDetail"]
    return {"original": {"performanceDetail": {**before, **detail}}}


@pytest.mark.parametrize(
    ("points", "optimal"),
    [
        pytest.param([(1, "0.5"), (2, "0.1")], [True, True], id="each is better in one"),
        pytest.param([(1, "0.5"), (2, "0.6")], [True, False], id="one is worse in both"),
        pytest.param([(1, "0.5"), (1, "0.6")], [True, False], id="as large and worse"),
        pytest.param([(1, "0.5"), (2, "0.5")], [True, False], id="as good and larger"),
        pytest.param([(1, "0.5"), (1, "0.5")], [True, True], id="equal ones are both"),
        pytest.param([(1, None), (2, "0.5")], [False, True], id="not measured is never"),
        pytest.param([(None, "0.1"), (2, "0.5")], [False, True], id="no size is never"),
        pytest.param([(1, None)], [False], id="nothing measured"),
    ],
)
def test_a_row_is_optimal_where_no_other_beats_it(
    points: list[tuple[int | None, str | None]], optimal: list[bool]
) -> None:
    assert [row.is_optimal for row in compare([("a", of(*points))]).rows] == optimal


def test_rows_keep_their_order_and_get_letters_beyond_the_alphabet() -> None:
    many = of(*((n + 1, "0.5") for n in range(10)))
    comparison = compare([("a", many), ("b", many), ("c", many)])

    assert [row.key for row in comparison.rows][:2] == ["A", "B"]
    assert [row.key for row in comparison.rows][-5:] == ["Z", "AA", "AB", "AC", "AD"]
    assert [row.place for row in comparison.rows][::10] == ["a", "b", "c"]


def test_the_measure_is_the_one_that_was_taken() -> None:
    without = [{**one, "meanKLDivergence": None} for one in whole_report().to_json()["variants"]]

    assert compare([("a", whole_report())]).measure == KL_DIVERGENCE
    assert compare([("a", whole_report(variants=without))]).measure == PERPLEXITY_CHANGE
    assert compare([("a", of((1, None)))]).measure == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({}, None, id="the same baseline"),
        pytest.param(
            {
                "source": {
                    "uri": "hf://meta-llama/Llama-3.1-8B-Instruct",
                    "files": [{"path": "model.safetensors", "sizeBytes": 1, "sha256": OTHER}],
                }
            },
            "a and b: they do not have the same original, so no number compares",
            id="another original under the same name",
        ),
        pytest.param(
            {"datasets": [{"role": "evaluation", "sha256": OTHER, "tokens": 65_536}]},
            "a and b: they were not measured on the same text",
            id="another text",
        ),
        pytest.param(
            {"datasets": [{"role": "evaluation", "sha256": SHA, "tokens": 4096}]},
            "a and b: they were not measured on the same text",
            id="a part of the same text",
        ),
        pytest.param(
            {"datasets": []}, "b: the report does not name its text by digest", id="no text"
        ),
        pytest.param(
            {"original": {"perplexityDetail": {"contextLength": 512}}},
            "a and b: their windows are not equally long",
            id="other windows",
        ),
        pytest.param(
            {"original": {"runtime": "transformers 5 in float32"}},
            "a and b: they were measured by different runtimes, so speed does not compare",
            id="another runtime",
        ),
        pytest.param(
            timed(device="Intel Xeon"),
            "a and b: they were timed on different devices, so speed does not compare (device AMD "
            "EPYC 9354 with 16 threads and Intel Xeon with 16 threads)",
            id="another processor",
        ),
        pytest.param(timed(threads=4), "a and b: they were timed on diff", id="fewer threads"),
        pytest.param(
            timed(device="NVIDIA L4", peakGPUMemoryBytes=1),
            "a and b: they were timed on different devices, so speed does not compare (device AMD "
            "EPYC 9354 with 16 threads and NVIDIA L4)",
            id="a GPU",
        ),
        pytest.param({"original": {"performanceDetail": {}}}, None, id="no device named"),
    ],
)
def test_what_forbids_to_compare_is_said(changes: dict[str, Any], words: str | None) -> None:
    warnings = compare([("a", whole_report()), ("b", whole_report(**changes))]).warnings

    assert len(warnings) == (words is not None)
    assert not words or warnings[0].startswith(words)


def test_the_same_weights_under_other_file_names_are_the_same_original() -> None:
    files = [{"path": "weights-1.safetensors", "sizeBytes": 1, "sha256": SHA}]
    moved = whole_report(source={"uri": "s3://models/llama", "files": files})

    assert compare([("a", whole_report()), ("b", moved)]).warnings == ()


def test_the_page_plots_every_variant_and_marks_the_best() -> None:
    comparison = compare([("a", whole_report()), ("b/<c>", whole_report(Method.AWQ))])
    document = Document(comparison_page(comparison).decode())

    assert document.faults == []
    assert document.text("h1") == ["5 quantized models compared"]
    assert {"A", "B", "C", "D", "E"} <= set(document.text("text"))
    assert document.text("span").count("best trade-off") == 4
    assert "b/<c>" in document.text("dd")


def test_models_on_one_spot_share_a_point() -> None:
    comparison = compare([("a", whole_report(Method.AWQ)), ("b", whole_report(Method.GPTQ))])

    assert [point.key for point in comparison.points()] == ["A,B"]


def test_a_page_without_quality_says_so() -> None:
    page = comparison_page(compare([("a", of((1, None)))])).decode()

    assert "quality was not measured" in page
    assert "<svg" not in page


def test_the_rows_as_json_have_the_names_of_the_status() -> None:
    rows = as_json(compare([("a", whole_report(Method.AWQ))]))["rows"]

    assert rows[0]["meanKLDivergence"] == "0.0301"
    assert (rows[0]["key"], rows[0]["place"], rows[0]["optimal"]) == ("A", "a", True)
