"""bitsandbytes and torchao used as transformers documents it, as a row of `bench_methods` asks.

    python quantize_transformers.py METHOD MODEL SAMPLES TARGET

Run in the environment of images/transformers. SAMPLES are not used: every weight is rounded by
itself. Prints the seconds from loading to saved, without the imports.
"""

from __future__ import annotations

import sys
import time

import torch
from torchao.quantization import Int8DynamicActivationInt8WeightConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TorchAoConfig

CONFIGS = {
    "BitsAndBytes": lambda: BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    ),
    "INT8": lambda: TorchAoConfig(
        Int8DynamicActivationInt8WeightConfig(), modules_to_not_convert=["lm_head"]
    ),
}


def main() -> None:
    method, path, _, target = sys.argv[1:]
    started = time.monotonic()
    # In float32, as every run on a CPU: bfloat16 is many times slower there.
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, quantization_config=CONFIGS[method]()
    )
    tokenizer = AutoTokenizer.from_pretrained(path)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    print(time.monotonic() - started)


if __name__ == "__main__":
    main()
