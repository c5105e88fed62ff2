"""Serves a checkpoint as a user would and says how fast: `serve.py RUNTIME FOLDER DEVICE`.

RUNTIME is vllm, transformers or, for the engine in the folder, tensorrt-llm. Nothing of
kubequant is imported. Prints JSON: runtime, tokens, seconds.
"""

from __future__ import annotations

import json
import sys
import time

TOKENS = 32
PROMPT = "def read(path):"


def by_vllm(folder: str) -> tuple[str, int, float]:
    """Return (runtime, tokens, seconds) of vLLM's greedy answer, the second time."""
    import vllm  # noqa: PLC0415 - one of the two is there

    model = vllm.LLM(model=folder, max_model_len=1024, gpu_memory_utilization=0.8)
    settings = vllm.SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    model.generate([PROMPT], settings)
    started = time.monotonic()
    found = model.generate([PROMPT], settings)
    count = len(found[0].outputs[0].token_ids)
    return f"vLLM {vllm.__version__}", count, time.monotonic() - started


def by_tensorrt_llm(folder: str) -> tuple[str, int, float]:
    """Return (runtime, tokens, seconds) of an engine's greedy answer, the second time."""
    import tensorrt_llm  # noqa: PLC0415 - one of the three is there
    from tensorrt_llm._tensorrt_engine import LLM  # noqa: PLC0415 - as above

    settings = tensorrt_llm.SamplingParams(
        max_tokens=TOKENS, temperature=0.0, top_k=1, ignore_eos=True
    )
    model = LLM(model=f"{folder}/engine", tokenizer=folder)
    model.generate([PROMPT], settings)
    started = time.monotonic()
    found = model.generate([PROMPT], settings)
    seconds = time.monotonic() - started
    count = len(found[0].outputs[0].token_ids)
    model.shutdown()
    return f"TensorRT-LLM {tensorrt_llm.__version__}", count, seconds


def by_transformers(folder: str, device: str) -> tuple[str, int, float]:
    """Return (runtime, tokens, seconds) of transformers' greedy answer, the second time."""
    import torch  # noqa: PLC0415 - one of the two is there
    import transformers  # noqa: PLC0415 - as above
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - as above

    place = {"device_map": "cuda"} if device == "GPU" else {}
    model = AutoModelForCausalLM.from_pretrained(folder, **place).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]], device=model.device)
    seconds = 0.0
    with torch.inference_mode():
        for _ in range(2):
            started = time.monotonic()
            found = model.generate(
                ids, do_sample=False, max_new_tokens=TOKENS, min_new_tokens=TOKENS
            )
            seconds = time.monotonic() - started
    count = found.shape[1] - ids.shape[1]
    return f"transformers {transformers.__version__}", count, seconds


def main() -> None:
    runtime, folder, device = sys.argv[1:]
    if runtime == "vllm":
        name, tokens, seconds = by_vllm(folder)
    elif runtime == "tensorrt-llm":
        name, tokens, seconds = by_tensorrt_llm(folder)
    else:
        name, tokens, seconds = by_transformers(folder, device)
    print(json.dumps({"runtime": name, "tokens": tokens, "seconds": seconds}))


if __name__ == "__main__":
    main()
