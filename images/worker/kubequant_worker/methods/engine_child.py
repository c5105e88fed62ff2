"""The child's half of an engine that quantizes checkpoints: what all of them share.

An engine's own module (`llmcompressor_child` is one) subclasses `Work` and ends in `serve_engine`.
torch and transformers are imported here, so only children import this module. The parent's half is
`engine`.
"""

from __future__ import annotations

import json
import shutil
import sys
from abc import ABC, abstractmethod
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

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
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from kubequant_worker.methods.child import Operation

# A shard is held in memory while its types are restored.
SHARD_BYTES: Final = 2_000_000_000
_GENERATION: Final = "generation_config.json"
FLOATS: Final = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
_LONGEST_SENTENCE: Final = 400
_COPIED_BYTES: Final = 16 << 20


class Work(ABC):
    """The operations of the child."""

    def __init__(self, parent: Parent) -> None:
        """Answer to `parent`."""
        self._parent = parent

    def operations(self) -> Mapping[str, Operation]:
        """Return what the parent may ask for."""
        return {"tokenize": self.tokenize, "quantize": self.quantize}

    @abstractmethod
    def quantize(self, job: Mapping[str, Any]) -> object:
        """Make the checkpoint that `job` (see `engine.EngineQuantizer.job`) describes.

        Returns notes, or whatever the engine's own half expects.
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


def bound_gpu(most_bytes: int | None) -> None:
    """Let this process take no more of the GPU's memory than that."""
    if most_bytes is not None and torch.cuda.is_available():
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, most_bytes / whole), 0)


def write_logits(model: Any, device: torch.device, probe: Path, target: Path) -> None:
    """Write what a model, its inputs on `device`, computes over the ids in `probe`."""
    ids = torch.from_numpy(np.load(probe).astype(np.int64))[None]
    with torch.inference_mode():
        rows = model(input_ids=ids.to(device)).logits[0]
    np.save(target, rows.float().cpu().numpy())


def restore_types(
    target: Path,
    source: Path,
    label: Callable[[Mapping[str, str]], Mapping[str, str]] | None = None,
) -> None:
    """Give what was not quantized the types back in which `source` stores it, and mend the index.

    Engines load a checkpoint in the type that they compute in, and save it so. `label` returns what
    a shard's metadata is to be, given what the engine wrote.
    """
    before = {
        span.name: span.dtype for path in source.glob("*.safetensors") for span in read_header(path)
    }
    for path in sorted(target.glob("*.safetensors")):
        with safe_open(path, framework="pt") as shard:
            metadata = shard.metadata() or {}
        _restore_shard(path, before, metadata)
        if label is not None:
            _write_metadata(path, label(metadata))
    _correct_index(target)


@contextmanager
def plain_generation(model: Any, target: Path) -> Iterator[None]:
    """Let transformers save `model` into `target` whatever it says of how it generates.

    transformers refuses to write words that contradict each other, like a temperature without
    sampling, which many models have. What the model was loaded with is written as it is; where the
    original has a file for it, that travels (`checkpoint`).
    """
    said = getattr(model, "generation_config", None)
    if said is None:  # what is the model's own code may not generate at all
        yield
        return
    plain: Any = GenerationConfig
    model.generation_config = plain()
    try:
        yield
    finally:
        model.generation_config = said
    said.to_json_file(target / _GENERATION)


def _restore_shard(path: Path, before: Mapping[str, str], metadata: Mapping[str, str]) -> None:
    """Write a shard again with its unquantized tensors in the types that `before` has by name."""
    after = {span.name: span.dtype for span in read_header(path)}
    changed = {
        name: FLOATS[before[name]]
        for name, kind in after.items()
        if kind in FLOATS and before.get(name, kind) != kind and before[name] in FLOATS
    }
    if not changed:
        return
    tensors = load_file(path)
    for name, kind in changed.items():
        tensors[name] = tensors[name].to(kind)
    again = path.with_suffix(".again")
    save_file(tensors, again, metadata=dict(metadata))
    again.rename(path)


def _write_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    """Write a shard again with this metadata, in order.

    safetensors writes it in an order that differs from run to run.
    """
    again = path.with_suffix(".again")
    with path.open("rb") as old, again.open("wb") as new:
        header = json.loads(old.read(int.from_bytes(old.read(8), "little")))
        header = {"__metadata__": dict(sorted(metadata.items())), **_tensors(header)}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)  # what follows is aligned
        new.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(old, new, _COPIED_BYTES)
    again.rename(path)


def _tensors(header: Mapping[str, Any]) -> dict[str, Any]:
    return {name: span for name, span in header.items() if name != "__metadata__"}


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
