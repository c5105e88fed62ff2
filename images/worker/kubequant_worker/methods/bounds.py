"""How many bytes a run takes, and what of a model's weights each device may hold. Pure.

What is bounded, `transformers_model` loads: the GPU takes what it may, the CPU's memory what is
left, the disk the rest. A device that has no bound holds nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kubequant.api.enums import Device, Offload
from kubequant.api.fields import quantity_bytes
from kubequant_worker.evaluation.perplexity import KEPT_TOKENS
from kubequant_worker.methods import Needs

if TYPE_CHECKING:
    from kubequant.api.choices import Memory

# torch and transformers in the child that measures, and again with an engine in another.
LIBRARIES_BYTES: Final = 2 << 30
# What a GPU's own libraries take of its memory.
GPU_CONTEXT_BYTES: Final = 1 << 30
# What a loaded model takes, activations included, for each byte of its weights.
BESIDE_ACTIVATIONS: Final = 1.2
_LEAST_BYTES: Final = 1 << 28
_LARGEST_VOCABULARY: Final = 262_144
_LAYER_BY_LAYER: Final = "spec.memory.offload: CPU brings one layer at a time to the GPU."


def kept_logits_bytes(weights: int) -> int:
    """Return what the original's kept logits take at most, by the bytes of its weights."""
    return min(KEPT_TOKENS * _LARGEST_VOCABULARY * 2, 8 * weights)


def checkpoint_needs(
    memory: Memory,
    *,
    on_gpu: bool,
    files: int,
    weights: int,
    loaded: int,
    spilled: int,
    made: int,
) -> Needs:
    """Return what a run takes that makes one checkpoint of another.

    All in bytes: `files` of the model, of which `weights`; those as they are `loaded`; what of them
    stays in memory where they are `spilled` to disk; and what is `made`.
    """
    spills = memory.offload is Offload.DISK
    # A layer's Hessians and the activations between layers grow with a layer, not the model.
    whole = int(LIBRARIES_BYTES + BESIDE_ACTIVATIONS * loaded)
    with_disk = LIBRARIES_BYTES + spilled
    on_the_gpu = 0
    if on_gpu and memory.offload is Offload.NONE:
        on_the_gpu = int(GPU_CONTEXT_BYTES + BESIDE_ACTIVATIONS * weights)
    advice = ""
    if not spills and with_disk < whole:
        gib = with_disk / (1 << 30)
        advice = f"spec.memory.offload: Disk would make do with {gib:.1f} GiB."
    return Needs(
        scratch_bytes=int(
            files + made * 1.25 + (loaded if spills else 0) + kept_logits_bytes(weights)
        ),
        memory_bytes=min(with_disk, whole) if spills else whole,
        comfortable_memory_bytes=whole,
        gpu_memory_bytes=on_the_gpu,
        memory_advice=advice,
        gpu_memory_advice=_LAYER_BY_LAYER if on_the_gpu else "",
    )


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
