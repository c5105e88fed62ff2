"""The child's half of an engine that quantizes checkpoints: what all of them share.

An engine's own module (`llmcompressor_child` is one) subclasses `Work` and ends in `serve_engine`.
torch and transformers are imported here, so only children import this module. The parent's half is
`engine`.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from transformers import GenerationConfig

from kubequant_worker.methods import remote_code
from kubequant_worker.methods.child import Parent, serve
from kubequant_worker.methods.shards import SHARD_BYTES, original_types, restore_types
from kubequant_worker.methods.transformers_model import (
    bos_token,
    context_length,
    load_tokenizer,
    tokenize,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from kubequant_worker.methods.child import Operation

_GENERATION: Final = "generation_config.json"
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


def save_pretrained(
    model: Any,
    target: Path,
    source: Path,
    label: Callable[[Mapping[str, str]], Mapping[str, str]] | None = None,
    **words: Any,
) -> None:
    """Let transformers save `model` into `target`, what was not quantized as `source` stores it.

    `label` is that of `shards.restore_types`; `words` go to the model's own `save_pretrained`.
    """
    with plain_generation(model, target), original_types(source, label):
        model.save_pretrained(target, max_shard_size=SHARD_BYTES, **words)
    restore_types(target, source, label)


def sentence(error: BaseException) -> str:
    """Return an engine's own words on one line, about as long as a message holds."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_SENTENCE else f"{text[:_LONGEST_SENTENCE]}..."


def serve_engine(kind: type[Work]) -> None:
    """Serve until the parent is gone. Arguments: socket, parent's pid, threads."""
    torch.set_num_threads(int(sys.argv[3]))
    torch.set_num_interop_threads(1)
    serve(sys.argv[1:], lambda parent: kind(parent).operations())
