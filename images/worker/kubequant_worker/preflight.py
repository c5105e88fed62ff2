"""What is refused before any gigabyte moves: what this worker cannot do, and what will not fit.

Reads the limits of the machine or container; fetches nothing. The store's own probe is in `stores`.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from kubequant.api.credentials import SECRET_FIELDS, secret_names
from kubequant.api.engines import AUTO, ENGINES
from kubequant.api.enums import Device, Method
from kubequant.api.fields import quantity_bytes
from kubequant.api.outcome import FailureReason
from kubequant.api.pod import CREDENTIAL_NAMES
from kubequant_worker.errors import BadRequestError, MemoryExhaustedError, UnavailableError
from kubequant_worker.methods.gpu import gpus

if TYPE_CHECKING:
    from pathlib import Path

    from kubequant.api.spec import Memory, QuantizationJobSpec
    from kubequant_worker.methods import Needs


def refuse_what_is_missing(spec: QuantizationJobSpec) -> None:
    """Refuse what would be asked in vain, before an engine is chosen.

    Raises:
        BadRequestError: The spec asks for something that this version does not do.
    """
    if spec.method is Method.GGUF and spec.effective_device() is Device.GPU:
        raise BadRequestError(
            "spec.device: GPU is not used by method GGUF, whose image holds llama.cpp for CPUs; "
            "remove spec.device",
            reason=FailureReason.DEVICE_NOT_FOUND,
        )
    if spec.effective_device() is Device.GPU and not gpus():
        raise BadRequestError(
            f"spec.device: method {spec.method} is to run on a GPU, and there is none here; "
            f"{_without_gpu(spec)}, or run it where NVIDIA's driver shows a GPU",
            reason=FailureReason.DEVICE_NOT_FOUND,
        )


def _without_gpu(spec: QuantizationJobSpec) -> str:
    """Return what to change in a spec that is to run on a CPU."""
    if spec.method is Method.TENSOR_RT and (spec.tensor_rt is None or spec.tensor_rt.builds_engine):
        return "set spec.tensorRT.build: Checkpoint and spec.device: CPU"
    engine = getattr(spec.parameters(), "engine", AUTO)
    bound = any(
        one.name == engine and Device.CPU not in one.devices for one in ENGINES[spec.method]
    )
    return f"name another engine than {engine}" if bound else "set spec.device: CPU"


def require_secrets(spec: QuantizationJobSpec, credentials: Path) -> None:
    """Refuse to start without the credentials that the spec names.

    A pod mounts a Secret that is not there as an empty folder, and this is tried again, since a
    Secret may be applied after the manifest that names it. Outside a pod there are no such folders.

    Raises:
        UnavailableError: A Secret is not there, or has none of the keys (AccessDenied).
    """
    for role, name in secret_names(spec).items():
        folder = credentials / role
        if folder.is_dir() and not any((folder / key).is_file() for key in CREDENTIAL_NAMES):
            raise UnavailableError(
                f"{SECRET_FIELDS[role]}: there is no Secret {name} in this namespace, or it has "
                f"none of the keys {', '.join(CREDENTIAL_NAMES)}",
                reason=FailureReason.ACCESS_DENIED,
                advice="Create that Secret with the keys that the address needs, or correct the "
                "name.",
            )


def check_room(needs: Needs, memory: Memory, scratch: Path, free_memory_bytes: int) -> list[str]:
    """Return warnings where it will be tight, and refuse what cannot fit.

    `memory` is the spec's; `free_memory_bytes` is what was free before any engine started.

    Raises:
        BadRequestError: `scratch` is too small (DiskFull).
        MemoryExhaustedError: There is less memory than the run needs, or it may use less.
    """
    free_bytes = shutil.disk_usage(scratch).free
    if needs.scratch_bytes > free_bytes:
        raise BadRequestError(
            f"The run needs {size(needs.scratch_bytes)} of working space, and {scratch} has "
            f"{size(free_bytes)} free",
            reason=FailureReason.DISK_FULL,
            advice="Set spec.pod.scratch.size (in a cluster) or --work-dir (here) to a larger one.",
        )
    if needs.memory_bytes > free_memory_bytes:
        raise MemoryExhaustedError(
            f"The run needs at least {size(needs.memory_bytes)} of memory and may use "
            f"{size(free_memory_bytes)}",
            advice="Set spec.pod.resources.limits.memory to more, or take a smaller model. "
            f"{needs.memory_advice}".rstrip(),
        )
    require_gpu_memory(needs, memory, max((gpu.memory_bytes for gpu in gpus()), default=0))
    if needs.comfortable_memory_bytes > free_memory_bytes:
        tight = (
            f"With {size(free_memory_bytes)} of memory the weights are read from disk again and "
            f"again; {size(needs.comfortable_memory_bytes)} would make the run faster."
        )
        return [tight]
    return []


def require_gpu_memory(needs: Needs, memory: Memory, gpu_bytes: int) -> None:
    """Refuse what does not fit into a GPU of `gpu_bytes`, or into what the spec allows of it.

    What is larger than allowed would be spilled, which nobody asked for.

    Raises:
        MemoryExhaustedError: It does not fit.
    """
    needed = needs.gpu_memory_bytes
    allowed = memory.max_gpu_memory
    if needed > gpu_bytes:
        raise MemoryExhaustedError(
            f"The run needs at least {size(needed)} of GPU memory, and the GPU has "
            f"{size(gpu_bytes)}",
            advice=f"Take a larger GPU. {needs.gpu_memory_advice}".rstrip(),
        )
    if allowed is not None and needed > quantity_bytes(allowed):
        raise MemoryExhaustedError(
            f"spec.memory.maxGPUMemory: the run needs at least {size(needed)} of GPU memory and "
            f"may use {size(quantity_bytes(allowed))}",
            advice=f"Raise it or remove it. {needs.gpu_memory_advice}".rstrip(),
        )


def size(amount: float) -> str:
    """Return a number of bytes as a person reads it, in powers of 1024."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if amount < 1024:  # noqa: PLR2004 -- the step between the units
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"
