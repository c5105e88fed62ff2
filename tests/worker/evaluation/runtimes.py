"""A runtime whose logits are given, for tests that compute what must come out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np

from kubequant_worker.evaluation.runtime import FloatRows, Generation, LogitRows, TokenArray

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Table:
    """A bigram model: the logits after a token are the token's row of a table."""

    name = "table"
    context_length = 64
    chat_template = None

    def __init__(self, table: FloatRows, *, bos_token: int | None = 0, batch: int = 7) -> None:
        self.table = table
        self.vocabulary_size = table.shape[1]
        self.bos_token = bos_token
        self.batch = batch

    def tokenize(self, texts: Sequence[str], *, special: bool = False) -> list[TokenArray]:
        del special
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]

    def logits(self, windows: Sequence[TokenArray]) -> Iterator[LogitRows]:
        buffer = np.empty((self.batch, self.vocabulary_size), np.float32)
        for index, tokens in enumerate(windows):
            for first in range(0, len(tokens), self.batch):
                piece = tokens[first : first + self.batch]
                buffer[: len(piece)] = self.table[piece]
                yield LogitRows(index, first, buffer[: len(piece)])
                buffer[:] = np.nan  # what is kept without a copy is ruined

    def generate(self, prompts: Sequence[str], max_new_tokens: int) -> list[Generation]:
        return [Generation((1,) * max_new_tokens, prompt, stopped=False) for prompt in prompts]

    def close(self) -> None:
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
