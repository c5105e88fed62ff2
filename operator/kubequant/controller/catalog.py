"""Which image runs a method: a literal table by engine, and the sentence for what is not in it.

Which engine a method and a device get is the API's to say (`api.engines`), since the worker decides
by the same table. An image's key is looked up in the administrator's settings; a user never names
an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from kubequant.api.engines import (
    ACCELERATE,
    AUTO,
    AUTO_AWQ,
    AUTO_GPTQ,
    AUTO_ROUND,
    BITS_AND_BYTES,
    ENGINES,
    GPTQ_MODEL,
    LLAMA_CPP,
    LLM_COMPRESSOR,
    MODEL_OPT,
    ONNX_RUNTIME,
    TORCH,
    TORCH_AO,
    engine_choice,
)
from kubequant.controller.reasons import Reason, Refusal

if TYPE_CHECKING:
    from kubequant.api.spec import QuantizationJobSpec


class ImageKey(StrEnum):
    """The images that this version is made for, by the names of their folders."""

    GGUF = "gguf"
    LLMCOMPRESSOR = "llmcompressor"
    GPTQMODEL = "gptqmodel"
    TRANSFORMERS = "transformers"
    AUTO_ROUND = "auto-round"
    ONNXRUNTIME = "onnxruntime"
    GPTQ_LEGACY = "gptq-legacy"
    AWQ_LEGACY = "awq-legacy"
    TENSORRT = "tensorrt"


@dataclass(frozen=True, slots=True)
class Image:
    """What holds an engine: the image, and the engine's name for people."""

    key: ImageKey
    engine: str


@dataclass(frozen=True, slots=True)
class Entry:
    """What runs a spec: the image, the engine's name for people, and why this engine."""

    image: ImageKey
    engine: str
    reason: str


IMAGES: Final[dict[str, Image]] = {
    LLAMA_CPP: Image(ImageKey.GGUF, "llama.cpp"),
    LLM_COMPRESSOR: Image(ImageKey.LLMCOMPRESSOR, "llmcompressor"),
    GPTQ_MODEL: Image(ImageKey.GPTQMODEL, "gptqmodel"),
    ONNX_RUNTIME: Image(ImageKey.ONNXRUNTIME, "ONNX Runtime"),
    TORCH_AO: Image(ImageKey.TRANSFORMERS, "torchao"),
    BITS_AND_BYTES: Image(ImageKey.TRANSFORMERS, "bitsandbytes"),
    AUTO_ROUND: Image(ImageKey.AUTO_ROUND, "auto-round"),
    TORCH: Image(ImageKey.LLMCOMPRESSOR, "torch"),
    AUTO_GPTQ: Image(ImageKey.GPTQ_LEGACY, "AutoGPTQ"),
    AUTO_AWQ: Image(ImageKey.AWQ_LEGACY, "AutoAWQ"),
    ACCELERATE: Image(ImageKey.TRANSFORMERS, "accelerate"),
    MODEL_OPT: Image(ImageKey.TENSORRT, "ModelOpt"),
}
"""The image of each engine. The worker itself says in Preflight whether the device is there."""


def entry_for(spec: QuantizationJobSpec) -> Entry | Refusal:
    """Return what runs `spec`, whose method is not Auto, or why nothing does."""
    choice = engine_choice(spec)
    if choice is not None:
        image = IMAGES[choice.name]
        return Entry(image.key, image.engine, choice.reason)
    there = ", ".join(sorted(method.value for method in ENGINES))
    if spec.method in ENGINES:
        engine, device = getattr(spec.parameters(), "engine", AUTO), spec.effective_device()
        asked = f"engine {engine} on {device}" if engine != AUTO else f"device {device}"
        return Refusal(
            Reason.METHOD_UNAVAILABLE,
            f"spec.method: this version has no image that runs {spec.method} with {asked}",
            f"Leave engine and device to the method. Methods with an image: {there}.",
        )
    return Refusal(
        Reason.METHOD_UNAVAILABLE,
        f"spec.method: this version has no image for method {spec.method}",
        f"Methods with an image: {there}.",
    )
