"""How much of a model each device may hold, before any device is asked."""

from __future__ import annotations

from typing import Any

import pytest
from tests.api.cases import SMALLEST

from kubequant.api.resource import read_manifest
from kubequant_worker.methods.bounds import most_bytes

GIB = 2**30
# The whole of a GPU less its context, and less what activations take: (25 - 1) / 1.2.
WHOLE = 20 * GIB


@pytest.mark.parametrize(
    ("device", "memory", "most"),
    [
        pytest.param("GPU", {}, None, id="a GPU holds all of it"),
        pytest.param(
            "GPU",
            {"offload": "CPU"},
            {0: WHOLE, "cpu": 8 * GIB},
            id="what spills to the CPU fills the GPU first",
        ),
        pytest.param(
            "GPU",
            {"offload": "Disk"},
            {0: WHOLE, "cpu": 4 * GIB},
            id="what spills to the disk fills the GPU first, then half of the memory",
        ),
        pytest.param(
            "GPU",
            {"offload": "CPU", "maxGPUMemory": "6Gi"},
            {0: 6 * GIB, "cpu": 8 * GIB},
            id="the spec's own bound is the GPU's",
        ),
        pytest.param(
            "GPU",
            {"offload": "CPU", "maxGPUMemory": "80Gi"},
            {0: WHOLE, "cpu": 8 * GIB},
            id="a bound above what there is bounds nothing",
        ),
        pytest.param(
            "GPU", {"maxGPUMemory": "6Gi"}, {0: 6 * GIB}, id="a bound without anything to spill to"
        ),
        pytest.param("CPU", {"offload": "Disk"}, {"cpu": 4 * GIB}, id="a CPU spills to the disk"),
        pytest.param("CPU", {"offload": "CPU"}, None, id="a CPU has nothing to spill to a CPU"),
        pytest.param("CPU", {}, None, id="a CPU holds all of it"),
    ],
)
def test_every_device_that_may_hold_weights_is_named(
    device: str, memory: dict[str, Any], most: dict[str | int, int] | None
) -> None:
    fields = {**SMALLEST["spec"], "method": "INT8", "device": device, "memory": memory}
    spec = read_manifest({**SMALLEST, "spec": fields}).spec

    found = most_bytes(
        spec.memory, spec.effective_device(), free_bytes=10 * GIB, gpu_bytes=25 * GIB
    )

    assert found == most
