"""What `spec.tensorRT` holds: the parameters of method TensorRT; the others' stand in `params`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal, Self

from pydantic import Field, StrictInt

from kubequant.api.base import Rule, camel
from kubequant.api.fields import LabelValue
from kubequant.api.params import IgnoredModules, MethodParameters

if TYPE_CHECKING:
    from collections.abc import Mapping

ENGINE_LIMITS: Final = {
    "max_batch_size": 8,
    "max_input_length": 2048,
    "max_output_length": 512,
    "tensor_parallel": 1,
}
"""What a TensorRT-LLM engine is built for where the spec does not say."""
_ENGINE_FIELDS: Final = (*ENGINE_LIMITS, "gpu_product")


def _engine_precision(precision: str, why: str) -> Rule:
    return Rule(
        message=f"{precision} needs build: Engine, since {why}",
        holds=lambda p: p.build == "Engine" or p.precision != precision,
        cel=f"self.build == 'Engine' || self.precision != '{precision}'",
        field="precision",
    )


def _engine_field(name: str) -> Rule:
    return Rule(
        message="is only for an engine; remove it or set build: Engine",
        holds=lambda p: p.build == "Engine" or getattr(p, name) is None,
        cel=f"self.build == 'Engine' || !has(self.{camel(name)})",
        field=camel(name),
    )


GPU_PRODUCT_LABEL: Final = "nvidia.com/gpu.product"
"""The label by which NVIDIA's GPU feature discovery names a node's GPUs."""


class TensorRTParameters(MethodParameters):
    """Parameters of method TensorRT."""

    build: Literal["Engine", "Checkpoint"] = "Engine"
    """What is made: a checkpoint and an engine of it, for the GPU that builds it, or the checkpoint
    alone, which needs no GPU."""
    precision: Literal["FP8", "INT8", "INT4AWQ", "FP16"] = "FP8"
    """The type of weights and products. INT8 and FP16 are for engines only."""
    max_batch_size: Annotated[StrictInt, Field(ge=1, le=4096)] | None = None
    """Engine only: the most requests that it serves at once. Default 8."""
    max_input_length: Annotated[StrictInt, Field(ge=1, le=1_048_576)] | None = None
    """Engine only: the most tokens of a prompt. Default 2048."""
    max_output_length: Annotated[StrictInt, Field(ge=1, le=1_048_576)] | None = None
    """Engine only: the most tokens of an answer. Default 512."""
    tensor_parallel: Annotated[StrictInt, Field(ge=1, le=64)] | None = None
    """Engine only: over how many GPUs each layer is split. Default 1."""
    gpu_product: Annotated[LabelValue, Field(min_length=1)] | None = None
    """Engine only: the GPU that will serve it, by the node label nvidia.com/gpu.product, like
    NVIDIA-H100-80GB-HBM3; where absent, whichever GPU the pod gets."""
    ignore: IgnoredModules = ("lm_head",)
    """Modules that stay as they are, by name or by pattern."""

    rules: ClassVar[tuple[Rule, ...]] = (
        _engine_precision(
            "INT8", "no runtime reads its checkpoint, and transformers reads nonsense"
        ),
        _engine_precision("FP16", "the checkpoint would be the original's copy"),
        *(_engine_field(name) for name in _ENGINE_FIELDS),
    )

    @property
    def bits(self) -> int:
        """Return how many bits a quantized weight has."""
        return {"FP8": 8, "INT8": 8, "INT4AWQ": 4, "FP16": 16}[self.precision]

    @property
    def builds_engine(self) -> bool:
        """Say whether an engine is asked for."""
        return self.build == "Engine"

    def effective(self, *, on_cpu: bool) -> Self:  # noqa: ARG002 - the same on every device
        """Return the parameters with the limits of the engine, where there is to be one."""
        if not self.builds_engine:
            return self
        limits = {name: getattr(self, name) or default for name, default in ENGINE_LIMITS.items()}
        return self.model_copy(update=limits)

    def agrees_with(self, node_selector: Mapping[str, str]) -> bool:
        """Say whether a pod's selector names no other GPU than this one."""
        product = self.gpu_product
        return product is None or node_selector.get(GPU_PRODUCT_LABEL, product) == product
