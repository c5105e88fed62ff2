"""gptqmodel used as its documentation shows, with the parameters of a row of `bench_methods`.

    python quantize_gptqmodel.py METHOD MODEL SAMPLES TARGET

Run in the environment of images/gptqmodel. SAMPLES are the token ids to calibrate with, which the
documented scripts tokenize. Prints the seconds from loading to saved, without the imports.
"""

from __future__ import annotations

import sys
import time
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from gptqmodel import BACKEND, AWQConfig, GPTQConfig, GPTQModel
from gptqmodel.looper import awq_processor

# Nothing goes to the disk on either side: ours spills only where `memory.offload` says so.
COMMON = {"bits": 4, "group_size": 128, "offload_to_disk": False}
CONFIGS = {
    "GPTQ": lambda: GPTQConfig(**COMMON, damp_percent=0.01, act_group_aware=False),
    "AWQ": lambda: AWQConfig(**COMMON, sym=False),
}
# Its kernels for a CPU are compiled, and no image holds a compiler.
BACKENDS = {"GPTQ": BACKEND.GPTQ_TORCH, "AWQ": BACKEND.AWQ_TORCH}
CREATE = awq_processor.create_quant_module


def packed(**words: Any) -> Any:
    """Pack AWQ's format from float32 too: gptqmodel does from 16 bits alone, at the very end."""
    if words.get("dtype") is torch.float32:
        words["dtype"] = torch.float16
    return CREATE(**words)


def main() -> None:
    method, path, samples, target = sys.argv[1:]
    rows = [torch.from_numpy(row.astype(np.int64)) for row in np.load(samples)]
    started = time.monotonic()
    # In float32, as every run on a CPU: bfloat16 is many times slower there.
    model = GPTQModel.load(path, CONFIGS[method](), dtype=torch.float32)
    with patch.object(awq_processor, "create_quant_module", packed):
        model.quantize(rows, batch_size=1, calibration_sort=None, backend=BACKENDS[method])
    model.save(target)
    print(time.monotonic() - started)


if __name__ == "__main__":
    main()
