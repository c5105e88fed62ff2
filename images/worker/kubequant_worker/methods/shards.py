"""Mends the shards that an engine saved: types of what was not quantized, metadata, the index.

Engines load a checkpoint in the type that they compute in, and save it so. A shard is written again
piece by piece: saving is where memory is shortest, with the whole model still loaded. torch is
imported here, so only children import this module.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import torch

from kubequant_worker.methods.tensor_copy import Copied, copy_tensors
from kubequant_worker.sources.model_folder import INDEX
from kubequant_worker.sources.safetensors_header import DTYPE_BITS, read_header, read_metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from kubequant_worker.sources.safetensors_header import TensorSpan

# transformers holds a shard's bytes a second time while it writes them.
SHARD_BYTES: Final = 2_000_000_000
FLOATS: Final = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


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
        tensors = [Copied(span, span.name, _restored(span, before)) for span in read_header(path)]
        changed = any(tensor.dtype != tensor.span.dtype for tensor in tensors)
        if changed or label is not None:
            metadata = read_metadata(path)
            _write(path, tensors, metadata if label is None else label(metadata))
    _correct_index(target)


def _restored(span: TensorSpan, before: Mapping[str, str]) -> str:
    """Return the type that a tensor is to have: that of `before`, where both are floats."""
    kind = before.get(span.name, span.dtype)
    return kind if kind in FLOATS and span.dtype in FLOATS else span.dtype


def _write(path: Path, tensors: Sequence[Copied], metadata: Mapping[str, str]) -> None:
    """Write a shard again."""
    # The widest first, as the format asks: then each begins at a multiple of its width.
    ordered = sorted(tensors, key=lambda one: (-DTYPE_BITS[one.dtype], one.name))
    again = path.with_suffix(".again")
    try:
        copy_tensors(path, again, ordered, dict(sorted(metadata.items())), _converted)
    except OSError:
        again.unlink(missing_ok=True)
        raise
    again.rename(path)


def _converted(piece: bytearray, tensor: Copied) -> Any:
    """Return the bytes of a part of a tensor in the type that it is to have."""
    if tensor.dtype == tensor.span.dtype:
        return piece
    values = torch.frombuffer(piece, dtype=FLOATS[tensor.span.dtype]).to(FLOATS[tensor.dtype])
    return values.view(torch.uint8).numpy()


def _correct_index(folder: Path) -> None:
    """Make the index's total the bytes that are there."""
    path = folder / INDEX
    if path.is_file():
        index = json.loads(path.read_text(encoding="utf-8"))
        spans = (span for shard in folder.glob("*.safetensors") for span in read_header(shard))
        index["metadata"]["total_size"] = sum(span.end - span.begin for span in spans)
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
