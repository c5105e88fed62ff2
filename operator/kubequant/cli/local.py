"""Turns a manifest into a run on this machine: the same request and worker, other folders."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kubequant.api.auto import resolve
from kubequant.api.base import LOCAL
from kubequant.api.contract import RunReport, RunRequest
from kubequant.api.digest import run_digest
from kubequant.api.problems import InvalidInputError, parse
from kubequant.api.resource import QuantizationJob
from kubequant.cli.manifests import find_jobs
from kubequant_worker.layout import Layout
from kubequant_worker.supervisor import supervise

if TYPE_CHECKING:
    from kubequant.api.outcome import ExitCode

FILE_SCHEME = "file://"
DEFAULT_NAMESPACE = "default"


class LocalRunError(Exception):
    """The manifest or the command's own words cannot be run; `sentences` say why."""

    def __init__(self, *sentences: str) -> None:
        """Keep one sentence a problem."""
        super().__init__("; ".join(sentences))
        self.sentences = list(sentences)


def select_job(file: Path, name: str | None) -> tuple[QuantizationJob, Path]:
    """Return the QuantizationJob in `file` called `name` (or the only one), and its folder."""
    try:
        is_file = file.is_file()
    except OSError as error:
        raise LocalRunError(f"{file}: cannot be read: {error.strerror}") from error
    if not is_file:
        raise LocalRunError(f"{file}: there is no such file")
    jobs = find_jobs(file, local=True)
    # What cannot be read has no name, and may be the one that was asked for.
    found = [job for job in jobs if name in (None, job.name)] or [
        job for job in jobs if not job.name
    ]
    if not found:
        which = f" named {name!r}" if name else ""
        raise LocalRunError(f"{file}: holds no QuantizationJob{which}")
    if len(found) > 1:
        names = ", ".join(job.name for job in found)
        raise LocalRunError(f"{file}: holds several QuantizationJobs ({names}); choose with --name")
    job = found[0]
    if job.job is None:
        raise LocalRunError(*job.errors)
    return job.job, file.resolve().parent


def run_locally(
    job: QuantizationJob,
    *,
    manifest_folder: Path,
    output: str | None,
    work_dir: Path | None,
    volumes: list[str],
    quiet: bool,
) -> tuple[ExitCode, RunReport]:
    """Run `job` on this machine and return the worker's exit code and report.

    Relative `file://` paths are taken from `manifest_folder`; `output` (relative to the current
    folder) replaces the manifest's. Without `work_dir` the working space is a temporary folder that
    is removed afterwards.
    """
    document = job.model_dump(by_alias=True, mode="json", exclude_none=True, exclude_unset=True)
    if output is not None:
        document["spec"]["output"] = _elsewhere(document["spec"]["output"], output)
    document["spec"] = _absolute(document["spec"], manifest_folder)
    try:
        job = parse(QuantizationJob, document, local=True)
    except InvalidInputError as error:
        raise LocalRunError(*(str(problem) for problem in error.problems)) from error
    resolution = resolve(job.spec)
    request = RunRequest.model_validate(
        {
            "namespace": job.metadata.namespace or DEFAULT_NAMESPACE,
            "name": job.metadata.name,
            "digest": run_digest(job.spec),
            "spec": resolution.spec,
            "reason": resolution.reason,
        },
        context=LOCAL,
    )
    if work_dir is not None:
        return _supervised(request, work_dir.resolve(), volumes, quiet=quiet)
    with tempfile.TemporaryDirectory(prefix="kubequant-") as temporary:
        return _supervised(request, Path(temporary), volumes, quiet=quiet)


def _elsewhere(place: dict[str, Any], output: str) -> dict[str, Any]:
    """Return `spec.output` for another address; how S3 is reached serves no other kind of place."""
    path = output.removeprefix(FILE_SCHEME)
    uri = path if "://" in path else f"{FILE_SCHEME}{Path(path).resolve()}"
    kept = place if uri.startswith("s3://") else {}
    return {**kept, "uri": uri}


def _supervised(
    request: RunRequest, work: Path, volumes: list[str], *, quiet: bool
) -> tuple[ExitCode, RunReport]:
    scratch = work / f"{request.name}-{request.digest}"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        if not os.access(scratch, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(scratch))
        layout = Layout(
            scratch=scratch,
            cache=None,
            credentials=work / "credentials",
            volumes=_volumes(work / "volumes", volumes),
            termination_log=scratch / "termination-log",
        )
        log = (work / "worker.log").open("a", encoding="utf-8") if quiet else None
    except OSError as error:
        raise LocalRunError(_unusable(work, error)) from error
    try:
        return supervise(
            request,
            layout,
            forward=lambda line: print(line, file=log or sys.stderr),
            quiet=quiet,
        )
    finally:
        if log is not None:
            # A full disk costs lines of the log, not the report.
            with suppress(OSError):
                log.close()


def _unusable(folder: Path, error: OSError) -> str:
    return (
        f"--work-dir: {error.filename or folder}: {error.strerror}; name a folder that you may "
        "write to, or one that is still to be made"
    )


def _volumes(root: Path, words: list[str]) -> Path:
    """Make `root` look as a pod's volumes do: one link a claim."""
    root.mkdir(parents=True, exist_ok=True)
    for word in words:
        claim, equals, folder = word.partition("=")
        if not equals or not claim or not Path(folder).is_dir():
            raise LocalRunError(f"--volume {word!r}: write CLAIM=FOLDER, and let FOLDER exist")
        link = root / claim
        link.unlink(missing_ok=True)
        link.symlink_to(Path(folder).resolve())
    return root


def _absolute(value: Any, folder: Path) -> Any:
    """Return `value` with each relative `file://` path made absolute from `folder`."""
    if isinstance(value, dict):
        return {key: _absolute(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [_absolute(item, folder) for item in value]
    if isinstance(value, str) and value.startswith(FILE_SCHEME):
        path = value.removeprefix(FILE_SCHEME)
        return FILE_SCHEME + os.path.normpath(folder / path)
    return value
