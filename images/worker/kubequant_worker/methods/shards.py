"""Writes shards as they are to be: types of what was not quantized, metadata, the index.

Engines load a checkpoint in the type that they compute in, and save it so. Where transformers saves
for them, `original_types` writes each shard right at once; what an engine wrote itself is mended by
`restore_types`. Both go piece by piece: saving is where memory is shortest, with the whole model
still loaded. torch is imported here, so only children import this module.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

import torch

from kubequant_worker.methods import tensor_copy
from kubequant_worker.methods.tensor_copy import Copied, copy_tensors
from kubequant_worker.sources.model_folder import INDEX
from kubequant_worker.sources.safetensors_header import DTYPE_BITS, read_header, read_metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from kubequant_worker.sources.safetensors_header import TensorSpan

# transformers holds a shard's bytes a second time while it writes them.
SHARD_BYTES: Final = 2_000_000_000
FLOATS: Final = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
_TYPES: Final[Mapping[torch.dtype, str]] = {
    **{dtype: name for name, dtype in FLOATS.items()},
    torch.float64: "F64", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@contextmanager
def original_types(
    source: Path, label: Callable[[Mapping[str, str]], Mapping[str, str]] | None = None
) -> Iterator[None]:
    """Let transformers' `save_pretrained` write shards as `restore_types` would make them.

    That then finds nothing to do but the index, and no shard is written twice. A shard with a type
    that is not known here is left to it.
    """
    from transformers import modeling_utils  # noqa: PLC0415 - older ones name it otherwise

    before = _stored(source)
    save: Any = modeling_utils.safe_save_file  # type: ignore[attr-defined]

    def saved(
        tensors: Mapping[str, torch.Tensor], path: str, metadata: Mapping[str, str] | None = None
    ) -> None:
        if any(tensor.dtype not in _TYPES for tensor in tensors.values()):
            save(tensors, path, metadata=metadata)
            return
        told = dict(metadata or {})
        _save(Path(path), tensors, before, told if label is None else label(told))

    with patch.object(modeling_utils, "safe_save_file", saved):
        yield


def _save(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    before: Mapping[str, str],
    metadata: Mapping[str, str],
) -> None:
    """Write tensors as a shard, in the types that they have in `before`."""
    types = {name: _restored(name, _TYPES[one.dtype], before) for name, one in tensors.items()}
    names = sorted(tensors, key=lambda name: _place(name, types[name]))
    sizes = {name: one.numel() * DTYPE_BITS[types[name]] // 8 for name, one in tensors.items()}
    described = [(name, types[name], tensors[name].shape, sizes[name]) for name in names]
    with path.open("wb") as file:
        file.write(tensor_copy.header(described, dict(sorted(metadata.items()))))
        for name in names:
            values = tensors[name].detach().reshape(-1)
            dtype = FLOATS.get(types[name], values.dtype)
            for first in range(0, len(values), tensor_copy.PIECE_BYTES // values.itemsize):
                piece = values[first : first + tensor_copy.PIECE_BYTES // values.itemsize]
                file.write(piece.to("cpu", dtype).view(torch.uint8).numpy().data)


def restore_types(
    target: Path,
    source: Path,
    label: Callable[[Mapping[str, str]], Mapping[str, str]] | None = None,
) -> None:
    """Give what was not quantized the types back in which `source` stores it, and mend the index.

    `label` returns what a shard's metadata is to be, given what the engine wrote. A shard is
    written again where it is not so, or not in order: safetensors orders metadata differently from
    run to run.

    Raises:
        OSError: The disk is full; the shard is then as the engine saved it.
    """
    before = _stored(source)
    for path in sorted(target.glob("*.safetensors")):
        tensors = [_as_stored(span, before) for span in read_header(path)]
        changed = any(tensor.dtype != tensor.span.dtype for tensor in tensors)
        metadata = read_metadata(path)
        wanted = sorted((metadata if label is None else label(metadata)).items())
        if changed or (label is not None and list(metadata.items()) != wanted):
            _write(path, tensors, dict(wanted))
    _correct_index(target)


def _stored(source: Path) -> dict[str, str]:
    """Return the type of each tensor of a checkpoint, by its name."""
    return {
        span.name: span.dtype for path in source.glob("*.safetensors") for span in read_header(path)
    }


def _as_stored(span: TensorSpan, before: Mapping[str, str]) -> Copied:
    return Copied(span, span.name, _restored(span.name, span.dtype, before))


def _restored(name: str, made: str, before: Mapping[str, str]) -> str:
    """Return the type that a tensor is to have: that of `before`, where both are floats."""
    kind = before.get(name, made)
    return kind if kind in FLOATS and made in FLOATS else made


def _write(path: Path, tensors: Sequence[Copied], metadata: Mapping[str, str]) -> None:
    """Write a shard again."""
    ordered = sorted(tensors, key=lambda one: _place(one.name, one.dtype))
    again = path.with_suffix(".again")
    try:
        copy_tensors(path, again, ordered, metadata, _converted)
    except OSError:
        again.unlink(missing_ok=True)
        raise
    again.rename(path)


def _place(name: str, dtype: str) -> tuple[int, str]:
    """Return by what a shard's tensors are sorted.

    The widest come first, as the format asks: then each begins at a multiple of its width.
    """
    return -DTYPE_BITS[dtype], name


def _converted(piece: memoryview, tensor: Copied) -> Any:
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
