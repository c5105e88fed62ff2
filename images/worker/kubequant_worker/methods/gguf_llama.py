"""llama.cpp through the raw binding: load, tokenize, decode windows, generate.

Runs in the engine's child process only (`gguf_engine`), where an abort of ggml ends nothing else.
The high-level `llama_cpp.Llama` is not used: it copies every row of logits and decodes one sequence
at a time.
"""

from __future__ import annotations

import ctypes
from collections import deque
from typing import TYPE_CHECKING, Any

import llama_cpp.llama_cpp as lib
import numpy as np

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.evaluation.runtime import FloatRows, Generation, Stops, TokenArray
from kubequant_worker.methods.gguf_context import Batch, Context, Piece, batch_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

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
        self.prefix_token = bos if bos >= 0 else int(lib.llama_vocab_eos(self._vocabulary))
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

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return what `tokens` say by themselves, special ones left out.

        Unlike `text`, a text of its own: the blank is gone that some tokenizers put before a word.
        """
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        room = 64 + 16 * len(tokens)
        while True:
            buffer = ctypes.create_string_buffer(room)
            flags = (True, False)  # special tokens left out, and not written as text
            size = lib.llama_detokenize(self._vocabulary, ids, len(tokens), buffer, room, *flags)
            if size >= 0:
                return buffer.raw[:size].decode("utf-8", errors="replace")
            room = -size

    def generate(self, prompts: Sequence[str], most: int) -> list[Generation]:
        """Return up to `most` greedy tokens for each prompt, all prompts computed side by side."""
        return self._continue([self._prompt_tokens(prompt) for prompt in prompts], most, ())

    def complete(
        self, starts: Sequence[TokenArray], most: int, stops: Sequence[str]
    ) -> list[Generation]:
        """Continue token ids instead of texts; see `Runtime.complete`."""
        return [
            Generation(one.tokens, self.detokenize(one.tokens), one.stopped)
            for one in self._continue(starts, most, stops)
        ]

    def _continue(
        self, starts: Sequence[TokenArray], most: int, stops: Sequence[str]
    ) -> list[Generation]:
        longest = max(len(tokens) for tokens in starts)
        size = batch_tokens(self.vocabulary_size)
        done: list[list[int]] = [[] for _ in starts]
        stopped = [False] * len(starts)
        batch = Batch(max(size, len(starts)))
        ends = Stops(stops, self.text)
        with Context(
            self, length=longest + most, sequences=len(starts), batch=batch.size
        ) as context:
            following = [
                self._read_prompt(context, batch, tokens, sequence)
                for sequence, tokens in enumerate(starts)
            ]
            active = list(range(len(starts)))
            while active:
                for sequence in active:
                    token = following[sequence]
                    stopped[sequence] = bool(lib.llama_vocab_is_eog(self._vocabulary, token))
                    if not stopped[sequence]:
                        done[sequence].append(token)
                        stopped[sequence] = ends.reached(done[sequence])
                active = [one for one in active if not stopped[one] and len(done[one]) < most]
                if active:
                    pieces = [self._next_piece(starts[one], done[one], one) for one in active]
                    rows = batch.fill(pieces)
                    context.decode(batch)
                    tops = top_tokens(context.logits(rows))
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
        return top_tokens(context.logits(1))[0]

    @staticmethod
    def _next_piece(start: TokenArray, done: Sequence[int], sequence: int) -> Piece:
        position = len(start) + len(done) - 1
        return Piece(0, position, np.array(done[-1:], np.int32), sequence)


def top_tokens(rows: FloatRows) -> list[int]:
    """Return the most likely token of each row.

    Raises:
        BadRequestError: The rows are not numbers.
    """
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
