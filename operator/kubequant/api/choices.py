"""What a spec weighs: the goal that Auto chooses by, and what may be spilled."""

from __future__ import annotations

from typing import Literal

from pydantic import StrictBool

from kubequant.api.base import Model
from kubequant.api.enums import Offload
from kubequant.api.fields import ByteQuantity


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
