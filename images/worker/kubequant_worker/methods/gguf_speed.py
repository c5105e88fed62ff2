"""How llama.cpp is timed: one text alone, then several that share their prompt.

Runs in the engine's child process only (`gguf_engine`); what is timed is decided in `stopwatch`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kubequant_worker.closing import Closing
from kubequant_worker.methods.gguf_context import Batch, Context, Piece, batch_tokens
from kubequant_worker.methods.gguf_llama import LoadedModel, top_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kubequant_worker.evaluation.performance import Trial
    from kubequant_worker.evaluation.runtime import TokenArray


class LlamaSubject(Closing):
    """Implements `stopwatch.Subject`. A context manager that frees its contexts, not the model."""

    def __init__(self, model: LoadedModel, trial: Trial) -> None:
        """Time `model`, with room for what `trial` asks for."""
        self._model = model
        length = min(trial.prompt_tokens + trial.new_tokens, model.context_length)
        self._size = batch_tokens(model.vocabulary_size)
        self._batch = Batch(self._size)
        self._context: Context | None = Context(model, length=length, sequences=1, batch=self._size)
        self._position = 0
        self._texts = 0
        self._first: list[int] = []
        self._prompt_length = 0

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
        """Return nothing: the image's llama.cpp computes on CPUs."""
        return ""

    def peak_gpu_bytes(self) -> int | None:
        """Return None: no GPU takes part."""
        return None

    def tokenize(self, text: str) -> TokenArray:
        """Return the ids of `text`."""
        return self._model.tokenize(text)

    def read(self, prompt: TokenArray) -> int:
        """Forget everything, read `prompt`, and return the token most likely to follow."""
        context = self._held()
        context.clear()
        for first in range(0, len(prompt), self._size):
            piece = Piece(0, first, prompt[first : first + self._size], 0)
            count = self._batch.fill([piece], wanted=False)
            self._batch.wanted[count - 1] = 1
            context.decode(self._batch)
            # Reading the row waits for what was computed.
            tokens = top_tokens(context.logits(1))
        self._position = len(prompt)
        return tokens[0]

    def step(self, token: int) -> int:
        """Read one more token and return the one most likely to follow."""
        return self.step_all([token])[0]

    def step_all(self, tokens: Sequence[int]) -> list[int]:
        """Read one more token of each text and return those most likely to follow."""
        context = self._held()
        pieces = [
            Piece(0, self._position, np.array([token], np.int32), sequence)
            for sequence, token in enumerate(tokens)
        ]
        rows = self._batch.fill(pieces)
        context.decode(self._batch)
        self._position += 1
        return top_tokens(context.logits(rows))

    def spread(self, prompt: TokenArray, size: int, steps: int) -> list[int] | str:
        """Read `prompt` once and let `size` texts go on from there."""
        if self._texts == size:
            if not all(self._held().forget_after(one, len(prompt)) for one in range(size)):
                return "this model's memory of a text cannot be taken back"
            self._position = len(prompt)
            return list(self._first)
        if size > self._size:
            return f"a batch of this model has at most {self._size} tokens"
        self.close()
        length = len(prompt) + size * steps
        self._context = Context(
            self._model, length=length, sequences=size, batch=self._size, shared=True
        )
        token = self.read(prompt)
        for sequence in range(1, size):
            self._context.branch(sequence)
        self._texts, self._first = size, [token] * size
        return list(self._first)

    def _held(self) -> Context:
        if self._context is None:
            raise RuntimeError("the model's context was freed")
        return self._context

    def close(self) -> None:
        """Free the contexts; a second call does nothing."""
        if self._context is not None:
            self._context.__exit__()
            self._context, self._texts = None, 0
