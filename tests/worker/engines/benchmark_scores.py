"""Asks a model benchmarks by the worker's own harness and runtime, and prints the scores as JSON.

Run by a legacy image's interpreter, in whose runtime a run would measure: `benchmark_scores.py
MODEL FOLDER`, with {asked, tasks} on standard input: benchmarks as a manifest has them, and a
folder of task files. Prints [[task, metric, value, samples], ...].
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from kubequant.api.spec import QuantizationJobSpec
from kubequant_worker.benchmarks.harness import Harness
from kubequant_worker.benchmarks.task_files import TaskFiles
from kubequant_worker.methods.legacy import RUNTIME_MODULE
from kubequant_worker.methods.transformers_runtime import TransformersEngine, TransformersRuntime


class Ignored:
    """A meter that nobody reads."""

    def set_total(self, total: float) -> None:
        pass

    def advance(self, amount: float, message: str | None = None) -> None:
        pass


def main() -> None:
    model, folder = Path(sys.argv[1]), Path(sys.argv[2])
    given: dict[str, Any] = json.load(sys.stdin)
    tasks = Path(given["tasks"])
    names = [path.relative_to(tasks).as_posix() for path in tasks.rglob("*") if path.is_file()]
    spec = QuantizationJobSpec.model_validate(
        {
            "model": {"uri": "hf://example/model"},
            "method": "AWQ",
            "evaluation": {"benchmarks": given["asked"]},
            "output": {"uri": "s3://bucket/prefix"},
        }
    )
    loading = {"device": "cpu", "dtype": "float32", "spill": str(folder / "spill")}
    harness = Harness(spec, folder, threads=1)
    harness.look_up(TaskFiles(tasks, names).configs)
    harness.load(lambda _: None)
    engine = TransformersEngine(2, module=RUNTIME_MODULE)
    with TransformersRuntime(engine, model, loading) as runtime:
        found = harness.ask(runtime, Ignored())
    harness.close()
    print(json.dumps([[one.task, one.metric, one.value, one.samples] for one in found]))


if __name__ == "__main__":
    main()
