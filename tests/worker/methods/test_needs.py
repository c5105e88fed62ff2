"""What a run will take, by a method's own words: from sizes and parameters, before any fetching."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

import pytest
from tests.api.cases import SMALLEST

from kubequant.api.resource import read_manifest
from kubequant_worker.methods import METHODS

if TYPE_CHECKING:
    from kubequant.api.spec import QuantizationJobSpec
    from kubequant_worker.methods import Needs, Quantizer

FILES = {"model.safetensors": 100 << 30, "config.json": 1000}
CHECKPOINT = {"build": "Checkpoint"}


def asked(fields: dict[str, Any]) -> QuantizationJobSpec:
    return read_manifest({**SMALLEST, "spec": {**SMALLEST["spec"], **fields}}).spec


def needs(engine: str, fields: dict[str, Any]) -> Needs:
    """Return what a spec takes by an engine, whose library is not imported."""
    spec = asked(fields)
    module, _, name = METHODS[spec.method, engine].partition(":")
    method = cast("type[Quantizer]", getattr(import_module(module), name))
    return method.needs(spec, FILES)


@pytest.mark.parametrize(
    ("engine", "fields", "less", "advice"),
    [
        pytest.param(
            "LLMCompressor",
            {"method": "GPTQ"},
            {"memory": {"offload": "CPU"}},
            "spec.memory.offload: CPU brings one layer at a time to the GPU.",
            id="layers come to the GPU one by one",
        ),
        pytest.param(
            "BitsAndBytes",
            {"method": "BitsAndBytes", "bitsAndBytes": {"bits": 4}},
            {"memory": {"offload": "CPU"}},
            "spec.memory.offload: CPU would make do with 81.0 GiB of it.",
            id="only the quantized model has to be on the GPU",
        ),
        pytest.param(
            "BitsAndBytes",
            {"method": "BitsAndBytes"},
            {"bitsAndBytes": {"bits": 4}, "memory": {"offload": "CPU"}},
            "spec.bitsAndBytes.bits: 4 with spec.memory.offload: CPU takes less.",
            id="in 8 bits it is no smaller while it is saved",
        ),
        pytest.param(
            "BitsAndBytes",
            {"method": "BitsAndBytes", "memory": {"offload": "CPU"}},
            {"bitsAndBytes": {"bits": 4}},
            "spec.bitsAndBytes.bits: 4 with spec.memory.offload: CPU takes less.",
            id="what is spilled already is not to be spilled again",
        ),
        pytest.param(
            "BitsAndBytes",
            {"method": "BitsAndBytes", "bitsAndBytes": {"bits": 4}, "memory": {"offload": "CPU"}},
            {"device": "CPU"},
            "spec.device: CPU needs no GPU.",
            id="what is spilled in 4 bits has only the CPU left",
        ),
        pytest.param(
            "TorchAO",
            {"method": "INT8", "int8": {"engine": "TorchAO"}},
            {},
            "spec.int8.engine: LLMCompressor with spec.memory.offload: CPU takes less.",
            id="torchao holds what it quantized on the GPU",
        ),
        pytest.param(
            "ModelOpt",
            {"method": "TensorRT", "tensorRT": CHECKPOINT},
            {"device": "CPU"},
            "spec.tensorRT.build: Checkpoint (precision FP8 or INT4AWQ) with spec.device: CPU "
            "needs no GPU.",
            id="TensorRT spills nothing",
        ),
        pytest.param(
            "Accelerate",
            {"method": "Distill"},
            {"device": "CPU"},
            "A student with fewer layers (spec.distill.student.keepLayers) takes less. "
            "spec.device: CPU needs no GPU.",
            id="a training spills nothing",
        ),
    ],
)
def test_what_would_need_less_of_a_gpu_is_what_the_method_takes(
    engine: str, fields: dict[str, Any], less: dict[str, Any], advice: str
) -> None:
    fields = {"device": "GPU", **fields}

    found = needs(engine, fields)

    assert found.gpu_memory_advice == advice
    if less:  # otherwise another engine is to do it
        assert needs(engine, {**fields, **less}).gpu_memory_bytes < found.gpu_memory_bytes


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"method": "TensorRT", "tensorRT": CHECKPOINT}, id="TensorRT"),
        pytest.param({"method": "Distill"}, id="Distill"),
    ],
)
def test_no_method_advises_to_spill_that_refuses_it(fields: dict[str, Any]) -> None:
    engine = {"TensorRT": "ModelOpt", "Distill": "Accelerate"}[fields["method"]]

    for device in ("CPU", "GPU"):
        found = needs(engine, {"device": device, **fields})
        assert "offload" not in found.memory_advice + found.gpu_memory_advice
