"""Loads checkpoints with plain transformers, as whoever serves them would, and measures by hand.

Run by an image's interpreter: `load_checkpoints.py ORIGINAL FOLDER...`. Nothing of kubequant is
imported. Prints {folder: {perplexity, divergence, text}} as JSON, the original under "original".
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

LENGTH, WINDOWS = 256, 24


def log_probabilities(folder: str, windows: torch.Tensor) -> torch.Tensor:
    """Return a checkpoint's next-token distributions, shape (windows, LENGTH, vocabulary)."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return torch.cat([model(row[None]).logits.log_softmax(-1) for row in windows])


def main() -> None:
    torch.set_num_threads(2)
    original, *folders = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    text = Path(json.__file__).with_name("decoder.py").read_text()
    text += Path(json.__file__).read_text()
    text += Path(torch.nn.functional.__file__).read_text()[:60_000]
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    windows = torch.tensor(ids[: LENGTH * WINDOWS]).reshape(WINDOWS, LENGTH)
    windows = torch.cat([torch.full((WINDOWS, 1), tokenizer.bos_token_id), windows[:, 1:]], 1)
    first = log_probabilities(original, windows)

    def measured(folder: str) -> dict[str, float]:
        rows = log_probabilities(folder, windows)
        picked = rows[:, :-1].gather(-1, windows[:, 1:, None])
        divergence = (first.exp() * (first - rows)).sum(-1)
        return {
            "perplexity": math.exp(-picked.mean().item()),
            "divergence": divergence.mean().item(),
        }

    found = {"original": measured(original)}
    for folder in folders:
        try:
            found[folder] = measured(folder)
        except (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError) as error:
            found[folder] = {"error": repr(error)[:300]}  # type: ignore[dict-item]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
