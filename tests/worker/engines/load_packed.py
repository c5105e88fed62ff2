"""Measures checkpoints in the gptq and awq formats by the packed weights that their files hold.

Run by an image's interpreter with {name: [original, folder]} as JSON on standard input; prints
{name: {divergence}} as JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from kubequant_worker.methods.checkpoint_check import CHECK_TEXT
from kubequant_worker.methods.legacy_runtime_child import UnpackedModel
from kubequant_worker.methods.transformers_model import Loading


def log_probabilities(folder: str, scratch: str) -> torch.Tensor:
    """Return a checkpoint's next-token distributions over a short text."""
    model = UnpackedModel(Path(folder), Loading("cpu", "float32", spill=scratch))
    ids = model.tokenize(CHECK_TEXT, special=False)[: model.context_length]
    return torch.from_numpy(np.concatenate([rows for _, rows in model.rows(ids)])).log_softmax(-1)


def divergence(original: str, folder: str) -> float:
    """Return the mean divergence of a checkpoint from its original."""
    with tempfile.TemporaryDirectory() as scratch:
        first, rows = log_probabilities(original, scratch), log_probabilities(folder, scratch)
    return float((first.exp() * (first - rows)).sum(-1).mean())


def main() -> None:
    torch.set_num_threads(2)
    asked: dict[str, list[str]] = json.load(sys.stdin)
    print(json.dumps({name: {"divergence": divergence(*pair)} for name, pair in asked.items()}))


if __name__ == "__main__":
    main()
