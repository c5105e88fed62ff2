"""Makes many quantized checkpoints in one process of an image's environment.

Run by that environment's interpreter: `quantize_cases.py ENGINE-MODULE FOLDER`, with a JSON object
{case: {model, spec}} on standard input. Importing an engine takes many seconds, so all cases share
its child. Prints {case: {notes} or {refused}} as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from kubequant.api.base import LOCAL
from kubequant.api.spec import QuantizationJobSpec
from kubequant_worker.datasets import Role, TextSet, bundled_text, text_set
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods import Workspace, quantizer
from kubequant_worker.methods.child import Child


class Steps:
    """A meter that remembers what it was told."""

    def __init__(self) -> None:
        self.total = 0.0
        self.done = 0.0
        self.messages: list[str] = []

    def set_total(self, total: float) -> None:
        self.total = total

    def advance(self, amount: float, message: str | None = None) -> None:
        self.done += amount
        if message and message not in self.messages:
            self.messages.append(message)


def calibration(words: list[str] | None) -> TextSet:
    """Return a short calibration text, or the one that the case gives."""
    if words is None:
        return text_set("short", bundled_text(Role.CALIBRATION).documents[:14], bundled=True)
    return text_set("own", words, bundled=False)


def quantized(folder: Path, case: dict[str, Any], child: Child) -> dict[str, Any]:
    """Make one checkpoint, and return what was said of it."""
    spec = QuantizationJobSpec.model_validate(
        {
            "model": {"uri": "hf://example/model"},
            "device": "CPU",
            "output": {"uri": "s3://bucket/prefix"},
            **case["spec"],
        },
        context=LOCAL,
    )
    scratch, artifact = folder / "scratch", folder / "artifact"
    scratch.mkdir(parents=True)
    artifact.mkdir()
    work = Workspace(spec, Path(case["model"]), scratch, artifact, "tiny", threads=2)
    steps = Steps()
    try:
        kind, _ = quantizer(spec)
        made: Any = kind(work)
        kind.needs(spec, {path.name: path.stat().st_size for path in work.model.iterdir()})
        if bound := case.get("cpu_bytes"):
            made.loading = lambda usual=made.loading: {**usual(), "most_bytes": {"cpu": bound}}
        made.baseline(Steps())
        text = calibration(case.get("text")) if kind.calibrates(spec) else None
        notes = made.produce_with(child, text, steps)
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
    module, folder = sys.argv[1], Path(sys.argv[2])
    cases: dict[str, dict[str, Any]] = json.load(sys.stdin)
    child = Child(module, engine="the engine", threads=2, arguments=("2",))
    try:
        found = {name: quantized(folder / name, case, child) for name, case in cases.items()}
    finally:
        child.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
