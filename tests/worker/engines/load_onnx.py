"""Loads ONNX models with plain ONNX Runtime, as whoever serves them would, and measures by hand.

Run by the image's interpreter with {name: [original, folder]} as JSON on standard input. Nothing of
kubequant is imported; the original is computed by transformers. Prints {name: {perplexity,
original, divergence, stepwise, padded}} as JSON, where the last two are the largest differences of
a logit when the text is read token by token, and when it stands beside a longer one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import torch
from tests.worker.engines.load_checkpoints import main, of_original, perplexity, windows

STEPS, TEXT, PADDING = 6, 24, 9


class Session:
    """A loaded `model.onnx`."""

    def __init__(self, folder: str) -> None:
        self._session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
        self._shapes = {one.name: one.shape for one in self._session.get_inputs()}

    def __call__(
        self, ids: Any, past: dict[str, Any] | None = None, mask: Any = None
    ) -> tuple[Any, dict[str, Any]]:
        """Return the logits and what to hand in as the past of what follows."""
        if past is None:
            past = {
                name: np.zeros((len(ids), shape[1], 0, shape[3]), np.float32)
                for name, shape in self._shapes.items()
                if name.startswith("past")
            }
        before = past["past_key_values.0.key"].shape[2]
        if mask is None:
            mask = np.ones((len(ids), before + ids.shape[1]), np.int64)
        positions = (mask.cumsum(1) - 1).clip(0)[:, before:]
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        given = {name: value for name, value in given.items() if name in self._shapes}
        names = [one.name for one in self._session.get_outputs()]
        logits, *kept = self._session.run(None, {**given, **past})
        renamed = (name.replace("present", "past_key_values") for name in names[1:])
        return logits, dict(zip(renamed, kept, strict=True))


def stepwise(session: Session, ids: Any) -> float:
    """Return how far the logits are from those of all tokens at once, where each comes alone."""
    whole, _ = session(ids)
    logits, past = session(ids[:, :-STEPS])
    rows = [logits]
    for at in range(ids.shape[1] - STEPS, ids.shape[1]):
        logits, past = session(ids[:, at : at + 1], past)
        rows.append(logits)
    return float(np.abs(np.concatenate(rows, 1) - whole).max())


def padded(session: Session, ids: Any) -> float:
    """Return how far the logits of a text are from those that it has beside a longer one."""
    alone, _ = session(ids[:, PADDING:])
    beside = np.concatenate([np.zeros((1, PADDING), np.int64), ids[:, PADDING:]], 1)
    mask = np.ones((2, ids.shape[1]), np.int64)
    mask[1, :PADDING] = 0
    both, _ = session(np.concatenate([ids, beside]), mask=mask)
    return float(np.abs(both[1:, PADDING:] - alone).max())


def measured(original: str, folder: str) -> dict[str, float]:
    """Return a model's numbers against its original's."""
    ids, first, session = windows(original), of_original(original), Session(folder)
    rows = torch.cat([torch.from_numpy(session(row[None].numpy())[0]) for row in ids])
    rows = rows.log_softmax(-1)
    short = ids[:1, :TEXT].numpy()
    return {
        "perplexity": perplexity(rows, ids),
        "original": perplexity(first, ids),
        "divergence": (first.exp() * (first - rows)).sum(-1).mean().item(),
        "stepwise": stepwise(session, short),
        "padded": padded(session, short),
    }


if __name__ == "__main__":
    main(measured)
