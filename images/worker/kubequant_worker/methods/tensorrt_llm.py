"""The TensorRT-LLM of the image, run as a program in its own Python (`foreign`).

NVIDIA's image holds it in a Python whose packages are older than the worker's. What is asked of it
there is `tensorrt_llm_program`; it is not imported here.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods.foreign import (
    ForeignProgram,
    RefusedError,
    foreign_environment,
    holds,
)
from kubequant_worker.methods.tensorrt_engine import build_words, engine_detail

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kubequant.api.contract import EngineDetail
    from kubequant.api.tensorrt import TensorRTParameters
    from kubequant_worker.evaluation.meter import Meter
    from kubequant_worker.evaluation.runtime import TokenArray

OPERATIONS: Final = Path(__file__).with_name("tensorrt_llm_program.py")
# The image's words: the Python that holds the library, and the variables that it was made with.
PYTHON: Final = "TENSORRT_LLM_PYTHON"
_ITS_OWN: Final = {"TENSORRT_LLM_PATH": "PATH", "TENSORRT_LLM_LIBRARY_PATH": "LD_LIBRARY_PATH"}
# How many beginnings of a text are asked at most.
_QUESTIONS: Final = 64


def interpreter() -> str:
    """Return the Python that holds TensorRT-LLM, "" where there is none."""
    python = os.environ.get(PYTHON) or sys.executable
    return python if holds(python, "tensorrt_llm", _environment()) else ""


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


class TensorRTLLM(ForeignProgram):
    """The program, one operation after another. A context manager: what runs ends with it."""

    def __init__(self, scratch: Path, python: str = "") -> None:
        """Work in `scratch`, with `python` instead of the image's where it is named."""
        found = python or interpreter()
        super().__init__("TensorRT-LLM", OPERATIONS, found, scratch, _environment())

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
        built = self._asked(
            {"operation": "build", "words": words},
            lambda done: meter.advance(1, f"engine: part {done} of {parallel}"),
        )
        config = json.loads((target / "config.json").read_text(encoding="utf-8"))
        return engine_detail(asked, config, built)

    def answers(self, engine: Path, ids: TokenArray) -> list[int]:
        """Return the token that the engine in a folder answers after each beginning of `ids`."""
        count = min(len(ids), _QUESTIONS)
        starts = [ids[: end + 1].tolist() for end in range(count)]
        found = self._asked({"operation": "answer", "engine": str(engine), "starts": starts})
        return [int(token) for token in found["tokens"]]

    def _asked(
        self, job: Mapping[str, Any], on_step: Callable[[int], None] = lambda _: None
    ) -> dict[str, Any]:
        """Return an operation's result; what TensorRT-LLM does not do becomes a sentence."""
        try:
            return self.run(job, on_step)
        except RefusedError as error:
            raise BadRequestError(
                f"spec.tensorRT: TensorRT-LLM does not do this: {error}",
                reason=FailureReason.UNSUPPORTED_MODEL,
                advice="ask for less (maxBatchSize, maxInputLength, maxOutputLength), take another "
                "precision, or set build: Checkpoint",
            ) from error


def _environment() -> dict[str, str]:
    """Return the program's environment: the library's own paths, and nothing of our Python's."""
    found = foreign_environment(gpus=True)
    for ours, its in _ITS_OWN.items():
        if ours in found:
            found[its] = found[ours]
    return found
