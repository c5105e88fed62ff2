"""A copy of a checkpoint with other tensors, written shard by shard so that memory does not grow.

For readers of formats that no library here computes with: each says what a plain tensor is, and
transformers loads the copy. torch is imported here, so only children import this module.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from kubequant_worker.methods.shards import SHARD_BYTES
from kubequant_worker.sources.model_folder import INDEX

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import torch


def begin(source: Path, folder: Path, config: Mapping[str, Any]) -> None:
    """Make `folder` anew, with all of `source` but its weights, and another config.json."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix != ".safetensors" and path.is_file():
            shutil.copyfile(path, folder / path.name)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / INDEX).unlink(missing_ok=True)


def write(tensors: Iterator[tuple[str, torch.Tensor]], folder: Path) -> None:
    """Write a checkpoint in shards, with its index."""
    index: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    number = size = 0

    def flush() -> None:
        nonlocal number, size
        name = f"model-{number:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(shard, name))
        shard.clear()
        number, size = number + 1, 0

    for name, tensor in tensors:
        shard[name] = tensor.contiguous()
        size += tensor.nbytes
        if size > SHARD_BYTES:
            flush()
    if shard:
        flush()
    content = {"metadata": {}, "weight_map": index}
    (folder / INDEX).write_text(json.dumps(content), encoding="utf-8")
