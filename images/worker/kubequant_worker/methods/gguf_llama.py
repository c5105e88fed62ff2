"""llama.cpp through the raw binding: load, tokenize, decode windows, generate.

Runs in the engine's child process only (`gguf_engine`), where an abort of ggml ends nothing else.
The high-level `llama_cpp.Llama` is not used: it copies every row of logits and decodes one sequence
at a time.
"""

from __future__ import annotations

import ctypes
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import llama_cpp.llama_cpp as lib
import numpy as np
import numpy.typing as npt

from kubequant.api.contract import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.evaluation.runtime import FloatRows, Generation, TokenArray

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

# Tokens per call of llama_decode: enough for the matrix kernels, and few enough that the rows of
# logits (vocabulary x 4 bytes each) stay within the second bound.
BATCH_TOKENS = 512
LOGIT_BYTES = 128 * 1024 * 1024
_LEAST_BATCH = 32
_MOST_SEQUENCES = 64

_WARN, _ERROR, _CONTINUED = 3, 4, 5  # enum ggml_log_level of ggml.h


class Log:
    """llama.cpp's log: the last warnings and errors kept, every line offered to a listener."""

    def __init__(self) -> None:
        """Take over the library's log."""
        self.last: deque[str] = deque(maxlen=12)
        self.listener: Callable[[str], None] | None = None
        self._level = 0
        self._callback = lib.llama_log_callback(self._take)
        lib.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _take(self, level: int, text: bytes, _data: object) -> None:
        line = text.decode("utf-8", errors="replace").strip()
        if level != _CONTINUED:
            self._level = level
        if line and self._level in {_WARN, _ERROR}:
            self.last.append(line)
        if self.listener is not None:
            self.listener(line)

    def text(self) -> str:
        """Return the kept lines."""
        return "\n".join(self.last)


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
        eval_callback: Any = None,
    ) -> None:
        """Hold `sequences` of up to `length` tokens; compute with `threads` (0: the model's)."""
        parameters = lib.llama_context_default_params()
        # Each sequence's part is padded to 256 by the library, so the whole must be a multiple for
        # each.
        parameters.n_ctx = -(-length // 256) * 256 * sequences
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


class LoadedModel:
    """One GGUF model in memory."""

    def __init__(self, path: Path, *, threads: int, log: Log) -> None:
        """Load `path`, mapped from disk.

        Raises:
            BadRequestError: llama.cpp does not load the file.
        """
        self.log = log
        self.threads = threads
        parameters = lib.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self.raw = lib.llama_model_load_from_file(str(path).encode(), parameters)
        if not self.raw:
            raise BadRequestError(
                f"llama.cpp does not load {path.name}: {log.text()}",
                reason=FailureReason.VERIFICATION_FAILED,
            )
        self._vocabulary = lib.llama_model_get_vocab(self.raw)
        self.vocabulary_size = int(lib.llama_vocab_n_tokens(self._vocabulary))
        self.context_length = int(lib.llama_model_n_ctx_train(self.raw))
        bos = int(lib.llama_vocab_bos(self._vocabulary))
        adds_bos = bool(lib.llama_vocab_get_add_bos(self._vocabulary))
        self.bos_token = bos if adds_bos and bos >= 0 else None
        template = lib.llama_model_chat_template(self.raw, None)
        self.chat_template = template.decode("utf-8", errors="replace") if template else None

    def close(self) -> None:
        """Free the model."""
        lib.llama_model_free(self.raw)

    def tokenize(self, text: str, *, special: bool = False) -> TokenArray:
        """Return the ids of `text`, nothing added.

        Special tokens written in it count only if `special`.
        """
        encoded = text.encode("utf-8", errors="replace")
        room = len(encoded) + 16
        ids = np.empty(room, np.int32)
        count = lib.llama_tokenize(
            self._vocabulary,
            encoded,
            len(encoded),
            ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            room,
            False,  # noqa: FBT003 - positional in the binding
            special,
        )
        if count < 0:
            raise RuntimeError(f"llama_tokenize needs {-count} tokens for {len(encoded)} bytes")
        return ids[:count].copy()

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens`; bytes that are no UTF-8 become replacement characters."""
        buffer = ctypes.create_string_buffer(512)
        pieces = []
        for token in tokens:
            size = lib.llama_token_to_piece(self._vocabulary, token, buffer, 512, 0, False)  # noqa: FBT003
            pieces.append(buffer.raw[: max(0, size)])
        return b"".join(pieces).decode("utf-8", errors="replace")

    def decode_windows(
        self, windows: Sequence[TokenArray], *, eval_callback: Any = None
    ) -> Iterator[tuple[list[tuple[int, int, int]], FloatRows]]:
        """Yield, batch by batch, ([(window, first position, tokens), …], those tokens' logits).

        Short windows share a batch as sequences of their own; long ones take several batches. The
        rows are the library's and valid until the next item.
        """
        longest = max(len(window) for window in windows)
        size = batch_tokens(self.vocabulary_size)
        sequences = max(1, min(_MOST_SEQUENCES, size // longest, len(windows)))
        batch = Batch(size)
        with Context(
            self, length=longest, sequences=sequences, batch=size, eval_callback=eval_callback
        ) as context:
            for start in range(0, len(windows), sequences):
                context.clear()
                group = windows[start : start + sequences]
                for pieces in _pieces(group, start, size):
                    count = batch.fill(pieces)
                    context.decode(batch)
                    spans = [(piece.window, piece.first, len(piece.tokens)) for piece in pieces]
                    yield spans, context.logits(count)

    def generate(self, prompts: Sequence[str], most: int) -> list[Generation]:
        """Return up to `most` greedy tokens for each prompt, all prompts computed side by side."""
        starts = [self._prompt_tokens(prompt) for prompt in prompts]
        longest = max(len(tokens) for tokens in starts)
        size = batch_tokens(self.vocabulary_size)
        done: list[list[int]] = [[] for _ in prompts]
        stopped = [False] * len(prompts)
        batch = Batch(max(size, len(prompts)))
        with Context(
            self, length=longest + most, sequences=len(prompts), batch=batch.size
        ) as context:
            following = [
                self._read_prompt(context, batch, tokens, sequence)
                for sequence, tokens in enumerate(starts)
            ]
            active = list(range(len(prompts)))
            while active:
                for sequence in active:
                    token = following[sequence]
                    stopped[sequence] = bool(lib.llama_vocab_is_eog(self._vocabulary, token))
                    if not stopped[sequence]:
                        done[sequence].append(token)
                active = [one for one in active if not stopped[one] and len(done[one]) < most]
                if active:
                    pieces = [self._next_piece(starts[one], done[one], one) for one in active]
                    rows = batch.fill(pieces)
                    context.decode(batch)
                    tops = self._top_tokens(context.logits(rows))
                    for sequence, token in zip(active, tops, strict=True):
                        following[sequence] = token
        return [
            Generation(tuple(tokens), self.text(tokens), stopped=ended)
            for tokens, ended in zip(done, stopped, strict=True)
        ]

    def _prompt_tokens(self, prompt: str) -> TokenArray:
        tokens = self.tokenize(prompt)
        if self.bos_token is not None:
            tokens = np.concatenate(([np.int32(self.bos_token)], tokens), dtype=np.int32)
        if not len(tokens):
            raise BadRequestError("spec.evaluation.generations.prompts: a prompt has no tokens")
        if len(tokens) >= self.context_length:
            raise BadRequestError(
                f"spec.evaluation.generations.prompts: a prompt has {len(tokens)} tokens; the "
                f"model's context is {self.context_length}"
            )
        return tokens

    def _read_prompt(
        self, context: Context, batch: Batch, tokens: TokenArray, sequence: int
    ) -> int:
        """Compute a prompt and return the token that follows it."""
        for first in range(0, len(tokens), batch.size):
            piece = Piece(0, first, tokens[first : first + batch.size], sequence)
            count = batch.fill([piece], wanted=False)
            batch.wanted[count - 1] = 1
            context.decode(batch)
        return self._top_tokens(context.logits(1))[0]

    @staticmethod
    def _next_piece(start: TokenArray, done: Sequence[int], sequence: int) -> Piece:
        position = len(start) + len(done) - 1
        return Piece(0, position, np.array(done[-1:], np.int32), sequence)

    @staticmethod
    def _top_tokens(rows: FloatRows) -> list[int]:
        if not np.isfinite(rows).all():
            raise BadRequestError(
                "the model computes logits that are not finite numbers",
                reason=FailureReason.VERIFICATION_FAILED,
            )
        return [int(token) for token in rows.argmax(axis=1)]


def _pieces(group: Sequence[TokenArray], start: int, size: int) -> Iterator[list[Piece]]:
    """Cut a group of windows into batches.

    All of a short group at once, a long window piece by piece.
    """
    if len(group) > 1:
        yield [Piece(start + one, 0, tokens, one) for one, tokens in enumerate(group)]
        return
    tokens = group[0]
    for first in range(0, len(tokens), size):
        yield [Piece(start, first, tokens[first : first + size], 0)]
