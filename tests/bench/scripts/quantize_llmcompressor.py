"""llmcompressor used as its documentation shows, with the parameters of a row of `bench_methods`.

    python quantize_llmcompressor.py METHOD MODEL SAMPLES TARGET

Run in the environment of images/llmcompressor. SAMPLES are the token ids to calibrate with, which
the documented scripts tokenize. Prints the seconds that the sample generation takes which those end
with, and last the seconds from loading to saved, without it and without the imports.
"""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from unittest.mock import patch

import numpy as np
import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from transformers import AutoModelForCausalLM, AutoTokenizer

RECIPES = {
    "INT8": lambda: [
        SmoothQuantModifier(smoothing_strength=0.5),
        GPTQModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"], actorder=None),
    ],
    "INT4": lambda: QuantizationModifier(targets="Linear", scheme="W4A16", ignore=["lm_head"]),
    "FP8": lambda: QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=["lm_head"]),
    "GPTQ": lambda: GPTQModifier(
        targets="Linear", scheme="W4A16", ignore=["lm_head"], actorder=None
    ),
    "AWQ": lambda: [
        AWQModifier(),
        QuantizationModifier(targets="Linear", scheme="W4A16_ASYM", ignore=["lm_head"]),
    ],
}
WITHOUT_DATA = {"INT4", "FP8"}


def main() -> None:
    method, path, samples, target = sys.argv[1:]
    recipe = RECIPES[method]()
    started = time.monotonic()
    # In float32, as every run on a CPU: bfloat16 is many times slower there.
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path)
    data = {}
    if method not in WITHOUT_DATA:
        ids = np.load(samples)
        rows = {"input_ids": ids.tolist(), "attention_mask": np.ones_like(ids).tolist()}
        data = {
            "dataset": Dataset.from_dict(rows),
            "max_seq_length": ids.shape[1],
            "num_calibration_samples": len(ids),
        }
    # Without an accelerator, what it pins raises.
    unpinned = patch.object(IntermediatesCache, "pin_memory", lambda *_, **__: None)
    with nullcontext() if torch.accelerator.is_available() else unpinned:
        oneshot(model=model, recipe=recipe, **data)
    quantized = time.monotonic()
    # "Confirm generations of the quantized model look sane", as short as in any of their examples.
    ids = tokenizer("Hello my name is", return_tensors="pt").input_ids
    model.generate(ids, max_new_tokens=20, min_new_tokens=20)
    looked = time.monotonic() - quantized
    model.save_pretrained(target, save_compressed=True)
    tokenizer.save_pretrained(target)
    print(looked)
    print(time.monotonic() - started - looked)


if __name__ == "__main__":
    main()
