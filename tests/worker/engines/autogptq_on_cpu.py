"""Makes checkpoints by AutoGPTQ's own loop on a CPU, in the place of the GPU that it wants.

Run by images/gptq-legacy's interpreter: `autogptq_on_cpu.py FOLDER`, with {case: {model, spec}} on
standard input. All that differs from a run on a GPU is where tensors lie: AutoGPTQ names its device
in one constant, and waits for the device's work in one place. Prints {case: {notes} or {refused}}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import quantize_cases
import torch
from auto_gptq.modeling import _base as engine

from kubequant.api.base import LOCAL
from kubequant.api.spec import QuantizationJobSpec
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods import Workspace, quantizer
from kubequant_worker.methods.autogptq_child import AutoGPTQWork


class InProcess:
    """The child's operations, called without a child; the parent that it tells."""

    def __init__(self) -> None:
        self._operations = AutoGPTQWork(self).operations()  # type: ignore[arg-type]
        self._on_event: Any = None

    def event(self, *values: Any) -> None:
        self._on_event(*values)

    def call(self, operation: str, *arguments: Any, on_event: Any = None) -> Any:
        self._on_event = on_event
        return self._operations[operation](*arguments)


def quantized(folder: Path, case: dict[str, Any], child: Any) -> dict[str, Any]:
    """Make one checkpoint, and return what was said of it."""
    spec = QuantizationJobSpec.model_validate(
        {
            "model": {"uri": "hf://example/model"},
            "output": {"uri": "s3://bucket/prefix"},
            **case["spec"],
        },
        context=LOCAL,
    )
    scratch, artifact = folder / "scratch", folder / "artifact"
    scratch.mkdir(parents=True)
    artifact.mkdir()
    work = Workspace(spec, Path(case["model"]), scratch, artifact, "tiny", threads=2)
    steps = quantize_cases.Steps()
    try:
        kind, _ = quantizer(spec)
        made: Any = kind(work)
        kind.needs(spec, {path.name: path.stat().st_size for path in work.model.iterdir()})
        # A CPU computes in 32 bits; on a GPU it is float16.
        loading = {**made._engine_loading(), "dtype": "float32"}
        made._engine_loading, made.compute_device = lambda: loading, lambda: "cpu"
        made.baseline(quantize_cases.Steps())
        notes = made.produce_with(child, quantize_cases.calibration(None), steps)
        made._complete_folder()  # as `variants` does
    except BadRequestError as error:
        return {"refused": error.message, "advice": error.advice}
    return {
        "notes": list(notes),
        "tokens": made.calibration_tokens(),
        "messages": steps.messages,
        "progress": steps.done / steps.total,
    }


def main() -> None:
    torch.set_num_threads(2)
    folder = Path(sys.argv[1])
    cases: dict[str, dict[str, Any]] = json.load(sys.stdin)
    child = InProcess()
    with (
        patch.object(engine, "CUDA_0", torch.device("cpu")),
        patch.object(torch.cuda, "synchronize", lambda: None),
    ):
        found = {name: quantized(folder / name, case, child) for name, case in cases.items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
