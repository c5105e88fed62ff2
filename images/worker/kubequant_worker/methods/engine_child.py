"""The child's half of an engine that quantizes checkpoints: what all of them share.

An engine's own module (`llmcompressor_child` is one) subclasses `Work` and ends in `serve_engine`.
torch and transformers are imported here, so only children import this module. The parent's half is
`engine`.
"""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from kubequant_worker.methods import remote_code
from kubequant_worker.methods.child import Parent, serve
from kubequant_worker.methods.transformers_model import (
    bos_token,
    context_length,
    load_tokenizer,
    tokenize,
)
from kubequant_worker.sources.safetensors_header import read_header

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kubequant_worker.methods.child import Operation

# A shard is held in memory while its types are restored.
SHARD_BYTES: Final = 2_000_000_000
_FLOATS: Final = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
_LONGEST_SENTENCE: Final = 400


class Work(ABC):
    """The operations of the child."""

    def __init__(self, parent: Parent) -> None:
        """Answer to `parent`."""
        self._parent = parent

    def operations(self) -> Mapping[str, Operation]:
        """Return what the parent may ask for."""
        return {"tokenize": self.tokenize, "quantize": self.quantize}

    @abstractmethod
    def quantize(self, job: Mapping[str, Any]) -> list[str]:
        """Make the checkpoint that `job` (see `engine.EngineQuantizer.job`) describes.

        Returns notes.
        """

    def tokenize(
        self,
        path: str,
        trusted: bool,  # noqa: FBT001 - crosses a pipe
        texts: Sequence[str],
        special: bool,  # noqa: FBT001 - crosses a pipe
    ) -> dict[str, Any]:
        """Return each text's ids, the id that opens texts, and how long the model's context is."""
        remote_code.decide(trusted=trusted)
        tokenizer = load_tokenizer(Path(path), trust_remote_code=trusted)
        return {
            "ids": [tokenize(tokenizer, text, special=special) for text in texts],
            "bos_token": bos_token(tokenizer),
            "context_length": context_length(Path(path), trust_remote_code=trusted),
        }


def write_logits(model: Any, device: torch.device, probe: Path, target: Path) -> None:
    """Write what a model, its inputs on `device`, computes over the ids in `probe`."""
    ids = torch.from_numpy(np.load(probe).astype(np.int64))[None]
    with torch.inference_mode():
        rows = model(input_ids=ids.to(device)).logits[0]
    np.save(target, rows.float().cpu().numpy())


def restore_types(target: Path, source: Path) -> None:
    """Give what was not quantized the types back in which `source` stores it, and mend the index.

    Engines load a checkpoint in the type that they compute in, and save it so.
    """
    before = {
        span.name: span.dtype for path in source.glob("*.safetensors") for span in read_header(path)
    }
    for path in sorted(target.glob("*.safetensors")):
        _restore_shard(path, before)
    _correct_index(target)


def _restore_shard(path: Path, before: Mapping[str, str]) -> None:
    """Write a shard again with its unquantized tensors in the types that `before` has by name."""
    after = {span.name: span.dtype for span in read_header(path)}
    changed = {
        name: _FLOATS[before[name]]
        for name, kind in after.items()
        if kind in _FLOATS and before.get(name, kind) != kind and before[name] in _FLOATS
    }
    if not changed:
        return
    tensors = load_file(path)
    for name, kind in changed.items():
        tensors[name] = tensors[name].to(kind)
    again = path.with_suffix(".again")
    save_file(tensors, again, metadata={"format": "pt"})
    again.rename(path)


def _correct_index(folder: Path) -> None:
    """Make the index's total the bytes that are there."""
    path = folder / "model.safetensors.index.json"
    if path.is_file():
        index = json.loads(path.read_text(encoding="utf-8"))
        spans = (span for shard in folder.glob("*.safetensors") for span in read_header(shard))
        index["metadata"]["total_size"] = sum(span.end - span.begin for span in spans)
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def sentence(error: BaseException) -> str:
    """Return an engine's own words on one line, about as long as a message holds."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_SENTENCE else f"{text[:_LONGEST_SENTENCE]}..."


def serve_engine(kind: type[Work]) -> None:
    """Serve until the parent is gone. Arguments: socket, parent's pid, threads."""
    torch.set_num_threads(int(sys.argv[3]))
    torch.set_num_interop_threads(1)
    serve(sys.argv[1:], lambda parent: kind(parent).operations())
