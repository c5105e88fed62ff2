"""What a report looks like on a terminal."""

from __future__ import annotations

import io

from rich.console import Console

from kubequant.api.contract import Failure, RunReport
from kubequant.api.outcome import ExitCode, FailureReason, Outcome
from kubequant.cli.tables import print_report


def shown(report: RunReport) -> str:
    written = io.StringIO()
    print_report(report, Console(file=written, width=200))
    return written.getvalue()


def measured(**changes: object) -> RunReport:
    content = {
        "digest": "9f2c41aa",
        "name": "tiny",
        "outcome": "Published",
        "exitCode": 0,
        "original": {"sizeBytes": 2**23, "tokensPerSecond": "40.25", "peakMemoryBytes": 2**26},
        "variants": [
            {
                "name": "Q8_0",
                "sizeBytes": 2**22,
                "tokensPerSecond": "60.5",
                "speedup": "1.503",
                "peakMemoryBytes": 2**25,
                "benchmarks": [
                    {"task": "words", "metric": "acc", "original": "0.5", "quantized": "0.4375"}
                ],
            }
        ],
        **changes,
    }
    return RunReport.model_validate(content)


def test_speed_and_memory_stand_beside_the_size() -> None:
    text = shown(measured())

    assert "tokens/s" in text
    assert "40.2 │        │ 64.0 MiB" in text
    assert "60.5 │  1.50\N{MULTIPLICATION SIGN} │ 32.0 MiB" in text


def test_a_student_stands_below_what_it_was_before_it_learned() -> None:
    untrained = {"perplexity": "312.4", "perplexityReductionPercent": "91.3"}
    learned = {"steps": 300, "tokens": 307_200, "untrained": untrained}
    variant = {"name": "Distill", "perplexity": "27.2", "distillationDetail": learned}
    text = shown(measured(variants=[variant]))

    lines = [line.split("│")[1].strip() for line in text.splitlines() if "│" in line]
    assert lines[:3] == ["original", "untrained", "Distill"]
    assert "312.40 untrained, 27.20 trained (91.3 % lower)" in text


def test_what_was_not_timed_has_no_column() -> None:
    text = shown(measured(original={"sizeBytes": 2**23}, variants=[{"name": "Q8_0"}]))

    assert "tokens/s" not in text
    assert "benchmarks" not in text


def test_benchmarks_have_a_table_of_their_own() -> None:
    (line,) = [line for line in shown(measured()).splitlines() if "words" in line]

    assert [cell.strip() for cell in line.strip("│").split("│")] == [
        "Q8_0", "words", "acc", "0.5000", "0.4375", "-0.0625",
    ]  # fmt: skip


def test_a_failed_run_says_what_would_do_better() -> None:
    failure = {"reason": "GateFailed", "message": "it does not hold", "exitCode": 11}
    text = shown(
        measured(outcome="Failed", exitCode=11, failure=failure, recommendations=["Make Q5_K_M."])
    )

    assert text.rstrip().endswith("GateFailed: it does not hold\nnext: Make Q5_K_M.")


def test_square_brackets_of_a_message_are_shown_as_they_are() -> None:
    # To the library that prints, "[/]" and "[red]" are its own.
    words = "gates[0].max: [red] is no number [/]"
    report = RunReport(
        digest="9f2c41aa",
        outcome=Outcome.FAILED,
        exit_code=ExitCode.BAD_REQUEST,
        warnings=("evaluation.generations.prompts[3] is empty",),
        failure=Failure(
            reason=FailureReason.INVALID_SPEC,
            message=words,
            advice="see spec.gates[0]",
            exit_code=10,
        ),
    )

    text = shown(report)

    assert words in text
    assert "see spec.gates[0]" in text
    assert "prompts[3] is empty" in text
