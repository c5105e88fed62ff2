"""How many bytes of a model's weights each device may hold, by a spec's `memory`. Pure.

What is bounded, `transformers_model` loads: the GPU takes what it may, the CPU's memory what is
left, the disk the rest. A device that has no bound holds nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kubequant.api.enums import Device, Offload
from kubequant.api.fields import quantity_bytes

if TYPE_CHECKING:
    from kubequant.api.choices import Memory

# torch and transformers in the child that measures, and again with an engine in another.
LIBRARIES_BYTES: Final = 2 << 30
# What a GPU's own libraries take of its memory.
GPU_CONTEXT_BYTES: Final = 1 << 30
# What a loaded model takes, activations included, for each byte of its weights.
BESIDE_ACTIVATIONS: Final = 1.2
_LEAST_BYTES: Final = 1 << 28


def gpu_cap(memory: Memory) -> dict[str | int, int]:
    """Return the bound that the spec itself sets to the GPU, empty where it sets none."""
    asked = memory.max_gpu_memory
    return {} if asked is None else {0: quantity_bytes(asked)}


def most_bytes(
    memory: Memory, device: Device, *, free_bytes: int, gpu_bytes: int
) -> dict[str | int, int] | None:
    """Return what each device may hold at most, by its name for accelerate; None for all of it.

    `free_bytes` is what of this machine's memory is free, `gpu_bytes` the whole memory of the GPU.
    """
    spills = memory.offload is not Offload.NONE
    # On a CPU nothing but the disk is left to spill to.
    room = max(_LEAST_BYTES, free_bytes - LIBRARIES_BYTES)
    on_cpu = room // 2 if memory.offload is Offload.DISK else room
    if device is Device.CPU:
        return {"cpu": on_cpu} if memory.offload is Offload.DISK else None
    cap = gpu_cap(memory)
    if not spills:
        return cap or None  # what does not fit was refused before anything was fetched
    on_gpu = max(0, int((gpu_bytes - GPU_CONTEXT_BYTES) / BESIDE_ACTIVATIONS))
    return {0: min(on_gpu, *cap.values()) if cap else on_gpu, "cpu": on_cpu}
