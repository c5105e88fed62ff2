"""The TensorRT-LLM of the image, run as a program in its own Python.

NVIDIA's image holds it in a Python whose packages are older than the worker's, so that nothing of
ours can be imported there but one file that stands alone, `tensorrt_llm_program`. What is asked of
it goes there as JSON, and comes back as lines of JSON through a pipe of its own, since the library
writes what it likes to the others. It is not imported here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError, MemoryExhaustedError
from kubequant_worker.methods.child import (
    WORKING_FOLDER,
    ChildFailedError,
    child_environment,
    last_lines,
)
from kubequant_worker.methods.tensorrt_engine import build_words, engine_detail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from kubequant.api.contract import EngineDetail
    from kubequant.api.tensorrt import TensorRTParameters
    from kubequant_worker.evaluation.meter import Meter
    from kubequant_worker.evaluation.runtime import TokenArray

PROGRAM: Final = Path(__file__).with_name("tensorrt_llm_program.py")
# The image's words: the Python that holds the library, and the variables that it was made with.
PYTHON: Final = "TENSORRT_LLM_PYTHON"
_ITS_OWN: Final = {"TENSORRT_LLM_PATH": "PATH", "TENSORRT_LLM_LIBRARY_PATH": "LD_LIBRARY_PATH"}
_OURS: Final = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
# Looks for the library without importing it, which takes long.
_FINDS: Final = (
    "import sys; from importlib.util import find_spec; sys.exit(find_spec('tensorrt_llm') is None)"
)
# How many beginnings of a text are asked at most.
_QUESTIONS: Final = 64


def interpreter() -> str:
    """Return the Python that holds TensorRT-LLM, "" where there is none."""
    python = os.environ.get(PYTHON) or sys.executable
    try:
        done = subprocess.run(
            [python, "-P", "-c", _FINDS],
            cwd=WORKING_FOLDER,
            env=_environment(),
            capture_output=True,
            check=False,
        )
    except OSError:
        return ""
    return python if done.returncode == 0 else ""


def require_tensorrt_llm() -> None:
    """Refuse to begin what only TensorRT-LLM could end.

    Raises:
        BadRequestError: It is not here.
    """
    if interpreter():
        return
    raise BadRequestError(
        "spec.tensorRT.build: an engine is built by TensorRT-LLM, which is not in this worker",
        reason=FailureReason.UNSUPPORTED_MODEL,
        advice="run it in the image over NVIDIA's TensorRT-LLM (images/tensorrt), or set build: "
        "Checkpoint",
    )


class TensorRTLLM:
    """The program, one operation after another. A context manager: what runs ends with it."""

    def __init__(self, scratch: Path, python: str = "") -> None:
        """Work in `scratch`, with `python` instead of the image's where it is named."""
        self._scratch = scratch
        self._python = python or interpreter()
        self._process: subprocess.Popen[bytes] | None = None

    def build(
        self, asked: TensorRTParameters, ranks: Path, target: Path, meter: Meter
    ) -> EngineDetail:
        """Build an engine of the checkpoint in `ranks` into the folder `target`.

        Raises:
            BadRequestError: TensorRT-LLM cannot build it, or built another.
            MemoryExhaustedError: The kernel killed it.
            ChildFailedError: Anything else, with its last lines.
        """
        parallel = asked.tensor_parallel or 1
        meter.set_total(parallel)
        meter.advance(0, "building the engine")
        words = ["--checkpoint_dir", str(ranks), "--output_dir", str(target), *build_words(asked)]
        built = self._run(
            {"operation": "build", "words": words},
            lambda done: meter.advance(1, f"engine: part {done} of {parallel}"),
        )
        config = json.loads((target / "config.json").read_text(encoding="utf-8"))
        return engine_detail(asked, config, built)

    def answers(self, engine: Path, ids: TokenArray) -> list[int]:
        """Return the token that the engine in a folder answers after each beginning of `ids`."""
        count = min(len(ids), _QUESTIONS)
        starts = [ids[: end + 1].tolist() for end in range(count)]
        found = self._run({"operation": "answer", "engine": str(engine), "starts": starts})
        return [int(token) for token in found["tokens"]]

    def _run(
        self, job: Mapping[str, Any], on_step: Callable[[int], None] = lambda _: None
    ) -> dict[str, Any]:
        """Carry out one operation and return its result."""
        reading, writing = os.pipe()
        path = self._scratch / "tensorrt-llm.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        words = [self._python, "-P", str(PROGRAM), str(writing), str(os.getpid()), str(path)]
        with tempfile.TemporaryFile() as log, os.fdopen(reading, encoding="utf-8") as lines:
            try:
                self._process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=WORKING_FOLDER,
                    env=_environment(),
                    pass_fds=(writing,),
                )
            finally:
                os.close(writing)
            result: dict[str, Any] | None = None
            for kind, value in _messages(lines):
                if kind == "step":
                    on_step(value)
                elif kind == "refused":
                    raise _refusal(value)
                else:
                    result = value
            code = self._process.wait()
            if result is None or code:
                raise _failure(code, last_lines(log))
            return result

    def close(self) -> None:
        """Kill what runs and wait for it; a second call does nothing."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        """Return itself; nothing runs before it is asked."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End what runs."""
        self.close()


def _messages(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    """Yield what the program says, until it says no more."""
    for line in lines:
        message = json.loads(line)
        yield str(message["kind"]), message["value"]


def _environment() -> dict[str, str]:
    """Return the program's environment: the library's own paths, and nothing of our Python's."""
    found = child_environment(os.cpu_count() or 1, os.environ, gpus=True, online=False)
    for name in _OURS:
        found.pop(name, None)
    for ours, its in _ITS_OWN.items():
        if ours in found:
            found[its] = found[ours]
    return found


def _refusal(words: str) -> BadRequestError:
    return BadRequestError(
        f"spec.tensorRT: TensorRT-LLM does not do this: {words}",
        reason=FailureReason.UNSUPPORTED_MODEL,
        advice="ask for less (maxBatchSize, maxInputLength, maxOutputLength), take another "
        "precision, or set build: Checkpoint",
    )


def _failure(code: int, tail: str) -> Exception:
    if code == -signal.SIGKILL:
        return MemoryExhaustedError(
            "TensorRT-LLM was killed by the kernel, most likely because the memory limit was "
            "reached",
            advice="give the pod more memory (spec.pod.resources.limits.memory)",
        )
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return ChildFailedError(f"TensorRT-LLM ended {how}; its last lines:\n{tail}")
