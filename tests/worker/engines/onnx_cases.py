"""Makes many ONNX models in one process of the image's environment.

Run by that environment's interpreter: `onnx_cases.py FOLDER`, with a JSON object {case: {model,
spec}} on standard input. Each model is exported once, by a child that all share: importing torch
and tracing take most of the time. Prints {case: {notes, ...} or {refused, advice}} as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tests.worker.engines.quantize_cases import Steps

from kubequant.api.base import LOCAL
from kubequant.api.spec import QuantizationJobSpec
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods import Workspace
from kubequant_worker.methods.child import Child
from kubequant_worker.methods.int8 import ONNXRuntimeINT8

Exported = dict[Path, dict[str, Any]]


def made_by(folder: Path, case: dict[str, Any], exporter: Child, exported: Exported) -> Any:
    """Return the quantizer for a case, its model exported now or before."""
    spec = QuantizationJobSpec.model_validate(
        {
            "model": {"uri": "hf://example/model"},
            "method": "INT8",
            "output": {"uri": "s3://bucket/prefix"},
            **case["spec"],
        },
        context=LOCAL,
    )
    model, artifact = Path(case["model"]), folder / "artifact"
    artifact.mkdir(parents=True)
    scratch = folder.parent / f"scratch-{model.name}"
    scratch.mkdir(exist_ok=True)
    made: Any = ONNXRuntimeINT8(Workspace(spec, model, scratch, artifact, "tiny", threads=2))
    made.needs(spec, {path.name: path.stat().st_size for path in model.iterdir()})
    made._exporter = exporter
    made._end_exporter = lambda: None
    if model not in exported:
        steps = Steps()
        baseline = made.baseline(steps)
        made.check_baseline(Steps())
        exported[model] = {
            "state": (made._stored, made._dtype, made._reference),
            "steps": steps,
            "bytes": baseline.size_bytes,
        }
    made._stored, made._dtype, made._reference = exported[model]["state"]
    made.largest_file_bytes = case.get("largest_file_bytes", made.largest_file_bytes)
    if case.get("damage") == "export":
        # As if it computed something else than the model; nothing reads this file again.
        np.save(made._exported_logits, np.load(made._exported_logits)[:, ::-1])
        made.check_baseline(Steps())
    return made


def quantized(folder: Path, case: dict[str, Any], exporter: Child, exported: Exported) -> Any:
    """Make one model, and return what was said of it."""
    steps = Steps()
    try:
        made = made_by(folder, case, exporter, exported)
        with_child = made._engine_started  # only where something is to be loaded again
        made._engine_started = lambda: None
        (produced,) = made.variants(None, steps)
        made._engine_started = with_child
        if case.get("damage") == "artifact":
            file = folder / "artifact" / "model.onnx"
            file.write_bytes(file.read_bytes()[:-1000])
        checked = made.verify(produced, Steps()) if case.get("verify") else ()
        made.close()
    except BadRequestError as error:
        return {"refused": error.message, "advice": error.advice}
    export: Steps = exported[made._work.model]["steps"]
    return {
        "notes": [*produced.notes, *checked],
        "files": sorted(map(str, produced.files)),
        "bytes": produced.size_bytes,
        "original": exported[made._work.model]["bytes"],
        "messages": steps.messages,
        "progress": steps.done / steps.total,
        "exporting": export.messages,
        "exported": export.done / export.total,
    }


def main() -> None:
    folder = Path(sys.argv[1])
    cases: dict[str, dict[str, Any]] = json.load(sys.stdin)
    exported: Exported = {}
    exporter = Child(
        "kubequant_worker.methods.onnx_export_child",
        engine="the exporter",
        threads=2,
        arguments=("2",),
    )
    try:
        found = {
            name: quantized(folder / name, case, exporter, exported) for name, case in cases.items()
        }
    finally:
        exporter.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
