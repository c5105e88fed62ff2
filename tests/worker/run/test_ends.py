"""How `kubequant run` ends when it is told to, killed, or left alone by whoever read it."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tests.worker.run.manifests import command, environment, files_below, kubequant, manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

QUICK = {"skip": ["Generations", "Performance", "Perplexity"]}
LONG = {"skip": ["Generations", "Performance"], "perplexity": {"maxTokens": 65536}}
# Whoever runs the tests in the background may have them, and what they start, ignore these.
HEARING = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""


class Started:
    """A `kubequant run` in the background, its output in files."""

    def __init__(self, folder: Path, *words: str | Path, stdout: int | None = None) -> None:
        """Start what `words` say."""
        self.out, self.err = folder / "stdout", folder / "stderr"
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-c", HEARING, *map(str, words)],
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=out if stdout is None else stdout,
                stderr=err,
            )
        self.family: list[psutil.Process] = []

    def wait_for(self, what: Callable[[], bool]) -> None:
        """Wait until something is so, and note who works by then."""
        deadline = time.monotonic() + 120
        while not what():
            assert time.monotonic() < deadline, self.err.read_text()
            assert self.process.poll() is None, self.err.read_text()
            time.sleep(0.02)
        self.family = psutil.Process(self.process.pid).children(recursive=True)

    def wait_for_stage(self, name: str) -> None:
        self.wait_for(lambda: f'"stage": "{name}"' in self.out.read_text())

    def runner(self) -> psutil.Process:
        """The process that the run takes place in."""
        return next(p for p in self.family if "kubequant_worker.runner" in p.cmdline())

    def left(self) -> list[psutil.Process]:
        """Who of the family still lives."""
        return [p for p in self.family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    def kill(self) -> None:
        for process in self.left():
            process.kill()
        self.process.kill()
        self.process.wait(timeout=10)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    made: list[Started] = []

    def begin(*words: str | Path, **settings: Any) -> Started:
        made.append(Started(tmp_path, *words, **settings))
        return made[-1]

    yield begin
    for one in made:
        one.kill()


def quick(folder: Path, **spec: Any) -> Path:
    return manifest(folder, **{"gguf": {"types": ["Q4_0"]}, "evaluation": QUICK, **spec})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_run_ends_with_its_terminal_and_by_ctrl_c(
    start: Callable[..., Started], tmp_path: Path, number: signal.Signals
) -> None:
    run = start(*command("run", quick(tmp_path, evaluation=LONG)))
    run.wait_for_stage("Measuring")

    run.process.send_signal(number)

    assert run.process.wait(timeout=10) == 30, run.err.read_text()
    assert "Interrupted" in run.out.read_text()
    assert run.left() == []
    assert files_below(tmp_path / "out") == {}


def test_a_run_under_nohup_goes_on_without_its_terminal(
    start: Callable[..., Started], tmp_path: Path
) -> None:
    run = start("nohup", *command("run", quick(tmp_path)))
    run.wait_for_stage("Measuring")

    run.process.send_signal(signal.SIGHUP)

    assert run.process.wait(timeout=120) == 0, run.err.read_text()


def test_nothing_of_a_run_outlives_the_command_that_was_killed_and_a_second_run_goes_on(
    start: Callable[..., Started], tmp_path: Path
) -> None:
    path = quick(tmp_path)
    run = start(*command("run", path, "--work-dir", tmp_path / "work"))
    run.wait_for_stage("Measuring")

    run.process.kill()

    run.process.wait(timeout=10)
    gone, alive = psutil.wait_procs(run.family, timeout=10)
    assert (len(gone), alive) == (len(run.family), [])
    again = kubequant("run", path, "--work-dir", tmp_path / "work", "--json")
    assert again.code == 0, again.err


def test_a_second_run_in_the_same_working_space_is_refused_and_takes_nothing_away(
    start: Callable[..., Started], tmp_path: Path
) -> None:
    path = quick(tmp_path)
    words = command("run", path, "--work-dir", tmp_path / "work")
    run = start(*words)
    run.wait_for_stage("Measuring")
    run.runner().suspend()
    before = set(files_below(tmp_path / "work"))

    second = kubequant("run", path, "--work-dir", tmp_path / "work", "--json")

    assert second.code == 20, second.err
    assert second.report["failure"]["reason"] == "AnotherPublisher"
    assert str(tmp_path / "work") in second.report["failure"]["message"]
    assert "--work-dir" in second.report["failure"]["advice"]
    assert before <= set(files_below(tmp_path / "work"))
    run.runner().resume()
    assert run.process.wait(timeout=120) == 0, run.err.read_text()


def test_a_run_whose_reader_has_ended_is_published(
    start: Callable[..., Started], tmp_path: Path
) -> None:
    reading, writing = os.pipe()
    run = start(*command("run", quick(tmp_path)), stdout=writing)
    os.close(writing)
    os.read(reading, 1)
    os.close(reading)

    assert run.process.wait(timeout=120) == 0, run.err.read_text()
    assert "manifest.json" in " ".join(files_below(tmp_path / "out"))
    assert "Traceback" not in run.err.read_text()


def test_a_run_that_has_to_be_killed_leaves_a_terminal_with_its_cursor(
    start: Callable[..., Started], tmp_path: Path
) -> None:
    ours, theirs = pty.openpty()
    run = start(*command("run", quick(tmp_path, evaluation=LONG)), stdout=theirs)
    os.set_blocking(ours, False)
    shown = b""

    def draws() -> bool:
        nonlocal shown
        try:
            shown += os.read(ours, 65536)
        except BlockingIOError:
            return False
        return b"Measuring" in shown

    run.wait_for(draws)
    run.runner().suspend()
    run.process.send_signal(signal.SIGTERM)

    assert run.process.wait(timeout=15) == 30
    draws()
    os.close(theirs)
    os.close(ours)
    assert 0 <= shown.rindex(b"\x1b[?25l") < shown.rindex(b"\x1b[?25h")
