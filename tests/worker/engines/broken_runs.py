"""Runs a manifest whose method TensorRT has one thing broken, in the image's environment.

`broken_runs.py MANIFEST SCRATCH` with {"kind": a class below, "precision"} as JSON on standard
input. What is broken is of the kind that nothing complains of: the run has to find it by itself.
The method makes INT8 of a manifest that says FP8: the API asks for an engine, and so for a GPU,
where no runtime reads a checkpoint. Prints the run's report as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import yaml
from tests.worker.engines.modelopt_cases import garble

from kubequant.api.contract import RunRequest
from kubequant.api.engines import MODEL_OPT
from kubequant.api.enums import Method
from kubequant.api.resource import read_manifest
from kubequant_worker.layout import Layout
from kubequant_worker.methods import METHODS, ProducedVariant
from kubequant_worker.methods.tensorrt import ModelOptTensorRT
from kubequant_worker.methods.transformers_runtime import TransformersEngine
from kubequant_worker.progress import Progress
from kubequant_worker.run import Run
from kubequant_worker.runner import answered

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kubequant_worker.datasets import TextSet
    from kubequant_worker.evaluation.meter import Meter
    from kubequant_worker.methods import Workspace


class Sound(ModelOptTensorRT):
    """Nothing is broken: what the others are held against."""

    precision: ClassVar[str]

    def __init__(self, workspace: Workspace) -> None:
        super().__init__(workspace)
        self._asked = self._asked.model_copy(update={"precision": self.precision})


class ReadByTransformers(Sound):
    """Is measured by plain transformers, which takes the stored numbers for weights."""

    def _engine_started(self) -> TransformersEngine:
        return TransformersEngine(self._work.threads)


class OtherRowsScales(Sound):
    """Gives each row of a weight the scale of another row, as a faulty export would."""

    def variants(self, calibration: TextSet | None, meter: Meter) -> Iterator[ProducedVariant]:
        for made in super().variants(calibration, meter):
            garble(self._work.artifact / "model.safetensors")
            yield made


def main() -> None:
    """Run the manifest with the method that is asked for."""
    path, scratch = map(Path, sys.argv[1:])
    given = json.load(sys.stdin)
    kind: type[Sound] = globals()[given["kind"]]
    kind.precision = given["precision"]
    METHODS[Method.TENSOR_RT, MODEL_OPT] = f"{kind.__module__}:{kind.__name__}"
    spec = read_manifest(yaml.safe_load(path.read_text()), local=True).spec
    request = RunRequest.model_validate(
        {"name": "broken", "digest": "0123abcd", "spec": spec}, context={"local": True}
    )
    scratch.mkdir()
    layout = Layout.from_environment({"KUBEQUANT_SCRATCH": str(scratch)})
    report = answered(Run(request, layout, Progress()), layout)
    print(json.dumps(report.to_json()))


if __name__ == "__main__":
    main()
