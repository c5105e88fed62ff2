"""Computes with checkpoints as the worker measures them, on a CPU.

Run by an image's interpreter with {name: folder} as JSON on standard input. Prints {name: {digest,
half}} as JSON: the SHA-256 of the logits over some ids, and whether all are bfloat16 numbers.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from kubequant_worker.methods.transformers_runtime import TransformersEngine, TransformersRuntime

LOADING = {"device": "cpu", "dtype": "float32"}
IDS = np.arange(3, 99, dtype=np.int32)


def computed(folder: str) -> dict[str, object]:
    """Return what a checkpoint's logits are like."""
    found, half = hashlib.sha256(), True
    engine = TransformersEngine(threads=2)
    try:
        runtime = TransformersRuntime(engine, Path(folder), LOADING)
        for piece in runtime.logits([IDS]):
            assert np.isfinite(piece.rows).all()
            found.update(piece.rows.tobytes())
            half &= not (piece.rows.view(np.uint32) & 0xFFFF).any()
    finally:
        engine.close()
    return {"digest": found.hexdigest(), "half": half}


def main() -> None:
    asked: dict[str, str] = json.load(sys.stdin)
    print(json.dumps({name: computed(folder) for name, folder in asked.items()}))


if __name__ == "__main__":
    main()
