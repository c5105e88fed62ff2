"""Reads what a GGUF file says about itself, and writes a small one: the importance matrix.

Only the header is read, never the weights. Format: docs/gguf.md of ggml-org/ggml, version 3,
little-endian.
"""

from __future__ import annotations

import mmap
import os
import shutil
import struct
from dataclasses import dataclass
from functools import reduce
from operator import mul
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorType:
    """A ggml type: how many values make a block, and how many bytes it takes."""

    name: str
    block_values: int
    block_bytes: int


# ggml/include/ggml.h (enum ggml_type) and the block structs of ggml-common.h.
TENSOR_TYPES: dict[int, TensorType] = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    24: TensorType("I8", 1, 1),
    25: TensorType("I16", 1, 2),
    26: TensorType("I32", 1, 4),
    27: TensorType("I64", 1, 8),
    28: TensorType("F64", 1, 8),
    30: TensorType("BF16", 1, 2),
}
TYPE_NUMBERS: dict[str, int] = {kind.name: number for number, kind in TENSOR_TYPES.items()}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor. `shape` is in ggml's order: the first number is the width of a row."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int

    @property
    def row_width(self) -> int:
        """Return how many values a row holds: what a block has to divide."""
        return self.shape[0] if self.shape else 1

    @property
    def size_bytes(self) -> int:
        """Return the bytes of the tensor's data, without padding."""
        return reduce(mul, self.shape, 1) // self.type.block_values * self.type.block_bytes


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """A file's metadata and its tensors in the order of the file.

    `data_offset` is where their data starts.
    """

    metadata: Mapping[str, Any]
    tensors: tuple[Tensor, ...]
    data_offset: int

    @property
    def weight_bytes(self) -> int:
        """Return the bytes of all tensors' data."""
        return sum(tensor.size_bytes for tensor in self.tensors)


class _Cursor:
    """A position in the mapped file."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def take(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def string(self) -> str:
        length = self.take("<Q")
        text = self.data[self.at : self.at + length]
        self.at += length
        return text.decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _BOOL:
            return bool(self.take("<B"))
        if kind == _ARRAY:
            inner, count = self.take("<I"), self.take("<Q")
            return [self.value(inner) for _ in range(count)]
        return self.take(_SCALARS[kind])


def read_header(path: Path) -> GGUFHeader:
    """Return what the GGUF file `path` says about itself.

    Raises:
        ValueError: It is no GGUF file of version 2 or 3.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(data)
        if data[:4] != MAGIC:
            raise ValueError(f"{path.name} is no GGUF file")
        cursor.at = 4
        version = cursor.take("<I")
        if version not in {2, VERSION}:
            raise ValueError(f"{path.name} has GGUF version {version}; 2 and {VERSION} are known")
        tensor_count, pair_count = cursor.take("<Q"), cursor.take("<Q")
        metadata = {cursor.string(): cursor.value(cursor.take("<I")) for _ in range(pair_count)}
        tensors = tuple(_tensor(cursor) for _ in range(tensor_count))
        alignment = int(metadata.get("general.alignment", ALIGNMENT))
        return GGUFHeader(metadata, tensors, _padded(cursor.at, alignment))


def _tensor(cursor: _Cursor) -> Tensor:
    name = cursor.string()
    shape = tuple(cursor.take("<Q") for _ in range(cursor.take("<I")))
    number = cursor.take("<I")
    kind = TENSOR_TYPES.get(number) or TensorType(f"type {number}", 1, 0)
    return Tensor(name, shape, kind, cursor.take("<Q"))


def _padded(size: int, alignment: int = ALIGNMENT) -> int:
    return -(-size // alignment) * alignment


def read_float_tensors(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Return all F32 tensors of a small GGUF file by name.

    Shaped as numpy has it (rows last come first).
    """
    header = read_header(path)
    data = path.read_bytes()
    return {
        tensor.name: np.frombuffer(
            data, "<f4", reduce(mul, tensor.shape, 1), header.data_offset + tensor.offset
        ).reshape(tensor.shape[::-1])
        for tensor in header.tensors
        if tensor.type.name == "F32"
    }


def write_float_tensors(
    path: Path,
    metadata: Mapping[str, str | int | Sequence[str]],
    tensors: Mapping[str, npt.NDArray[np.float32]],
) -> None:
    """Write a GGUF file of F32 tensors.

    Metadata are strings, unsigned 32-bit integers and lists of strings.
    """
    with path.open("wb") as file:
        file.write(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata)))
        for key, value in metadata.items():
            file.write(_string(key) + _pair_value(value))
        offset = 0
        for name, array in tensors.items():
            shape = array.shape[::-1]
            file.write(_string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
            file.write(struct.pack("<IQ", TYPE_NUMBERS["F32"], offset))
            offset += _padded(array.nbytes)
        _pad(file)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array, "<f4").data)
            _pad(file)


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _pair_value(value: str | int | Sequence[str]) -> bytes:
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    head = struct.pack("<IIQ", _ARRAY, _STRING, len(value))
    return head + b"".join(_string(text) for text in value)


def _pad(file: BinaryIO) -> None:
    file.write(b"\0" * (_padded(file.tell()) - file.tell()))


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`.

    Or a copy of it where they are on different volumes.
    """
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
