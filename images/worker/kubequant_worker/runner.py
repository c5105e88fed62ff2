"""The process that a run takes place in: signals in, report and exit code out.

`python -m kubequant_worker.runner PARENT-PID`, which it does not outlive.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console

from kubequant.api.contract import Failure, RunReport, RunRequest
from kubequant.api.outcome import ExitCode, FailureReason
from kubequant_worker import report_file
from kubequant_worker.errors import DISK_FULL, InterruptedRunError, WorkerError
from kubequant_worker.layout import QUIET_VARIABLE, REQUEST_VARIABLE, Layout
from kubequant_worker.parent import die_with
from kubequant_worker.progress import Progress
from kubequant_worker.record import failure_of
from kubequant_worker.redaction import Redactor
from kubequant_worker.run import Run, report_json
from kubequant_worker.sinks import LogLines, TerminalBar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_log = logging.getLogger(__name__)


def main() -> int:
    """Run the request of the environment and return the exit code."""
    die_with(int(sys.argv[1]))
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s"
    )
    for chatty in ("botocore", "boto3", "urllib3", "httpx", "huggingface_hub"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    layout = Layout.from_environment(os.environ)
    request = RunRequest.from_json(os.environ[REQUEST_VARIABLE])
    report_file.reserve(layout.report)
    stopped_by_signals()
    with _progress() as progress:
        report = answered(Run(request, layout, progress), layout)
    redactor = Redactor.of_run(layout.credentials, os.environ)
    text = redactor.clean(report_json(report).decode())
    try:
        report_file.write(layout.report, text.encode(), make_room=layout.clear)
    except OSError as error:
        said = report.failure.message if report.failure else report.outcome
        _log.error("the report could not be written (%s); it says: %s", error.strerror, said)
        return report.exit_code if error.errno in DISK_FULL else ExitCode.BUG
    return report.exit_code


def stopped_by_signals() -> None:
    """Let the next SIGTERM or SIGINT raise InterruptedRunError in the main thread, once."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)


def answered(run: Run, layout: Layout) -> RunReport:
    """Execute `run` and return its report, whether it ends well or in a foreseen way."""
    try:
        return run.execute()
    except InterruptedRunError as stop:
        return run.failed(stop.exit_code, failure_of(stop.exit_code, stop.reason, stop.message))
    except WorkerError as error:
        code = error.exit_code
        return run.failed(code, failure_of(code, error.reason, error.message, error.advice))
    except MemoryError:
        return run.failed(ExitCode.OUT_OF_MEMORY, _out_of_memory())
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        return run.failed(ExitCode.UNAVAILABLE, _disk_full(layout))


def _out_of_memory() -> Failure:
    return failure_of(
        ExitCode.OUT_OF_MEMORY,
        FailureReason.OUT_OF_MEMORY,
        "An allocation failed: the run may not use more memory",
        "Set spec.pod.resources.limits.memory to more.",
    )


def _disk_full(layout: Layout) -> Failure:
    return failure_of(
        ExitCode.UNAVAILABLE,
        FailureReason.DISK_FULL,
        f"The disk that holds {layout.scratch} is full",
        "Set spec.pod.scratch.size (in a cluster) or --work-dir (here) to a larger one.",
    )


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    # A second signal must not tear the cleaning up apart.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    raise InterruptedRunError("The run was asked to stop (SIGTERM); nothing was published")


@contextmanager
def _progress() -> Iterator[Progress]:
    if os.environ.get(QUIET_VARIABLE):
        yield Progress()
        return
    if not sys.stdout.isatty():
        yield Progress([LogLines(sys.stdout)])
        return
    with TerminalBar(Console()) as bar:
        yield Progress([bar])


def leave(code: int) -> NoReturn:
    """End the process now: a request that stalls in an uploading thread must not hold it up."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # whoever read it may be gone
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main())
