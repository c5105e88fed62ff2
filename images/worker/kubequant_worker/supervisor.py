"""Runs the run in a process of its own, and answers for it whatever happens to it.

Engines abort (`GGML_ASSERT`), the kernel kills what outgrew its memory, and a native call blocks
Python's signal handlers for minutes. The supervisor is a small process that does none of the work,
so it is still there then: it passes SIGTERM on and kills after a grace period, and it writes the
termination message in every case. Where it is killed itself, the run dies with it.
"""

from __future__ import annotations

import collections
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kubequant.api.contract import LIMIT_BYTES, RunReport, RunRequest, encode_termination
from kubequant.api.outcome import ExitCode, FailureReason
from kubequant_worker import report_file
from kubequant_worker.layout import QUIET_VARIABLE, REQUEST_VARIABLE, Layout
from kubequant_worker.record import failed_report
from kubequant_worker.redaction import Redactor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

# A pod has 30 seconds by default, of which the kubelet and the runtime take some; the issue asks
# for ten.
GRACE_SECONDS = 7.0
# SIGHUP comes when the terminal is closed.
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SHOW_CURSOR = "\x1b[?25h"
LAST_LINES = 20
LAST_CHARACTERS = 800
# With these a run ends by itself, so only its report's way was barred. Python itself exits with 1.
UNREPORTED = frozenset(ExitCode) - {ExitCode.PUBLISHED, ExitCode.BUG}
CGROUP_OOM_COUNTERS = (
    Path("/sys/fs/cgroup/memory.events"),
    Path("/sys/fs/cgroup/memory/memory.oom_control"),
)


def supervise(
    request: RunRequest, layout: Layout, *, forward: Callable[[str], None], quiet: bool = False
) -> tuple[ExitCode, RunReport]:
    """Run `request` in a child process and return its exit code and report, always.

    `forward` gets each line that the child writes to its standard error, secrets replaced. The
    child's standard output is ours, so that its progress bar finds a terminal where there is one;
    `quiet` leaves the progress out.
    """
    layout.scratch.mkdir(parents=True, exist_ok=True)
    redactor = Redactor.of_run(layout.credentials, os.environ)
    with ExitStack() as opened:
        try:
            lock = opened.enter_context(layout.alone())
        except BlockingIOError:
            report = _refused(request, layout)
        else:
            report = _run(request, layout, lock, redactor, forward, quiet=quiet)
    write_termination(layout.termination_log, redactor.clean(encode_termination(report)))
    return ExitCode(report.exit_code), report


def _run(
    request: RunRequest,
    layout: Layout,
    lock: tuple[int, ...],
    redactor: Redactor,
    forward: Callable[[str], None],
    *,
    quiet: bool,
) -> RunReport:
    """Run `request` in a child process, which holds `lock` too, and return its report."""
    layout.report.unlink(missing_ok=True)
    environment = {
        **os.environ,
        **layout.environment(),
        REQUEST_VARIABLE: request.model_dump_json(by_alias=True, exclude_none=True),
        QUIET_VARIABLE: "1" if quiet else "",
        "PYTHONUNBUFFERED": "1",
    }
    kills_before = oom_kills()
    child = subprocess.Popen(
        # -P keeps the working directory, which may be a model's, out of the import path.
        [sys.executable, "-P", "-m", "kubequant_worker.runner", str(os.getpid())],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
        pass_fds=lock,
    )
    lines: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
    reader = threading.Thread(target=_forward, args=(child, redactor, lines, forward), daemon=True)
    reader.start()
    with _signals_passed_on(child) as interrupted:
        status = child.wait()
    _kill_group(child.pid)
    reader.join(timeout=2)
    if not quiet:
        _show_cursor()
    report = report_file.read(layout.report)
    if report is not None:
        return report
    return _report_for(
        request,
        status,
        interrupted=interrupted(),
        oom_killed=oom_kills() > kills_before,
        written=layout.report.exists(),
        last_lines=list(lines),
    )


def _refused(request: RunRequest, layout: Layout) -> RunReport:
    """Return the report of a run that found another one in its scratch folder."""
    return failed_report(
        request,
        ExitCode.UNAVAILABLE,
        FailureReason.ANOTHER_PUBLISHER,
        f"Another run of this manifest works in {layout.scratch}.",
        advice="Wait for its end, or let this one work elsewhere (--work-dir).",
    )


