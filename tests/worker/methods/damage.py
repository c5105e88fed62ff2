"""Makers of GGUF files that load and are wrong: what a broken engine or disk would leave."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kubequant_worker.methods.gguf_file import Tensor, read_header

if TYPE_CHECKING:
    from pathlib import Path


def zeroed(path: Path) -> None:
    """Let the first layer's feed-forward weights be zeros."""
    tensors = _tensors(path)
    _write(
        path, tensors["blk.0.ffn_down.weight"], b"\0" * tensors["blk.0.ffn_down.weight"].size_bytes
    )


def swapped(path: Path) -> None:
    """Give the first and the last layer each other's weights, matrix by matrix."""
    tensors = _tensors(path)
    last = max(int(name.split(".")[1]) for name in tensors if name.startswith("blk."))
    for name, one in tensors.items():
        other = tensors.get(name.replace("blk.0.", f"blk.{last}."))
        if name.startswith("blk.0.") and other is not None and one.type == other.type:
            first, second = _read(path, one), _read(path, other)
            _write(path, one, second)
            _write(path, other, first)


def _tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors by name, their offsets counted from the file's start."""
    header = read_header(path)
    return {
        one.name: replace(one, offset=header.data_offset + one.offset) for one in header.tensors
    }


def _read(path: Path, tensor: Tensor) -> bytes:
    with path.open("rb") as file:
        file.seek(tensor.offset)
        return file.read(tensor.size_bytes)


def _write(path: Path, tensor: Tensor, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(tensor.offset)
        file.write(content)
