"""The child that holds one ONNX model: `python -m kubequant_worker.methods.onnx_child`.

Measuring asks it what it asks a child of transformers, and the same code answers: ONNX Runtime's
session stands where a transformers model stands there. The parent's half is `onnx_runtime`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnxruntime
import torch
from transformers import AutoConfig, GenerationConfig

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods.transformers_child import Engine, main
from kubequant_worker.methods.transformers_model import CheckpointModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from kubequant_worker.methods.transformers_model import Loading

_MODEL_FILE = "model.onnx"
_PAST = "past_key_values."


@dataclass(slots=True)
class Layer:
    """The keys and values of one layer, shape (texts, heads, tokens, size)."""

    keys: torch.Tensor
    values: torch.Tensor


@dataclass(slots=True)
class Cache:
    """What is kept of the texts that were read, by transformers' names."""

    layers: list[Layer]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Keep each text `repeats` times."""
        for layer in self.layers:
            layer.keys = layer.keys.repeat_interleave(repeats, dim=0)
            layer.values = layer.values.repeat_interleave(repeats, dim=0)

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield keys and values in the order of the graph's inputs and outputs."""
        for layer in self.layers:
            yield layer.keys
            yield layer.values


@dataclass(frozen=True, slots=True)
class Computed:
    """What one call computes, by transformers' names."""

    logits: torch.Tensor
    past_key_values: Cache


class Decoder:
    """A session that is called as a transformers model is."""

    def __init__(self, folder: Path, *, trust_remote_code: bool, threads: int) -> None:
        """Load `model.onnx` in `folder`, which also holds its config.json.

        Raises:
            BadRequestError: ONNX Runtime does not load it.
        """
        self.config: Any = AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
        self.generation_config: Any = None
        if (folder / "generation_config.json").is_file():
            self.generation_config = GenerationConfig.from_pretrained(folder)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that wait by spinning are slow where others compute too; see `child`.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                folder / _MODEL_FILE, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its classes share no other base
            raise BadRequestError(
                f"ONNX Runtime does not load {_MODEL_FILE}: {' '.join(str(error).split())[:400]}",
                reason=FailureReason.VERIFICATION_FAILED,
            ) from error
        self._inputs = {one.name: one.shape for one in self._session.get_inputs()}

    def __call__(self, **words: Any) -> Computed:
        """Compute, as `forward` does."""
        return self.forward(**words)

    def forward(
        self,
        *,
        input_ids: torch.Tensor,
        past_key_values: Cache | None = None,
        use_cache: bool = True,  # noqa: ARG002 - the graph always gives its keys and values
    ) -> Computed:
        """Compute the tokens of texts that follow what `past_key_values` holds of each."""
        ids = input_ids.numpy()
        past = [one.numpy() for one in (past_key_values or self._nothing(len(ids))).tensors()]
        before = past[0].shape[2]
        after = before + ids.shape[1]
        given: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": np.ones((len(ids), after), np.int64),
            "position_ids": np.arange(before, after, dtype=np.int64)[None].repeat(len(ids), 0),
        }
        given = {name: value for name, value in given.items() if name in self._inputs}
        names = [name for name in self._inputs if name.startswith(_PAST)]
        logits, *kept = self._session.run(None, {**given, **dict(zip(names, past, strict=True))})
        return Computed(torch.from_numpy(logits), _cache([torch.from_numpy(one) for one in kept]))

    def _nothing(self, texts: int) -> Cache:
        """Return the keys and values of no tokens."""
        shapes = [shape for name, shape in self._inputs.items() if name.startswith(_PAST)]
        return _cache([torch.zeros(texts, shape[1], 0, shape[3]) for shape in shapes])


def _cache(tensors: Sequence[torch.Tensor]) -> Cache:
    """Return a cache of keys and values that alternate."""
    pairs = zip(tensors[::2], tensors[1::2], strict=True)
    return Cache([Layer(keys, values) for keys, values in pairs])


class OnnxModel(CheckpointModel):
    """A loaded ONNX model that answers what a runtime is asked."""

    def _prepare(self, path: Path, loading: Loading) -> None:
        """Do nothing: no architecture of transformers computes."""

    def _load(self, path: Path, loading: Loading) -> Decoder:
        return Decoder(
            path,
            trust_remote_code=loading.trust_remote_code,
            threads=torch.get_num_threads(),  # as this process was told to use
        )

    def _input_device(self, loading: Loading) -> torch.device:
        return torch.device(loading.device)


class OnnxChild(Engine):
    """The operations of the child."""

    MODEL: ClassVar[type[CheckpointModel]] = OnnxModel


if __name__ == "__main__":
    main(OnnxChild)