def _forward(
    child: subprocess.Popen[str],
    redactor: Redactor,
    lines: collections.deque[str],
    forward: Callable[[str], None],
) -> None:
    for raw in child.stderr or ():
        line = redactor.clean(raw.rstrip("\n"))
        lines.append(line)
        # The child must not be held up because nobody can keep what it says.
        with suppress(OSError):
            forward(line)


@contextmanager
def _signals_passed_on(child: subprocess.Popen[str]) -> Iterator[Callable[[], bool]]:
    """Pass on what asks to end as SIGTERM, and kill `child`'s group after the grace period.

    What the user let us ignore (`nohup`, a script's `&`) stays ignored.
    """
    state = {"interrupted": False}

    def kill_later() -> None:
        deadline = time.monotonic() + GRACE_SECONDS
        while child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        _kill_group(child.pid)

    def pass_on(_number: int, _frame: FrameType | None) -> None:
        if not state["interrupted"]:
            state["interrupted"] = True
            child.terminate()
            threading.Thread(target=kill_later, daemon=True).start()

    before = {
        number: signal.signal(number, pass_on)
        for number in ENDING
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield lambda: state["interrupted"]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show_cursor() -> None:
    """Show the terminal's cursor: a run that was killed beside its progress bar left it hidden."""
    with suppress(OSError):
        if sys.stdout.isatty():
            sys.stdout.write(SHOW_CURSOR)
            sys.stdout.flush()


def _kill_group(leader: int) -> None:
    """Kill what is left of the child's session: converters and the like must not outlive it."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


def _report_for(
    request: RunRequest,
    status: int,
    *,
    interrupted: bool,
    oom_killed: bool,
    written: bool,
    last_lines: list[str],
) -> RunReport:
    """Return the report of a run that left none, from how its process ended.

    `written` says that it left one which cannot be read.
    """
    peak_bytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    # The end of a traceback says most, and a report's message is short.
    said = "\n".join(last_lines)[-LAST_CHARACTERS:]
    if interrupted:
        return failed_report(
            request,
            ExitCode.INTERRUPTED,
            FailureReason.INTERRUPTED,
            "The run was asked to stop (SIGTERM) and was ended before it could finish its step.",
        )
    if status == -signal.SIGKILL:
        sure = "" if oom_killed else ", most likely"
        return failed_report(
            request,
            ExitCode.OUT_OF_MEMORY,
            FailureReason.OUT_OF_MEMORY,
            f"The run was killed{sure} by the kernel for lack of memory; "
            f"at its peak it held {peak_bytes} bytes.",
            advice="Ask for more memory in spec.pod.resources, or for a smaller model.",
        )
    if status < 0:
        return failed_report(
            request,
            ExitCode.BUG,
            FailureReason.INTERNAL_ERROR,
            f"The run died of {signal.Signals(-status).name}. Its last lines:\n{said}",
        )
    if status in UNREPORTED and not written:
        return failed_report(
            request,
            ExitCode(status),
            FailureReason.DISK_FULL,
            f"The run ended, and its report could not be written. Its last lines:\n{said}",
            advice="Set spec.pod.scratch.size (in a cluster) or --work-dir (here) to a larger one.",
        )
    left = "a report that cannot be read" if written else "no report"
    return failed_report(
        request,
        ExitCode.BUG,
        FailureReason.INTERNAL_ERROR,
        f"The run ended with exit code {status} and {left}. Its last lines:\n{said}",
    )


def oom_kills() -> int:
    """Return how often the kernel killed in this container for memory, 0 where it does not say."""
    for path in CGROUP_OOM_COUNTERS:
        if path.is_file():
            for line in path.read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill" and count.isdigit():
                    return int(count)
    return 0


def write_termination(path: Path, message: str) -> None:
    """Leave the short report where the kubelet reads it; on a laptop the folder may not exist.

    A full disk only costs the message: the exit code and the log still say how the run ended.
    """
    if path.parent.is_dir():
        with suppress(OSError):
            path.write_bytes(message.encode()[:LIMIT_BYTES])
