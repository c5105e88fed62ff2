"""How transformers is timed: one text alone, then several that begin with the same prompt.

torch is imported here, so only children import this module (`transformers_child`); what is timed is
decided in `stopwatch`.
"""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kubequant_worker.methods.memory import available_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kubequant_worker.evaluation.runtime import TokenArray
    from kubequant_worker.methods.transformers_model import CheckpointModel

# A prompt goes through in pieces of so many tokens, so that no step holds a long one's activations.
_PIECE_TOKENS = 2048
# What batches may take of the memory that is left.
_MOST_SHARE = 0.5


class CheckpointSubject:
    """Implements `stopwatch.Subject`."""

    def __init__(self, model: CheckpointModel) -> None:
        """Time `model`."""
        self._model = model
        # Nobody who serves a model computes the logits of a whole prompt.
        words = inspect.signature(model.model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in words else {}
        self._cache: Any = None
        self._whole: list[int] = []
        self._kept: tuple[int, Any] | None = None

    @property
    def context_length(self) -> int:
        """Return how many tokens the model was trained to see."""
        return self._model.context_length

    @property
    def opening(self) -> Sequence[int]:
        """Return the ids that open every text."""
        return [] if self._model.bos_token is None else [self._model.bos_token]

    @property
    def gpu(self) -> str:
        """Return the name of the GPU that computes, empty on a CPU."""
        device = self._model.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else ""

    def peak_gpu_bytes(self) -> int | None:
        """Return the most GPU memory that torch had reserved, on all GPUs; None on a CPU."""
        if self._model.device.type != "cuda":
            return None
        devices = range(torch.cuda.device_count())
        return sum(torch.cuda.max_memory_reserved(device) for device in devices)

    def tokenize(self, text: str) -> TokenArray:
        """Return the ids of `text`."""
        return self._model.tokenize(text, special=False)

    def read(self, prompt: TokenArray) -> int:
        """Forget everything, read `prompt`, and return the token most likely to follow."""
        self._cache, self._whole = None, prompt.tolist()
        ids = torch.as_tensor(prompt.astype(np.int64), device=self._model.device)[None]
        tokens = [0]
        for first in range(0, ids.shape[1], _PIECE_TOKENS):
            tokens = self._forward(ids[:, first : first + _PIECE_TOKENS])
            if self._cache is None and ids.shape[1] > _PIECE_TOKENS:
                tokens = self._forward(ids)  # a model that keeps nothing reads all at once
                break
        return tokens[0]

    def step(self, token: int) -> int:
        """Read one more token and return the one most likely to follow."""
        self._whole.append(token)
        words = [token] if self._cache is not None else self._whole
        return self._forward(torch.tensor([words], device=self._model.device))[0]

    def spread(self, prompt: TokenArray, size: int, steps: int) -> list[int] | str:
        """Copy what was read of `prompt` for each of `size` texts."""
        if self._kept is None:
            token = self.read(prompt)
            if not hasattr(self._cache, "batch_repeat_interleave"):
                return "what this model keeps of a text cannot be copied"
            self._kept = token, self._cache
        token, kept = self._kept
        # Growing a cache copies it, so that for a moment it is there twice.
        needed = 2 * size * _cache_bytes(kept) * (len(prompt) + steps) // len(prompt)
        if needed > _MOST_SHARE * self._free_bytes():
            return f"the texts would take {needed >> 20} MiB, more than half of what is free"
        self._cache = copy.deepcopy(kept)
        self._cache.batch_repeat_interleave(size)
        return [token] * size

    def step_all(self, tokens: Sequence[int]) -> list[int]:
        """Read one more token of each text and return those most likely to follow."""
        return self._forward(torch.tensor([[one] for one in tokens], device=self._model.device))

    def _forward(self, ids: torch.Tensor) -> list[int]:
        with torch.inference_mode():
            output = self._model.model(
                input_ids=ids, past_key_values=self._cache, use_cache=True, **self._last_only
            )
            self._cache = getattr(output, "past_key_values", None)
            # Fetching the numbers waits for what was computed.
            tokens: list[int] = output.logits[:, -1].argmax(dim=-1).tolist()
        return tokens

    def _free_bytes(self) -> int:
        if self._model.device.type == "cuda":
            return int(torch.cuda.mem_get_info(self._model.device)[0])
        return available_bytes()


def _cache_bytes(cache: Any) -> int:
    """Return the bytes of the keys and values that a cache holds."""
    tensors = [
        part
        for layer in getattr(cache, "layers", ())
        for part in (getattr(layer, "keys", None), getattr(layer, "values", None))
        if isinstance(part, torch.Tensor)
    ]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
