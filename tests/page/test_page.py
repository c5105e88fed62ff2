"""report.html as a document: its six parts, what it leaves out, and what it never lets through."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
from tests.api.reports import REPORT
from tests.page.documents import Document
from tests.page.hostile import SCRIPT, TEXTS, hostile_report
from tests.page.reports import ENGINES_OF_METHODS, METHODS, whole_report

from kubequant.api.contract import Failure, RunReport
from kubequant.api.enums import Method
from kubequant.api.outcome import ExitCode, FailureReason, Outcome
from kubequant_worker.page import report_page
from kubequant_worker.page.gates import gates_table
from kubequant_worker.page.tables import benchmarks_table

PARTS = ["Summary", "Quality", "Performance", "Files", "Usage", "Next steps", "How it was made"]
BARE = RunReport(digest="9f2c41aa", outcome=Outcome.PUBLISHED, exit_code=ExitCode.PUBLISHED)


def page(report: RunReport) -> Document:
    return Document(report_page(report).decode())


def headings(document: Document) -> list[int]:
    return [int(tag[1]) for tag, _ in document.elements if re.fullmatch("h[1-6]", tag)]


@pytest.mark.parametrize("method", METHODS)
def test_a_page_of_every_method_has_six_parts_and_says_how_it_was_made(method: Method) -> None:
    document = page(whole_report(method))

    assert document.faults == []
    assert [text.partition(" Q4_K_M")[0] for text in document.text("h2")] == PARTS
    assert document.text("h1") == ["llama-3-1-8b"]
    assert f"{method} " in document.text("header")[0] or f"{method}," in document.text("header")[0]


@pytest.mark.parametrize(("method", "engine"), ENGINES_OF_METHODS)
def test_a_page_of_what_every_engine_makes_has_its_files_and_how_to_load_them(
    method: Method, engine: str
) -> None:
    report = whole_report(method, engine)
    document = page(report)
    links = {one["href"] for one in document.all("a")}

    assert document.faults == []
    assert {f"./{file.path}" for file in report.variants[0].files} <= links
    assert engine in document.text("header")[0]
    assert "nothing to load" not in document.text("main")[0]


def test_a_page_of_a_run_that_failed_offers_nothing_to_load() -> None:
    failure = Failure(reason=FailureReason.GATE_FAILED, exit_code=11)
    found = whole_report(artifact=None, files=[], recommended="", outcome="Failed", exitCode=11)
    document = page(found.model_copy(update={"failure": failure}))
    main = document.text("main")[0]

    assert document.faults == []
    assert "Nothing was published but this report." in main
    assert "There is nothing to load." in main
    assert [one["href"] for one in document.all("a") if not one["href"].startswith("#")] == []


@pytest.mark.parametrize("report", [whole_report(), BARE, REPORT, hostile_report()])
def test_headings_go_down_one_step_at_a_time(report: RunReport) -> None:
    levels = headings(page(report))

    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))


@pytest.mark.parametrize("report", [whole_report(), BARE, REPORT, hostile_report()])
def test_a_page_holds_all_it_needs(report: RunReport) -> None:
    html = report_page(report).decode()
    document = Document(html)

    assert document.all("script") == document.all("img") == document.all("link") == []
    assert re.findall(r"url\(|@import|@font-face|http-equiv=.refresh", html) == []
    assert all(link["href"].startswith(("#", "./")) for link in document.all("a"))
    policy = next(one["content"] for one in document.all("meta") if "content" in one)
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline';")


def test_no_identifier_stands_twice_and_every_reference_leads_to_one() -> None:
    document = page(whole_report())
    names = [one["id"] for _, one in document.elements if "id" in one]

    assert len(names) == len(set(names))
    named = {one["aria-labelledby"] for _, one in document.elements if "aria-labelledby" in one}
    jumps = {one["href"][1:] for one in document.all("a") if one["href"].startswith("#")}
    assert named | jumps <= set(names)


def test_the_headline_is_the_recommended_variants() -> None:
    tiles = page(whole_report()).text("dl")[0]

    assert "Smaller by69.4 %15.0 GiB → 4.58 GiB" in tiles
    assert "+1.12 %± 0.06 standard error" in tiles
    assert "1.86\N{MULTIPLICATION SIGN}38.1 → 71.0 tokens/s" in tiles


@pytest.mark.parametrize(
    ("report", "text"),
    [
        pytest.param(whole_report(Method.AWQ), "The gate holds", id="one gate holds"),
        pytest.param(whole_report(), "1 of 4 gates do not hold", id="one of several does not"),
        pytest.param(whole_report(gates=[]), "No gates were set", id="none"),
        pytest.param(
            BARE.model_copy(
                update={
                    "outcome": Outcome.FAILED,
                    "failure": Failure(reason=FailureReason.OUT_OF_MEMORY, exit_code=21),
                }
            ),
            "Run failed: OutOfMemory",
            id="a run that failed",
        ),
    ],
)
def test_the_verdict_of_the_gates_is_the_first_thing_said(report: RunReport, text: str) -> None:
    assert text in page(report).text("header")[0]


@pytest.mark.parametrize(
    ("gate", "bound", "measured"),
    [
        pytest.param(
            {"metric": "PerplexityIncreasePercent", "max": "2.0", "value": "1.048891068",
             "standardError": "0.067", "margin": "0.951108932"},
            "at most 2.0 %", "+1.05 ± 0.07 %", id="percent",
        ),
        pytest.param(
            {"metric": "MeanKLDivergence", "max": "0.001", "value": "0.000242328",
             "standardError": "0.000008", "margin": "0.000757672"},
            "at most 0.001", "0.00024 ± 0.00001", id="nats",
        ),
        pytest.param(
            {"metric": "SizeBytes", "max": "5000000000", "value": "4920739232",
             "margin": "79260768"},
            "at most 4.66 GiB", "4.58 GiB", id="bytes",
        ),
        pytest.param(
            {"metric": "Speedup", "min": "1.5", "max": "3", "value": "1.863517", "margin": "0.36"},
            "at most 3 and at least 1.5", "1.86\N{MULTIPLICATION SIGN}", id="a factor",
        ),
        pytest.param(
            {"metric": "BenchmarkChange", "task": "ours", "min": "0", "value": "-0.0625",
             "standardError": "0.031", "margin": "-0.0625"},
            "at least 0", "-0.0625 ± 0.0310", id="a score",
        ),
        pytest.param(
            {"metric": "PerplexityIncreasePercent", "max": "2.0", "value": "2.0000001",
             "margin": "-0.0000001"},
            "at most 2.0 %", "2.0000001", id="too near to its bound to be rounded",
        ),
        pytest.param(
            {"metric": "Perplexity", "max": "7"}, "at most 7", "not measured", id="nothing",
        ),
    ],
)  # fmt: skip
def test_a_gate_is_shown_with_its_unit_and_no_more_digits_than_are_sure(
    gate: dict[str, Any], bound: str, measured: str
) -> None:
    one = {"variant": "Q4_K_M", "passed": False, **gate}
    (row,) = gates_table(whole_report(gates=[one])).rows

    assert row.cells[2:4] == (bound, measured)


@pytest.mark.parametrize(
    ("detail", "gain"),
    [
        pytest.param({}, "-0.0100 ± 0.0050", id="more is better"),
        pytest.param({"higherIsBetter": False}, "+0.0100 ± 0.0050", id="less is better"),
        pytest.param({"originalStandardError": None}, "-0.0100", id="an error unknown"),
    ],
)
def test_what_a_benchmark_gained_is_shown_with_its_error(detail: dict[str, Any], gain: str) -> None:
    one = {
        "task": "ours", "metric": "acc", "original": "0.5", "originalStandardError": "0.004",
        "quantized": "0.49", "quantizedStandardError": "0.003", **detail,
    }  # fmt: skip
    (row,) = benchmarks_table(
        whole_report(variants=[{"name": "Q4_0", "benchmarkDetails": [one]}])
    ).rows

    assert row.cells[5] == gain


def test_a_variant_that_was_not_timed_is_named_beside_an_original_that_was() -> None:
    variant = {"name": "TensorRT", "sizeBytes": 100}
    said = page(whole_report(variants=[variant])).text("main")[0]

    assert "Speed and memory were not measured of TensorRT." in said
    assert "16 threads" in said
    assert "not measured of" not in page(whole_report()).text("main")[0]


def test_what_was_not_measured_is_said_and_takes_no_column() -> None:
    document = page(REPORT)

    assert "Speed and memory were not measured." in document.text("main")[0]
    assert "Benchmarks: not measured." in document.text("main")[0]
    assert "speed" not in document.text("thead")[0]
    assert [one["aria-label"].partition(".")[0] for one in document.all("svg")] == [
        "Perplexity",
        "Change of perplexity in percent",
        "Mean KL divergence, nats",
        "Weights",
    ]


def test_a_student_is_shown_with_its_training_and_what_it_was_before() -> None:
    document = page(whole_report(Method.DISTILL))
    main = document.text("main")[0]
    drawn = [one["aria-label"].partition(".")[0] for one in document.all("svg")]

    assert "How it learned" in main
    assert {"Loss, nats a token", "Learning rate"} <= set(drawn)
    assert "untrained 312.40 ± 9.10" in main
    assert "perplexity 312.40 untrained, 6.33 trained (98.0 % lower)" in main
    assert "divergence from the teacher 3.91 → 0.0301 nats (99.2 % smaller)" in main


def test_a_method_that_trains_nothing_has_no_word_of_training() -> None:
    assert "How it learned" not in page(whole_report(Method.GPTQ)).text("main")[0]


def test_a_page_of_nothing_says_so() -> None:
    main = page(BARE).text("main")[0]

    for words in ("Nothing was made", "were not measured", "nothing to load", "Nothing to recomm"):
        assert words in main


def test_every_plot_is_named_and_its_numbers_stand_in_a_table_too() -> None:
    document = page(whole_report())
    cells = " ".join(document.text("table"))

    assert len(document.all("svg")) == 8
    for plot in document.all("svg"):
        assert plot["role"] == "img"
        title, _, told = plot["aria-label"].partition(". ")
        assert title
        for row in told.split("; "):
            number = re.search(r"[0-9.]+", row.partition(": ")[2])
            assert number
            assert number[0] in cells, (title, row)


def test_expected_stands_beside_measured_with_the_shortfall_in_words() -> None:
    document = page(whole_report())
    (table,) = (text for text in document.text("table") if text.startswith("Expected"))

    assert "75.0 % 80.2 % at most +3 % +15.06 % very good falls short" in table
    assert "Q2_K: the weights are 64.3 % smaller, and 75 % are usual" in document.text("li")


def test_benchmarks_show_both_values_with_their_errors() -> None:
    document = page(whole_report(Method.GPTQ))
    (table,) = (text for text in document.text("table") if text.startswith("Benchmarks"))

    assert (
        "GPTQ hellaswag acc_norm 0.7921 ± 0.0041 0.7868 ± 0.0041 -0.0053 ± 0.0058 10,042" in table
    )


def test_texts_are_marked_from_the_word_on_in_which_they_part() -> None:
    document = page(whole_report(Method.INT8))

    assert document.text("mark") == ["harbourmaster said nothing down."]
    assert "differs from token 11 on" in document.text("main")[0]
    assert "the same text" in document.text("main")[0]


def test_every_file_has_its_size_its_digest_and_a_link_into_the_folder() -> None:
    document = page(whole_report())
    (listed,) = document.text("ul")[1:2] or [""]
    links = [one["href"] for one in document.all("a")]

    assert "./llama-3-1-8b-Q2_K.gguf" in links
    assert {"./README.md", "./report.json", "./manifest.json", "./provenance.json"} <= set(links)
    files = next(text for text in document.text("ul") if "Q2_K.gguf" in text)
    assert f"llama-3-1-8b-Q2_K.gguf2.96 GiB{'9f2c41aa' * 8}" in files.replace(" ", "").replace(
        "GiB", " GiB"
    ), listed


def test_what_was_tried_until_gates_held_is_told_in_order() -> None:
    steps = [
        {"variant": "Q2_K", "inPlaceOf": "Q2_K", "gatesPassed": False, "missed": "KL 0.2 > 0.1"},
        {"variant": "Q3_K_M", "inPlaceOf": "Q2_K", "gatesPassed": True},
    ]
    document = page(whole_report(escalation=steps))
    (table,) = (text for text in document.text("table") if text.startswith("What was tried"))

    assert table.endswith("Q2_K Q2_K KL 0.2 > 0.1 Q2_K Q3_K_M hold")


def test_hostile_texts_are_shown_as_they_are_and_make_no_element() -> None:
    document = page(hostile_report())
    shown = " ".join(document.text("main"))
    kinds = {tag for tag, _ in document.elements}

    assert document.faults == []
    assert kinds & {"script", "img", "iframe", "object", "form", "b"} == set()
    assert SCRIPT[:60] in shown
    assert "{{ 7 * 7 }} {% raw %}" in shown
    assert not any(name.startswith("on") for _, one in document.elements for name in one)
    hrefs = {one["href"] for one in document.all("a")}
    assert "./javascript%3Adocument.title%3D%27run%27" in hrefs
    assert all(text[:20].strip("\x00\x1b") for text in TEXTS)


def test_the_same_report_gives_the_same_page() -> None:
    assert report_page(whole_report()) == report_page(whole_report())


def test_the_page_says_the_same_after_the_report_was_written_and_read() -> None:
    report = whole_report()
    again = RunReport.model_validate_json(report.model_dump_json(by_alias=True, exclude_none=True))

    assert report_page(again) == report_page(report)
