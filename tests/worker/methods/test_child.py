"""What becomes of a child that dies, and of a child whose parent is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest

from kubequant_worker.errors import InterruptedRunError, MemoryExhaustedError
from kubequant_worker.methods.child import ChildFailedError
from kubequant_worker.methods.gguf_runtime import LlamaEngine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.worker.methods.conftest import Made


@pytest.fixture
def engine() -> Iterator[LlamaEngine]:
    started = LlamaEngine(1)
    yield started
    started.close()


def test_an_abort_becomes_an_error_with_the_last_lines(engine: LlamaEngine) -> None:
    engine.child.call("close")
    os.kill(engine.child.pid, signal.SIGABRT)
    with pytest.raises(ChildFailedError, match=r"llama.cpp ended by SIGABRT"):
        engine.child.call("close")


def test_a_kill_by_the_kernel_is_told_as_a_lack_of_memory(engine: LlamaEngine) -> None:
    engine.child.call("close")
    os.kill(engine.child.pid, signal.SIGKILL)
    with pytest.raises(MemoryExhaustedError, match="memory limit") as caught:
        engine.child.call("close")
    assert "limits.memory" in caught.value.advice


def test_a_failure_in_the_child_brings_its_traceback(engine: LlamaEngine) -> None:
    with pytest.raises(ChildFailedError, match="no model is loaded"):
        engine.child.call("generate", ["x"], 5)


@pytest.mark.parametrize(
    "program", ["gguf_engine", "gguf_convert", "engine_child", "transformers_child"]
)
def test_a_child_starts_without_the_models_of_the_api(program: str) -> None:
    imported = f"import sys, kubequant_worker.methods.{program}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", imported], check=True, capture_output=True, text=True
    )
    names = done.stdout.split()
    assert "kubequant_worker.methods.child" in names
    assert "kubequant.api.enums" in names
    assert not {"pydantic", "kubequant.api.contract"} & set(names)


def test_no_secret_reaches_the_child(engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "KUBEQUANT_RUN"):
        monkeypatch.setenv(name, "made-up-secret")
    engine.child.call("close")
    environment = Path(f"/proc/{engine.child.pid}/environ").read_bytes()
    assert b"made-up-secret" not in environment
    assert b"HF_HUB_OFFLINE=1" in environment


def test_a_child_works_outside_of_the_users_folder_and_finds_what_is_named_from_there(
    engine: LlamaEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The folder may be a model's, and hold a libcuda.so.1.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "beside")
    engine.child.call("close")
    process = psutil.Process(engine.child.pid)

    assert process.cwd() == "/"
    assert process.environ()["PYTHONPATH"] == str(tmp_path / "beside")


def test_a_signal_interrupts_a_computation_at_once(every_type: Made, tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise InterruptedRunError("SIGTERM came")

    quantizer = every_type.quantizer
    before = signal.signal(signal.SIGALRM, interrupt)
    runtime = quantizer.open_runtime(every_type.baseline, 0)
    pid = quantizer._engine.child.pid
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        started = time.monotonic()
        minutes_of_work = [np.full(500, 7, np.int32)] * 2000
        with pytest.raises(InterruptedRunError):
            runtime.collect(minutes_of_work, tmp_path / "m", datasets=[], on_tokens=lambda _: None)
        assert time.monotonic() - started < 5
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        quantizer.close()
    assert not psutil.pid_exists(pid)


PARENT = """
import sys
from pathlib import Path
from kubequant_worker.methods.gguf_runtime import LlamaEngine, LlamaRuntime
if __name__ == "__main__":
    engine = LlamaEngine(1)
    runtime = LlamaRuntime(engine, Path(sys.argv[1]))
    print(engine.child.pid, flush=True)
    runtime.generate(["The"] * 60, 490)  # seconds in which the child says nothing
"""


def test_a_busy_child_dies_with_its_parent(every_type: Made) -> None:
    # A child that says something sees the end of its parent anyway; one that computes does not.
    command = [sys.executable, "-c", PARENT, str(every_type.baseline.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        time.sleep(0.5)
        assert psutil.pid_exists(child)
        parent.kill()
    deadline = time.monotonic() + 1
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.05)
