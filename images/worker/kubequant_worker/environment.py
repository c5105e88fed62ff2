"""Where a run takes place: its machine, and the versions of what takes part."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kubequant import __version__
from kubequant.api.contract import GPU, Environment, Library
from kubequant_worker.methods.gpu import gpus
from kubequant_worker.methods.memory import limit_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

# The libraries whose versions decide what comes out, as far as the image holds them.
LIBRARIES: Final = (
    "kubequant",
    "lm_eval",
    "llama-cpp-python",
    "llmcompressor",
    "auto-round",
    "compressed-tensors",
    "gptqmodel",
    "optimum",
    "bitsandbytes",
    "torchao",
    "onnxruntime",
    "onnx",
    "onnxscript",
    "auto-gptq",
    "autoawq",
    "nvidia-modelopt",
    "accelerate",
    "numpy",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "boto3",
)


def environment(image: str, threads: int) -> Environment:
    """Return where this run takes place."""
    return Environment(
        image=image,
        platform=platform.platform(),
        cpu=cpu_name(),
        threads=threads,
        memory_bytes=limit_bytes(),
        gpus=tuple(GPU(name=gpu.name, memory_bytes=gpu.memory_bytes) for gpu in gpus()),
        versions=(Library(name="python", version=platform.python_version()), *_versions()),
    )


def _versions() -> Iterable[Library]:
    for name in LIBRARIES:
        try:
            yield Library(name=name, version=metadata.version(name))
        except metadata.PackageNotFoundError:
            if name == "kubequant":
                yield Library(name=name, version=__version__)


def cpu_name() -> str:
    """Return the processor's name, as the kernel has it."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
