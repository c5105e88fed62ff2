"""A method's image does a worker's work as a pod has it do: from a variable to files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.images.containers import USER, Mount

from kubequant.api.contract import decode_termination
from kubequant.api.outcome import ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.images.containers import Container

TINY = Path(__file__).parents[2] / "examples" / "models" / "tiny-llama"
DIGEST = "0123abcd"
SPEC = {
    "model": {"uri": "pvc://models/tiny-llama"},
    "evaluation": {
        "perplexity": {"maxTokens": 2048},
        "generations": {"prompts": ["def read("], "maxNewTokens": 8},
    },
    "output": {"uri": "pvc://artifacts/out"},
}

GGUF = {"method": "GGUF", "gguf": {"types": ["Q4_K_M"]}}
AWQ = {
    "method": "AWQ", "device": "CPU", "calibration": {"samples": 4, "sequenceLength": 64},
}  # fmt: skip
ONNX = {"method": "INT8", "int8": {"engine": "ONNXRuntime"}}
AUTO_AWQ = {**AWQ, "awq": {"engine": "AutoAWQ"}}
INT4 = {"method": "INT4", "int4": {}, "device": "CPU"}
INT8 = {"method": "INT8", "device": "CPU"}
NF4 = {"method": "BitsAndBytes", "bitsAndBytes": {"bits": 4}, "device": "CPU"}
STUDENT = {
    "method": "Distill",
    "distill": {"steps": 3, "batchSize": 2, "checkpointSeconds": 1},
    "device": "CPU",
    "calibration": {"sequenceLength": 64},
}
FP8 = {
    "method": "TensorRT",
    "tensorRT": {"build": "Checkpoint"},
    "device": "CPU",
    "calibration": {"samples": 4, "sequenceLength": 64},
}
TUNED = {
    "method": "INT4",
    "int4": {"rounding": "Tuned", "iterations": 2},
    "device": "CPU",
    "calibration": {"samples": 8, "sequenceLength": 32},
}


@dataclass
class Pod:
    """A worker's container and the folders that it may write to."""

    container: Container
    folder: Path

    @property
    def artifact(self) -> Path:
        return self.folder / "artifacts" / "out" / "tiny" / DIGEST

    @property
    def message(self) -> str:
        return (self.folder / "termination-log").read_text()


@pytest.fixture
def pod(container: Callable[..., Container], tmp_path: Path) -> Callable[..., Pod]:
    """Make a pod of an image that runs as `user`, with `spec` over a small, quick one."""

    def make(image: str = "gguf", user: int = USER, **spec: Any) -> Pod:
        for name in ("scratch", "artifacts"):
            (tmp_path / name).mkdir()
            os.chown(tmp_path / name, user, user)
        (tmp_path / "termination-log").touch()
        os.chown(tmp_path / "termination-log", user, user)
        shutil.copytree(TINY, tmp_path / "models" / "tiny-llama")
        request = {
            "namespace": "team", "name": "tiny", "digest": DIGEST, "spec": {**SPEC, **spec},
            "image": f"kubequant/{image}",
        }  # fmt: skip
        made = container(
            image,
            user=user,
            environment={"KUBEQUANT_RUN": json.dumps(request)},
            mounts={
                "/scratch": Mount(tmp_path / "scratch", writable=True),
                "/volumes/models": Mount(tmp_path / "models"),
                "/volumes/artifacts": Mount(tmp_path / "artifacts", writable=True),
                "/dev/termination-log": Mount(tmp_path / "termination-log", writable=True),
            },
        )
        return Pod(made, tmp_path)

    return make


@pytest.mark.parametrize(
    ("image", "user", "spec", "weights"),
    [
        pytest.param("gguf", USER, GGUF, "tiny-Q4_K_M.gguf", id="gguf"),
        pytest.param(
            "gguf", 1_000_650_000, GGUF, "tiny-Q4_K_M.gguf", id="gguf as a user of the cluster's"
        ),
        pytest.param("llmcompressor", USER, INT4, "model.safetensors", id="llmcompressor"),
        pytest.param("gptqmodel", USER, AWQ, "model.safetensors", id="gptqmodel"),
        pytest.param("transformers", USER, NF4, "model.safetensors", id="bitsandbytes"),
        pytest.param("transformers", USER, INT8, "model.safetensors", id="torchao"),
        pytest.param("transformers", USER, STUDENT, "model.safetensors", id="accelerate"),
        pytest.param("auto-round", USER, TUNED, "model.safetensors", id="auto-round"),
        pytest.param("onnxruntime", USER, ONNX, "model.onnx", id="onnxruntime"),
        pytest.param("awq-legacy", USER, AUTO_AWQ, "model.safetensors", id="awq-legacy"),
        pytest.param("tensorrt", USER, FP8, "model.safetensors", id="tensorrt over our base"),
    ],
)
def test_the_worker_in_the_image_quantizes_the_tiny_model(
    pod: Callable[..., Pod], image: str, user: int, spec: dict[str, Any], weights: str
) -> None:
    one = pod(image, user, **spec)

    done = one.container.run()

    assert done.returncode == ExitCode.PUBLISHED, done.stderr
    report = decode_termination(one.message)
    assert report.outcome == "Published"
    manifest = json.loads((one.artifact / "manifest.json").read_text())
    files = {file["path"]: file for file in manifest["files"]}
    assert weights in files
    for name, file in files.items():
        content = (one.artifact / name).read_bytes()
        assert len(content) == file["size"]
        assert hashlib.sha256(content).hexdigest() == file["sha256"]


def test_the_worker_in_the_image_ends_at_sigterm_and_says_so(pod: Callable[..., Pod]) -> None:
    one = pod(**GGUF, evaluation={"perplexity": {"maxTokens": 100_000}})
    process = one.container.start()
    assert process.stdout is not None
    for line in process.stdout:
        if '"stage": "Fetching"' in line:
            break
    asked = time.monotonic()

    one.container.signal("TERM")
    process.communicate(timeout=60)

    assert process.returncode == ExitCode.INTERRUPTED
    assert decode_termination(one.message).exit_code == ExitCode.INTERRUPTED
    assert time.monotonic() - asked < 30, "the kubelet would have killed it"


def test_a_request_that_is_none_ends_with_a_sentence(pod: Callable[..., Pod]) -> None:
    one = pod(method="GGUF", gguf={"types": ["Q99"]})

    done = one.container.run()

    assert done.returncode == ExitCode.BAD_REQUEST
    assert "KUBEQUANT_RUN is no RunRequest" in one.message
