"""A llama.cpp context and the batches that it computes, through the raw binding.

Runs in the engine's child process only; the model whose context it is stands in `gguf_llama`.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import llama_cpp.llama_cpp as lib
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kubequant_worker.evaluation.runtime import FloatRows, TokenArray
    from kubequant_worker.methods.gguf_llama import LoadedModel

# Tokens per call of llama_decode: enough for the matrix kernels, and few enough that the rows of
# logits (vocabulary x 4 bytes each) stay within the second bound.
BATCH_TOKENS = 512
LOGIT_BYTES = 128 * 1024 * 1024
_LEAST_BATCH = 32


def batch_tokens(vocabulary_size: int) -> int:
    """Return how many tokens to decode at once with rows of logits of this width."""
    return max(_LEAST_BATCH, min(BATCH_TOKENS, LOGIT_BYTES // (4 * vocabulary_size)))


def _pointer(array: npt.NDArray[Any], to: Any) -> Any:
    """Return a C pointer to an array's first value; the array must outlive it."""
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(to))


@dataclass(slots=True)
class Piece:
    """Consecutive tokens of one window in one batch."""

    window: int
    first: int
    tokens: TokenArray
    sequence: int


class Batch:
    """A `llama_batch` whose arrays are ours, so that numpy fills them."""

    def __init__(self, size: int) -> None:
        """Have room for `size` tokens."""
        self.size = size
        self.token = np.zeros(size, np.int32)
        self.position = np.zeros(size, np.int32)
        self.wanted = np.zeros(size, np.int8)
        self.sequence = np.zeros(size, np.int32)
        self._count = np.ones(size, np.int32)
        self._pointers = (self.sequence.ctypes.data + 4 * np.arange(size)).astype(np.uintp)
        self.raw: Any = lib.llama_batch()
        self.raw.token = _pointer(self.token, ctypes.c_int32)
        self.raw.pos = _pointer(self.position, ctypes.c_int32)
        self.raw.logits = _pointer(self.wanted, ctypes.c_int8)
        self.raw.n_seq_id = _pointer(self._count, ctypes.c_int32)
        self.raw.seq_id = _pointer(self._pointers, ctypes.POINTER(ctypes.c_int32))

    def fill(self, pieces: Sequence[Piece], *, wanted: bool = True) -> int:
        """Hold `pieces`, with logits for all their tokens or none; return how many those are."""
        at = 0
        for piece in pieces:
            count = len(piece.tokens)
            here = slice(at, at + count)
            self.token[here] = piece.tokens
            self.position[here] = np.arange(piece.first, piece.first + count)
            self.sequence[here] = piece.sequence
            self.wanted[here] = wanted
            at += count
        self.raw.n_tokens = at
        return at


class Context:
    """A llama.cpp context; a context manager that frees it."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        length: int,
        sequences: int,
        batch: int,
        threads: int = 0,
        shared: bool = False,
        eval_callback: Any = None,
    ) -> None:
        """Hold `sequences` of up to `length` tokens; compute with `threads` (0: the model's).

        Where they are `shared`, all sequences have `length` tokens together, and what they have in
        common is held once.
        """
        parameters = lib.llama_context_default_params()
        # Each sequence's part is padded to 256 by the library, so the whole must be a multiple for
        # each.
        parameters.n_ctx = -(-length // 256) * 256 * (1 if shared else sequences)
        parameters.kv_unified = shared
        parameters.n_batch = parameters.n_ubatch = batch
        parameters.n_seq_max = sequences
        parameters.n_outputs_max = parameters.n_outputs_max_per_seq = 0  # as many as the batch
        parameters.n_threads = parameters.n_threads_batch = threads or model.threads
        parameters.no_perf = True
        if eval_callback is not None:
            parameters.cb_eval = eval_callback
        self._model = model
        self.raw = lib.llama_init_from_model(model.raw, parameters)
        if not self.raw:
            raise MemoryError(
                f"llama.cpp could not make a context of {length} tokens: {model.log.text()}"
            )
        self.memory = lib.llama_get_memory(self.raw)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Free the context."""
        lib.llama_free(self.raw)

    def clear(self) -> None:
        """Forget every sequence."""
        if self.memory:
            lib.llama_memory_clear(self.memory, False)  # noqa: FBT003 - positional in the binding

    def branch(self, sequence: int) -> None:
        """Let `sequence` begin with all that sequence 0 holds."""
        if self.memory:
            lib.llama_memory_seq_cp(self.memory, 0, sequence, -1, -1)

    def forget_after(self, sequence: int, length: int) -> bool:
        """Keep the first `length` tokens of a sequence; False where its memory cannot."""
        return not self.memory or bool(lib.llama_memory_seq_rm(self.memory, sequence, length, -1))

    def decode(self, batch: Batch) -> None:
        """Compute `batch`."""
        code = lib.llama_decode(self.raw, batch.raw)
        if code != 0:
            raise RuntimeError(
                f"llama_decode returned {code} for {batch.raw.n_tokens} tokens: "
                f"{self._model.log.text()}"
            )

    def logits(self, rows: int) -> FloatRows:
        """Return the library's own rows of logits, valid until the next `decode`."""
        pointer = ctypes.cast(lib.llama_get_logits(self.raw), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, (rows, self._model.vocabulary_size))
