"""`kubequant report` and `kubequant compare`: reports of any version, on a terminal, as pages."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.nobody import as_nobody, open_folder
from tests.page.reports import whole_report
from typer.testing import CliRunner, Result

from kubequant.api.contract import SCHEMA_VERSION, RunReport
from kubequant.api.enums import Method
from kubequant.cli.app import app
from kubequant.cli.tables import print_comparison, print_report
from kubequant_worker.comparison import compare
from kubequant_worker.page import report_page

VERSION_1 = Path(__file__).parent / "report-version-1.json"


def kubequant(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "160"})


def artifact(folder: Path, report: RunReport, **changes: Any) -> Path:
    """Write an artifact's folder as far as its report."""
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps({**report.to_json(), **changes}))
    return folder


def shown(report: RunReport) -> str:
    written = io.StringIO()
    print_report(report, Console(file=written, width=200))
    return written.getvalue()


def test_a_terminal_shows_speed_benchmarks_gates_and_what_to_do_next() -> None:
    text = shown(whole_report())

    for words in (
        "│ Q4_K_M * │     71.0 │  1.86\N{MULTIPLICATION SIGN} │",
        "Q2_K !",
        "! a gate does not hold",
        "* recommended",
        "PerplexityIncreasePercent │ at most 2.0 % │ +15.06 ± 0.06 % │ does not hold",
        "hellaswag │ acc_norm │ 0.7921 ± 0.0041 │ 0.7868 ± 0.0041 │ -0.0053 ± 0.0058 │",
        "next: Calibrate with text of your own domain.",
        "note: Q2_K: the weights are 64.3 % smaller",
        "load it: llama-server -m llama-3-1-8b-Q4_K_M.gguf",
    ):
        assert words in text


def test_what_was_not_measured_takes_no_room_on_a_terminal() -> None:
    variants = [{"name": "Q4_0", "sizeBytes": 1_000_000}]
    text = shown(whole_report(variants=variants, original={}, gates=[], recommended=""))

    assert "Q4_0" in text
    assert not any(
        words in text for words in ("perplexity", "tokens/s", "Gates", "Benchmarks", "smaller")
    )


def test_a_report_of_the_first_version_is_read_shown_and_made_a_page_of() -> None:
    told = kubequant("report", VERSION_1)
    page = kubequant("report", "--html", VERSION_1)

    assert "schemaVersion" not in VERSION_1.read_text()
    assert told.exit_code == page.exit_code == 0
    assert "6.38" in told.stdout
    assert "<h1>llama-3-1-8b</h1>" in page.stdout


def test_a_report_of_a_later_version_is_read_and_said_to_be_newer(tmp_path: Path) -> None:
    folder = artifact(
        tmp_path / "a", whole_report(), schemaVersion=SCHEMA_VERSION + 1, somethingNew={"x": 1}
    )

    told = kubequant("report", folder)

    assert told.exit_code == 0
    assert "Q4_K_M" in told.stdout
    assert f"of version {SCHEMA_VERSION + 1}, this program knows {SCHEMA_VERSION}" in told.stderr


def test_the_page_is_printed_and_is_the_artifacts_own(tmp_path: Path) -> None:
    told = kubequant("report", artifact(tmp_path / "a", whole_report()), "--html")

    assert told.stdout_bytes == report_page(whole_report())


def test_a_page_and_json_at_once_are_refused(tmp_path: Path) -> None:
    told = kubequant("report", artifact(tmp_path / "a", whole_report()), "--html", "--json")

    assert told.exit_code == 10
    assert "--json and --html both say what to print" in told.stderr


def test_several_artifacts_are_laid_side_by_side(tmp_path: Path) -> None:
    gguf = artifact(tmp_path / "gguf", whole_report())
    awq = artifact(tmp_path / "awq", whole_report(Method.AWQ))

    told = kubequant("compare", gguf, awq, "--html", tmp_path / "compare.html")
    as_json = json.loads(kubequant("compare", gguf, awq, "--json").stdout)

    assert told.exit_code == 0
    assert "│ C *" in told.stdout
    assert "│ E  " in told.stdout
    assert f"A, B, C, D: {gguf}" in told.stdout
    assert "speed does not compare" in told.stdout
    assert "<svg" in (tmp_path / "compare.html").read_text()
    assert [row["optimal"] for row in as_json["rows"]] == [True] * 4 + [False]
    assert as_json["warnings"][0].startswith(f"{gguf} and {awq}: ")


def test_the_tables_of_a_report_fit_a_terminal_of_eighty_columns() -> None:
    written = io.StringIO()
    variants = [{**one, "benchmarkDetails": []} for one in whole_report().to_json()["variants"]]
    report = whole_report(variants=variants, gates=[])
    print_report(report, Console(file=written, width=80))
    text = written.getvalue()

    assert max(len(line) for line in text.splitlines() if line[0] in "┏┃│") <= 80
    assert "…" not in text
    assert "94.9 %" in text


def test_a_comparison_fits_a_terminal_of_eighty_columns() -> None:
    written = io.StringIO()
    compared = compare([("a", whole_report()), ("b", whole_report(Method.AWQ))])
    print_comparison(compared, Console(file=written, width=80))

    assert max(len(line) for line in written.getvalue().splitlines()) <= 80
    assert "4.58 GiB" in written.getvalue()
    assert "0.0214" in written.getvalue()


@pytest.mark.parametrize("command", ["report", "compare"])
def test_what_is_not_there_is_said_with_the_exit_code_of_access(
    command: str, tmp_path: Path
) -> None:
    told = kubequant(command, tmp_path)

    assert told.exit_code == 12
    assert "there is no report here" in told.stderr


def test_a_page_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "a", whole_report())
    target = tmp_path / "nowhere" / "a.html"

    told = kubequant("compare", folder, "--html", target)

    assert told.exit_code == 10
    assert f"--html {target}: No such file" in told.stderr


@pytest.mark.parametrize("closed", ["report.json", "."])
def test_a_report_that_may_not_be_read_is_said(closed: str) -> None:
    with open_folder() as folder:
        place = artifact(folder / "a", whole_report())
        kubequant("report", place)
        (place / closed).chmod(0)
        with as_nobody():
            told = kubequant("report", place)
        (place / closed).chmod(0o700)

    assert told.exit_code == 12
    assert "cannot be read: Permission denied" in told.stderr
