"""AutoRound used as its documentation shows, with the parameters of a row of `bench_methods`.

    python quantize_auto_round.py METHOD MODEL SAMPLES TARGET

Run in the environment of images/auto-round. SAMPLES are the token ids to calibrate with, given as
the documentation gives data of one's own. Prints the seconds from loading to saved, without the
imports.
"""

from __future__ import annotations

import os
import sys
import time

import numpy as np
import torch
from auto_round import AutoRound
from transformers import AutoModelForCausalLM, AutoTokenizer

ITERATIONS = int(os.environ["ITERATIONS"])


def main() -> None:
    _, path, samples, target = sys.argv[1:]
    ids = torch.from_numpy(np.load(samples).astype(np.int64))
    started = time.monotonic()
    # In float32, as every run on a CPU: bfloat16 is many times slower there.
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path)
    rows = [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in ids]
    auto_round = AutoRound(
        model,
        tokenizer=tokenizer,
        scheme="W4A16",
        dataset=rows,
        nsamples=len(ids),
        seqlen=ids.shape[1],
        iters=ITERATIONS,
        seed=0,
        device_map="cpu",
        # For a float32 model on a CPU without instructions for 16 bits; nothing is compiled there.
        amp=False,
        enable_torch_compile=False,
    )
    auto_round.quantize_and_save(target, format="auto_round:llm_compressor")
    print(time.monotonic() - started)


if __name__ == "__main__":
    main()
