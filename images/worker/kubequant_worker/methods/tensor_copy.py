"""Copies tensors of one safetensors file into another, under other names or in other types.

They go in pieces: no tensor is held in memory, and neither torch nor an engine is needed here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from kubequant_worker.sources.safetensors_header import DTYPE_BITS, LENGTH_BYTES, tensor_offset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from io import BufferedReader
    from pathlib import Path

    from kubequant_worker.sources.safetensors_header import TensorSpan

# Read, converted and written at once; a multiple of every type's width.
PIECE_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class Copied:
    """A tensor where it lies, and the name and the type that it is to have."""

    span: TensorSpan
    name: str
    dtype: str

    @property
    def size(self) -> int:
        """Return how many bytes it will take."""
        count = (self.span.end - self.span.begin) * 8 // DTYPE_BITS[self.span.dtype]
        return count * DTYPE_BITS[self.dtype] // 8


def copy_tensors(
    source: Path,
    target: Path,
    tensors: Sequence[Copied],
    metadata: Mapping[str, str],
    convert: Callable[[memoryview, Copied], Any] | None = None,
) -> None:
    """Write these tensors of `source` to `target`, in this order.

    `convert` returns the bytes of a piece in the tensor's new type; without it no type may change.
    A piece is valid until the next is read.

    Raises:
        OSError: The disk is full, or `source` ended early.
    """
    described = [(one.name, one.dtype, one.span.shape, one.size) for one in tensors]
    buffer = memoryview(bytearray(PIECE_BYTES))
    with source.open("rb") as old, target.open("wb") as new:
        new.write(header(described, metadata))
        for tensor in tensors:
            old.seek(tensor_offset(source, tensor.span))
            for piece in _pieces(old, buffer, tensor.span.end - tensor.span.begin):
                new.write(piece if convert is None else convert(piece, tensor))


def header(
    tensors: Iterable[tuple[str, str, Sequence[int], int]], metadata: Mapping[str, str]
) -> bytes:
    """Return what a file begins with whose tensors (name, type, shape, bytes) lie in this order."""
    described: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, dtype, shape, size in tensors:
        offsets = [position, position + size]
        described[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        position += size
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)  # what follows is aligned
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _pieces(file: BufferedReader, buffer: memoryview, size: int) -> Iterator[memoryview]:
    """Yield the next `size` bytes of a file, each time in the same memory."""
    while size:
        piece = buffer[:size]
        read = file.readinto(piece)
        if read != len(piece):
            raise OSError(f"{file.name}: it ended {size - read} bytes early")
        size -= read
        yield piece
