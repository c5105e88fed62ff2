"""Loads checkpoints with plain transformers, as whoever serves them would, and measures by hand.

Run by an image's interpreter with {name: [original, folder]} as JSON on standard input. Nothing of
kubequant is imported. Prints {name: {perplexity, original, divergence}} as JSON.
"""

from __future__ import annotations

import json
import math
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

LENGTH, WINDOWS = 256, 8


@cache
def windows(original: str) -> torch.Tensor:
    """Return token ids that open with BOS where there is one, shape (WINDOWS, at most LENGTH)."""
    tokenizer = AutoTokenizer.from_pretrained(original)
    length = min(LENGTH, AutoConfig.from_pretrained(original).max_position_embeddings)
    text = Path(json.__file__).read_text() + Path(torch.nn.functional.__file__).read_text()[:60_000]
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    cut = torch.tensor(ids[: length * WINDOWS]).reshape(WINDOWS, length)
    if tokenizer.bos_token_id is None:
        return cut
    return torch.cat([torch.full((WINDOWS, 1), tokenizer.bos_token_id), cut[:, 1:]], 1)


def log_probabilities(folder: str, ids: torch.Tensor) -> torch.Tensor:
    """Return a checkpoint's next-token distributions, shape (windows, LENGTH, vocabulary)."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(ids).logits.float().log_softmax(-1)


@cache
def of_original(folder: str) -> torch.Tensor:
    """Return the distributions of an original, computed once."""
    return log_probabilities(folder, windows(folder))


def perplexity(rows: torch.Tensor, ids: torch.Tensor) -> float:
    """Return exp of the mean loss."""
    return math.exp(-rows[:, :-1].gather(-1, ids[:, 1:, None]).mean().item())


def measured(original: str, folder: str) -> dict[str, float]:
    """Return a checkpoint's numbers against its original's."""
    ids, first = windows(original), of_original(original)
    rows = log_probabilities(folder, ids)
    divergence = (first.exp() * (first - rows)).sum(-1).mean().item()
    return {
        "perplexity": perplexity(rows, ids),
        "original": perplexity(first, ids),
        "divergence": divergence,
    }


def main(measure: Callable[[str, str], dict[str, float]]) -> None:
    """Answer standard input by what `measure` finds of (original, folder)."""
    torch.set_num_threads(2)
    asked: dict[str, list[str]] = json.load(sys.stdin)
    print(json.dumps({name: measure(*pair) for name, pair in asked.items()}))


if __name__ == "__main__":
    main(measured)
