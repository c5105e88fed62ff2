"""The steps of a GGUF quantization as people do them by hand: one small program for each step.

    python -m tests.bench.by_hand quantize SOURCE TARGET TYPE
    python -m tests.bench.by_hand perplexity MODEL TEXT TOKENS

The peer of `bench_pipeline`: the same engine through the same binding, used as its documentation
shows.
"""

from __future__ import annotations

import sys
from pathlib import Path

import llama_cpp
import numpy as np

CONTEXT = 512


def quantize(source: str, target: str, kind: str) -> None:
    """Write `source` quantized as `kind` to `target`."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    code = llama_cpp.llama_model_quantize(source.encode(), target.encode(), parameters)
    if code != 0:
        raise SystemExit(f"llama_model_quantize failed with {code}")


def perplexity(model: str, text: str, tokens: str) -> None:
    """Print the perplexity of `model` over the first `tokens` tokens of the file `text`."""
    llama = llama_cpp.Llama(
        model, n_ctx=CONTEXT, n_batch=CONTEXT, logits_all=True, verbose=False, n_threads=2
    )
    ids = llama.tokenize(Path(text).read_bytes(), add_bos=False)[: int(tokens)]
    total, count = 0.0, 0
    for start in range(0, len(ids), CONTEXT - 1):
        piece = ids[start : start + CONTEXT - 1]
        llama.reset()
        llama.eval([llama.token_bos(), *piece[:-1]])
        logits = llama.scores[: len(piece)].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        chosen = logits[np.arange(len(piece)), piece]
        total -= float((chosen - np.log(np.exp(logits).sum(axis=1))).sum())
        count += len(piece)
    print(np.exp(total / count))


if __name__ == "__main__":
    {"quantize": quantize, "perplexity": perplexity}[sys.argv[1]](*sys.argv[2:])
