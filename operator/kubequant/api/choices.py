"""What a spec chooses by: the method, the device, the goal of Auto, what may be spilled."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import StrictBool

from kubequant.api.base import Model
from kubequant.api.fields import ByteQuantity


class Method(StrEnum):
    """The methods, and Auto, which chooses one of them by a goal."""

    INT8 = "INT8"
    INT4 = "INT4"
    FP8 = "FP8"
    GPTQ = "GPTQ"
    AWQ = "AWQ"
    BITS_AND_BYTES = "BitsAndBytes"
    GGUF = "GGUF"
    PRUNE = "Prune"
    DISTILL = "Distill"
    TENSOR_RT = "TensorRT"
    AUTO = "Auto"


class Device(StrEnum):
    """What a run computes on."""

    GPU = "GPU"
    CPU = "CPU"


class Offload(StrEnum):
    """Where weights may go that do not fit."""

    NONE = "None"
    CPU = "CPU"
    DISK = "Disk"


class Goal(Model):
    """What method Auto chooses by."""

    hardware: Literal["GPU", "CPU", "AppleSilicon"]
    """What will serve the quantized model."""
    priority: Literal["Quality", "Speed", "Balanced"]
    """What matters most."""


class Memory(Model):
    """What the engine may spill, and where."""

    offload: Offload = Offload.NONE
    """Where weights may go that do not fit on the device."""
    max_gpu_memory: ByteQuantity | None = None
    """The most memory to use of each GPU, like "20Gi"; where absent, all of it."""
    low_memory: StrictBool = False
    """Prefer slower ways that need less memory."""
