"""The commands: what a person types, and what a script reads.

The work is done elsewhere: `manifests` reads, `local` turns a manifest into a run on this machine,
the worker runs, `tables` shows. Exit codes are the worker's.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from kubequant import __version__
from kubequant.api.contract import SCHEMA_VERSION, RunReport
from kubequant.api.outcome import ExitCode
from kubequant.cli.local import LocalRunError, run_locally, select_job
from kubequant.cli.manifests import find_jobs, manifest_files
from kubequant.cli.reports import ReportError, read_report
from kubequant.cli.tables import print_comparison, print_report
from kubequant_worker.comparison import as_json as comparison_json
from kubequant_worker.comparison import compare as compared
from kubequant_worker.page import comparison_page, report_page

app = typer.Typer(
    name="kubequant",
    help="Quantize models, and prove what was lost and won: on Kubernetes, or here.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

EXIT_CODES = """
Exit codes: 0 published (or already published), 10 the manifest asks for what cannot be, 11 a gate
failed, 12 not there or no access, 20 unavailable (try again), 21 out of memory, 30 interrupted, 1 a
bug.
"""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kubequant {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Quantize models, and prove what was lost and won: on Kubernetes, or here."""


@app.command(epilog=EXIT_CODES)
def run(
    file: Annotated[Path, typer.Argument(help="The manifest, as for kubectl apply.")],
    *,
    output: Annotated[
        str | None,
        typer.Option(help="Publish here instead: a folder, file://, s3:// or pvc://."),
    ] = None,
    work_dir: Annotated[
        Path | None,
        typer.Option(help="Working space, kept afterwards (default: a temporary folder)."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Which QuantizationJob, where the file holds several.")
    ] = None,
    volume: Annotated[
        list[str] | None,
        typer.Option(help="CLAIM=FOLDER: what pvc://CLAIM/... means here. May be repeated."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole report as JSON and nothing else.")
    ] = False,
) -> None:
    """Run a QuantizationJob on this machine, without a cluster.

    Examples:

        kubequant run examples/gguf.yaml

        kubequant run job.yaml --output s3://models/test --work-dir /data/work

        kubequant run job.yaml --json | jq '.variants[].perplexity'
    """
    try:
        job, folder = select_job(file, name)
        code, report = run_locally(
            job,
            manifest_folder=folder,
            output=output,
            work_dir=work_dir,
            volumes=volume or [],
            quiet=as_json,
        )
    except LocalRunError as error:
        _complain(error.sentences)
        raise typer.Exit(ExitCode.BAD_REQUEST) from error
    try:
        _show(report, as_json=as_json)
        sys.stdout.flush()
    except (OSError, SystemExit):
        # Whoever read us, or the terminal, is gone; the exit code still says how the run ended.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise typer.Exit(code)


@app.command(epilog="Exit codes: 0 all are valid, 10 at least one is not.")
def validate(
    paths: Annotated[
        list[Path], typer.Argument(help="Manifests, or folders to search for them.", exists=True)
    ],
    *,
    local: Annotated[
        bool, typer.Option("--local", help="Allow file://, which only a local run can use.")
    ] = False,
) -> None:
    """Check QuantizationJobs as the API server would, without one.

    Other kinds of resources are passed over, so a whole GitOps folder can be checked.

    Examples:

        kubequant validate job.yaml

        kubequant validate clusters/production
    """
    files = manifest_files(paths)
    found = [job for path in files for job in find_jobs(path, local=local)]
    bad = [job for job in found if job.errors]
    for job in bad:
        _complain(list(job.errors))
    good = len(found) - len(bad)
    typer.echo(f"{good} valid, {len(bad)} not, in {len(files)} files")
    raise typer.Exit(ExitCode.BAD_REQUEST if bad else 0)


@app.command()
def report(
    place: Annotated[
        str, typer.Argument(help="The artifact: a folder, its report.json, or its s3:// prefix.")
    ],
    *,
    endpoint: Annotated[
        str, typer.Option(help="The S3 server's address (default: AWS, or AWS_ENDPOINT_URL).")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    as_html: Annotated[
        bool, typer.Option("--html", help="Print the page report.html, made again of the report.")
    ] = False,
) -> None:
    """Show what was measured of a published artifact.

    Examples:

        kubequant report out/tiny-llama/9f2c41aa

        kubequant report s3://models/llama-3.1-8b/llama-3-1-8b/9f2c41aa

        kubequant report --html s3://models/llama-3.1-8b/llama-3-1-8b/9f2c41aa > report.html
    """
    if as_json and as_html:
        _complain(["--json and --html both say what to print; leave one out"])
        raise typer.Exit(ExitCode.BAD_REQUEST)
    found = _read(place, endpoint)
    if as_html:
        sys.stdout.buffer.write(report_page(found))
    else:
        _show(found, as_json=as_json)


@app.command()
def compare(
    places: Annotated[
        list[str], typer.Argument(help="Artifacts: folders, report.json files, s3:// prefixes.")
    ],
    *,
    endpoint: Annotated[
        str, typer.Option(help="The S3 server's address (default: AWS, or AWS_ENDPOINT_URL).")
    ] = "",
    html: Annotated[
        Path | None, typer.Option(help="Write a page with size plotted against quality here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Lay the variants of several artifacts side by side, and mark the best trade-offs.

    What differs so that numbers do not compare (the original, the text) is said first.

    Examples:

        kubequant compare out/tiny-llama/9f2c41aa out/tiny-llama/0d11be52

        kubequant compare s3://models/gptq/9f2c41aa s3://models/awq/77ab0c11 --html compare.html
    """
    comparison = compared([(place, _read(place, endpoint)) for place in places])
    if html is not None:
        _write(html, comparison_page(comparison))
    if as_json:
        typer.echo(json.dumps(comparison_json(comparison), indent=2))
    else:
        print_comparison(comparison, Console())


def _read(place: str, endpoint: str) -> RunReport:
    """Return the report at a place, and say where it is newer than this program."""
    try:
        found = read_report(place, endpoint)
    except ReportError as error:
        _complain([error.message])
        raise typer.Exit(error.exit_code) from error
    if found.schema_version > SCHEMA_VERSION:
        newer = f"the report is of version {found.schema_version}, this program knows"
        _complain([f"{place}: {newer} {SCHEMA_VERSION}; what is new in it is not shown"])
    return found


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        _complain([f"--html {path}: {error.strerror}; name a file in a folder that is there"])
        raise typer.Exit(ExitCode.BAD_REQUEST) from error
    typer.echo(f"wrote {path}", err=True)


def _show(report: RunReport, *, as_json: bool) -> None:
    if as_json:
        typer.echo(report.model_dump_json(by_alias=True, exclude_none=True, indent=2))
    else:
        print_report(report, Console())


def _complain(sentences: list[str]) -> None:
    for sentence in sentences:
        typer.echo(f"kubequant: {sentence}", err=True)


def main() -> None:
    """Run the command that was typed."""
    app(prog_name="kubequant", args=sys.argv[1:])
