"""Which GPUs are here, asked of NVIDIA's driver itself: no library of an engine is imported.

The calls are those of the CUDA driver API
(https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__DEVICE.html).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

_NAME_BYTES = 256
# CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
_CAPABILITY = (75, 76)


@dataclass(frozen=True, slots=True)
class GPU:
    """One GPU by the driver's words; its compute capability tells the architecture."""

    name: str
    memory_bytes: int
    compute_capability: tuple[int, int] = (0, 0)


def gpus() -> tuple[GPU, ...]:
    """Return the GPUs that this process may use, none where there is no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    return tuple(_gpu(driver, number) for number in range(count.value))


def _gpu(driver: ctypes.CDLL, number: int) -> GPU:
    device, size = ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    driver.cuDeviceGet(ctypes.byref(device), number)
    driver.cuDeviceGetName(name, _NAME_BYTES, device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    major, minor = (_attribute(driver, device, which) for which in _CAPABILITY)
    return GPU(name.value.decode(errors="replace"), size.value, (major, minor))


def _attribute(driver: ctypes.CDLL, device: ctypes.c_int, which: int) -> int:
    value = ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(value), which, device)
    return value.value
