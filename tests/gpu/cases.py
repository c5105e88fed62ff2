"""What is run on a GPU: a row for each engine of `kubequant.api.engines` that works on one.

Pure: nothing is started here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kubequant.api.base import camel
from kubequant.api.engines import ENGINES
from kubequant.api.enums import Device, Method
from kubequant.api.spec import MEMBERS
from kubequant.controller.catalog import IMAGES
from kubequant_worker.methods import GUESTS, LIBRARIES

# What an engine must be told besides its name.
WORDS: dict[tuple[str, str], dict[str, Any]] = {
    ("INT4", "AutoRound"): {"rounding": "Tuned"},
    ("Prune", "Torch"): {"algorithm": "Magnitude"},
    ("Distill", "Accelerate"): {"steps": 20, "batchSize": 2},
}


@dataclass(frozen=True)
class Case:
    """One engine of one method."""

    method: Method
    engine: str
    parameters: dict[str, Any] = field(default_factory=dict)
    devices: frozenset[Device] = frozenset(Device)

    @property
    def name(self) -> str:
        """Return what a person calls it."""
        return f"{self.method} by {self.engine}"

    @property
    def library(self) -> str:
        """Return the module by which an interpreter is known to hold it."""
        return LIBRARIES[self.engine]

    @property
    def image(self) -> str:
        """Return the image that holds it: others may hold the library in another version."""
        return IMAGES[self.engine].key.value

    @property
    def host(self) -> str:
        """Return the module beside which the library is another version, "" where there is none."""
        return LIBRARIES.get(GUESTS.get(self.engine, ""), "")

    def spec(self, *, device: str, small: bool) -> dict[str, Any]:
        """Return the part of a manifest's spec that is this case's own."""
        member, _ = MEMBERS[self.method]
        calibration = {"samples": 4, "sequenceLength": 64} if small else {"samples": 32}
        found: dict[str, Any] = {"method": self.method.value, "device": device}
        if not small:
            calibration["sequenceLength"] = 512
        words = dict(self.parameters)
        if self.method is Method.TENSOR_RT and device == "CPU":
            words["build"] = "Checkpoint"  # an engine is built on a GPU
        return {**found, camel(member): words, "calibration": calibration}


def _case(method: Method, engine: Any) -> Case:
    words = dict(WORDS.get((method.value, engine.name), {}))
    if "engine" in MEMBERS[method][1].model_fields:
        words["engine"] = engine.name
    return Case(method, engine.name, words, engine.devices)


CASES = tuple(
    _case(method, engine)
    for method, engines in ENGINES.items()
    for engine in engines
    if Device.GPU in engine.devices
)
