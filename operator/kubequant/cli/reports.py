"""Reads a published report back: from a folder, a file, or an S3 prefix."""

from __future__ import annotations

from pathlib import Path

from kubequant.api.contract import RunReport
from kubequant.api.data import OutputS3Options
from kubequant.api.outcome import ExitCode
from kubequant.api.problems import InvalidInputError, parse_json
from kubequant_worker.errors import WorkerError
from kubequant_worker.stores import Place, open_artifact

REPORT_NAME = "report.json"
S3_SCHEME = "s3://"


class ReportError(Exception):
    """There is no report to show; `message` says why."""

    def __init__(self, message: str, exit_code: ExitCode = ExitCode.ACCESS) -> None:
        """Keep the sentence and the exit code that goes with it."""
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


def read_report(place: str, endpoint: str = "") -> RunReport:
    """Return the report at `place`: an artifact's folder, its report.json, or its s3:// prefix.

    `endpoint` is the S3 server's address, empty for AWS or what the environment says.
    """
    content = _from_s3(place, endpoint) if place.startswith(S3_SCHEME) else _from_folder(place)
    try:
        return parse_json(RunReport, content, local=True, tolerant=True)
    except InvalidInputError as error:
        problem = error.problems[0]
        raise ReportError(f"{place}: this is no report of kubequant: {problem}") from error


def _from_folder(place: str) -> bytes:
    path = Path(place.removeprefix("file://"))
    try:
        path = path / REPORT_NAME if path.is_dir() else path
        if path.is_file():
            return path.read_bytes()
    except OSError as error:
        raise ReportError(f"{path}: cannot be read: {error.strerror}") from error
    raise ReportError(f"{path}: there is no report here; name the folder of an artifact")


def _from_s3(place: str, endpoint: str) -> bytes:
    prefix = place.removesuffix(REPORT_NAME).rstrip("/")
    options = OutputS3Options(endpoint=endpoint) if endpoint else None
    try:
        store = open_artifact(Place(prefix, options, field="the address"))
        content = store.read(REPORT_NAME)
    except WorkerError as error:
        raise ReportError(error.message, error.exit_code) from error
    if content is None:
        raise ReportError(f"{prefix}/: there is no {REPORT_NAME} here; name an artifact's prefix")
    return content
