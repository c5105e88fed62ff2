"""What a report looks like on a terminal."""

from __future__ import annotations

import io

from rich.console import Console

from kubequant.api.contract import ExitCode, Failure, FailureReason, Outcome, RunReport
from kubequant.cli.tables import print_report


def shown(report: RunReport) -> str:
    written = io.StringIO()
    print_report(report, Console(file=written, width=200))
    return written.getvalue()


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
