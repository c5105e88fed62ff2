"""A library in a Python of its own, run there as a program.

Some libraries want packages that exclude the worker's. An image then holds a second Python, and
what is asked of the library goes there as JSON, and comes back as lines of JSON through a pipe of
its own, since libraries write what they like to the others. The other half is `foreign_program`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kubequant_worker.closing import Closing
from kubequant_worker.errors import MemoryExhaustedError
from kubequant_worker.methods.child import (
    WORKING_FOLDER,
    ChildFailedError,
    child_environment,
    last_lines,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

PROGRAM: Final = Path(__file__).with_name("foreign_program.py")
_OURS: Final = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
# Looks for a library without importing it, which takes long.
_FINDS: Final = (
    "import sys; from importlib.util import find_spec; sys.exit(find_spec(sys.argv[1]) is None)"
)


class RefusedError(Exception):
    """The library does not do what was asked; the message are its own words."""


def said(python: str, code: str, *words: str, environment: Mapping[str, str]) -> str | None:
    """Return what a Python prints for `code`, None where it is not there or the code fails."""
    try:
        done = subprocess.run(
            [python, "-P", "-c", code, *words],
            cwd=WORKING_FOLDER,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return None if done.returncode else done.stdout


def holds(python: str, library: str, environment: Mapping[str, str]) -> bool:
    """Say whether a Python is there and holds a library."""
    return said(python, _FINDS, library, environment=environment) is not None


def foreign_environment(*, gpus: bool, **settings: str) -> dict[str, str]:
    """Return the environment of another Python: without secrets, and nothing of our Python's."""
    found = child_environment(os.cpu_count() or 1, os.environ, gpus=gpus, online=False)
    for name in _OURS:
        found.pop(name, None)
    return {**found, **settings}


class ForeignProgram(Closing):
    """One library, one operation after another. A context manager: what runs ends with it."""

    def __init__(
        self,
        name: str,
        operations: Path,
        python: str,
        scratch: Path,
        environment: Mapping[str, str],
    ) -> None:
        """Run `operations`, a file, by `python`; `name` is the library's for people."""
        self._name = name
        self._operations = operations
        self._python = python
        self._scratch = scratch
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def run(
        self,
        job: Mapping[str, Any],
        on_step: Callable[[int], None] = lambda _: None,
        *,
        seconds: float = threading.TIMEOUT_MAX,
    ) -> dict[str, Any]:
        """Carry out one operation, `job["operation"]`, in `seconds` at most; return its result.

        Raises:
            RefusedError: The library does not do it.
            MemoryExhaustedError: The kernel killed it.
            ChildFailedError: Anything else, with its last lines.
        """
        reading, writing = os.pipe()
        path = self._scratch / f"{self._operations.stem}.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        words = [str(PROGRAM), str(writing), str(os.getpid()), str(path), str(self._operations)]
        with tempfile.TemporaryFile() as log, os.fdopen(reading, encoding="utf-8") as lines:
            try:
                self._process = subprocess.Popen(
                    [self._python, "-P", *words],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=WORKING_FOLDER,
                    env=self._environment,
                    pass_fds=(writing,),
                )
            finally:
                os.close(writing)
            result: dict[str, Any] | None = None
            with _killed_after(seconds, self._process) as late:
                for kind, value in _messages(lines):
                    if kind == "step":
                        on_step(value)
                    elif kind == "refused":
                        raise RefusedError(value)
                    else:
                        result = value
                code = self._process.wait()
            if late.is_set():
                raise ChildFailedError(f"{self._name} did not answer within {seconds:.0f} seconds")
            if result is None or code:
                raise self._failure(code, last_lines(log))
            return result

    def _failure(self, code: int, tail: str) -> Exception:
        if code == -signal.SIGKILL:
            return MemoryExhaustedError(
                f"{self._name} was killed by the kernel, most likely because the memory limit was "
                "reached",
                advice="give the pod more memory (spec.pod.resources.limits.memory)",
            )
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return ChildFailedError(f"{self._name} ended {how}; its last lines:\n{tail}")

    def close(self) -> None:
        """Kill what runs and wait for it; a second call does nothing."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def _killed_after(seconds: float, process: subprocess.Popen[bytes]) -> Iterator[threading.Event]:
    """Kill a process that takes longer; what is given is set then."""
    late = threading.Event()

    def kill() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(seconds, kill)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


def _messages(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    """Yield what the program says, until it says no more."""
    for line in lines:
        message = json.loads(line)
        yield str(message["kind"]), message["value"]
