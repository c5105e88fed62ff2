"""Mends the shards that an engine saved: types of what was not quantized, metadata, the index.

Engines load a checkpoint in the type that they compute in, and save it so. A shard is written again
piece by piece: saving is where memory is shortest, with the whole model still loaded. torch is
imported here, so only children import this module.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import torch

from kubequant_worker.sources.safetensors_header import (
    DTYPE_BITS,
    LENGTH_BYTES,
    TensorSpan,
    read_header,
    read_metadata,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

FLOATS: Final = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
# Read, converted and written at once; a multiple of every type's width.
PIECE_BYTES: Final = 16 << 20
_INDEX: Final = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class _Moved:
    """A tensor where the engine saved it, and the type that it is to have."""

    span: TensorSpan
    dtype: str

    @property
    def size(self) -> int:
        """Return how many bytes it will take."""
        count = (self.span.end - self.span.begin) * 8 // DTYPE_BITS[self.span.dtype]
        return count * DTYPE_BITS[self.dtype] // 8


def restore_types(
    target: Path,
    source: Path,
    label: Callable[[Mapping[str, str]], Mapping[str, str]] | None = None,
) -> None:
    """Give what was not quantized the types back in which `source` stores it, and mend the index.

    `label` returns what a shard's metadata is to be, given what the engine wrote. Where it labels,
    every shard is written again: safetensors orders metadata differently from run to run.

    Raises:
        OSError: The disk is full; the shard is then as the engine saved it.
    """
    before = {
        span.name: span.dtype for path in source.glob("*.safetensors") for span in read_header(path)
    }
    for path in sorted(target.glob("*.safetensors")):
        tensors = [_Moved(span, _restored(span, before)) for span in read_header(path)]
        changed = any(tensor.dtype != tensor.span.dtype for tensor in tensors)
        if changed or label is not None:
            metadata = read_metadata(path)
            _write(path, tensors, metadata if label is None else label(metadata))
    _correct_index(target)


def _restored(span: TensorSpan, before: Mapping[str, str]) -> str:
    """Return the type that a tensor is to have: that of `before`, where both are floats."""
    kind = before.get(span.name, span.dtype)
    return kind if kind in FLOATS and span.dtype in FLOATS else span.dtype


def _write(path: Path, tensors: Sequence[_Moved], metadata: Mapping[str, str]) -> None:
    """Write a shard again."""
    # The widest first, as the format asks: then each begins at a multiple of its width.
    ordered = sorted(tensors, key=lambda one: (-DTYPE_BITS[one.dtype], one.span.name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    position = 0
    for tensor in ordered:
        end = position + tensor.size
        shape = list(tensor.span.shape)
        header[tensor.span.name] = {
            "dtype": tensor.dtype, "shape": shape, "data_offsets": [position, end],
        }  # fmt: skip
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)  # what follows is aligned
    again = path.with_suffix(".again")
    try:
        with path.open("rb") as old, again.open("wb") as new:
            start = LENGTH_BYTES + int.from_bytes(old.read(LENGTH_BYTES), "little")
            new.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
            for tensor in ordered:
                old.seek(start + tensor.span.begin)
                for piece in _pieces(old, tensor.span.end - tensor.span.begin):
                    new.write(_converted(piece, tensor))
    except OSError:
        again.unlink(missing_ok=True)
        raise
    again.rename(path)


def _pieces(file: BinaryIO, size: int) -> Iterator[bytearray]:
    """Yield the next `size` bytes of a file."""
    while size:
        piece = bytearray(min(size, PIECE_BYTES))
        read = file.readinto(piece)  # type: ignore[attr-defined] # a buffered file has it
        if read != len(piece):
            raise OSError(f"{file.name}: it ended {size - read} bytes early")
        size -= read
        yield piece


def _converted(piece: bytearray, tensor: _Moved) -> Any:
    """Return the bytes of a part of a tensor in the type that it is to have."""
    if tensor.dtype == tensor.span.dtype:
        return piece
    values = torch.frombuffer(piece, dtype=FLOATS[tensor.span.dtype]).to(FLOATS[tensor.dtype])
    return values.view(torch.uint8).numpy()


def _correct_index(folder: Path) -> None:
    """Make the index's total the bytes that are there."""
    path = folder / _INDEX
    if path.is_file():
        index = json.loads(path.read_text(encoding="utf-8"))
        spans = (span for shard in folder.glob("*.safetensors") for span in read_header(shard))
        index["metadata"]["total_size"] = sum(span.end - span.begin for span in spans)
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
