"""The most GPU memory that was in use while something ran, asked of NVIDIA's management library.

The calls are those of NVML (https://docs.nvidia.com/deploy/nvml-api/): of the whole first device,
so that a child's memory counts. Where the library is not there nothing is known.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Self

_EVERY_SECONDS = 0.1


class _Memory(ctypes.Structure):
    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class PeakMemory:
    """Watches while its block runs; `bytes` is what was used above the beginning, None unknown."""

    def __init__(self) -> None:
        self.bytes: int | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._handle = ctypes.c_void_p()
        try:
            self._library: ctypes.CDLL | None = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            self._library = None
        if self._library and (
            self._library.nvmlInit_v2() != 0
            or self._library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(self._handle)) != 0
        ):
            self._library = None

    def _used(self) -> int:
        memory = _Memory()
        if self._library:
            self._library.nvmlDeviceGetMemoryInfo(self._handle, ctypes.byref(memory))
        return int(memory.used)

    def _watch(self) -> None:
        before = most = self._used()
        while not self._ended.wait(_EVERY_SECONDS):
            most = max(most, self._used())
            self.bytes = most - before

    def __enter__(self) -> Self:
        if self._library:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
