"""Quantizing one GGUF file into another, by llama.cpp's own quantizer.

Runs in the engine's child process only (`gguf_engine`): a call cannot be interrupted within a
tensor, but the child can be killed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from typing import TYPE_CHECKING

import llama_cpp.llama_cpp as lib

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from kubequant_worker.methods.gguf_llama import Log

_TENSOR_LINE = re.compile(r"\[\s*(\d+)/\s*(\d+)\]\s+(\S+)")


def quantize(
    source: Path,
    target: Path,
    *,
    file_type: int,
    output_type: int | None,
    embedding_type: int | None,
    importance: dict[str, npt.NDArray[np.float32]] | None,
    threads: int,
    low_memory: bool,
    log: Log,
    on_tensor: Callable[[int, int, str], None],
) -> None:
    """Write `source` at another level to `target`.

    `on_tensor` gets (number, of, name) as each is begun.

    `importance` maps tensor names to one weight per column (per expert and column for experts).

    Raises:
        OSError: The disk is full.
        RuntimeError: llama.cpp refuses, with its log.
    """
    parameters = lib.llama_model_quantize_default_params()
    parameters.nthread = threads
    parameters.ftype = file_type
    parameters.allow_requantize = False
    if output_type is not None:
        parameters.output_tensor_type = output_type
    if embedding_type is not None:
        parameters.token_embedding_type = embedding_type
    if low_memory:
        parameters.max_buf_size = 256 * 1024 * 1024
    if importance is not None:
        # The array ends with an entry of zeros, as the C side looks for a name that is null.
        entries = (lib.llama_model_imatrix_data * (len(importance) + 1))()
        for entry, (name, values) in zip(entries, importance.items(), strict=False):
            entry.name = name.encode()
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            entry.size = values.size
        parameters.imatrix = entries

    def listen(line: str) -> None:
        if found := _TENSOR_LINE.match(line):
            on_tensor(int(found[1]), int(found[2]), found[3])

    log.listener = listen
    try:
        code = lib.llama_model_quantize(
            str(source).encode(), str(target).encode(), ctypes.byref(parameters)
        )
    finally:
        log.listener = None
    if code != 0 and "iostream error" in log.text():
        # All that std::ofstream says of a failed write; a full disk is what makes writes fail.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
    if code != 0:
        raise RuntimeError(f"llama_model_quantize returned {code}: {log.text()}")
