"""What is asked of TensorRT-LLM 1.2, in the Python that holds it (`foreign_program`).

It stands alone. Building is `trtllm-build` itself (`tensorrt_llm.commands.build`), so that an
engine is what its users make; asking is the LLM API over TensorRT engines
(`tensorrt_llm._tensorrt_engine`). Both are gone from TensorRT-LLM 1.3, whose PyTorch backend builds
no engines.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Return the GPUs here, the driver, and the versions that an engine is bound to."""
    import tensorrt  # noqa: PLC0415 - slow, and first it is seen that there is a GPU
    import tensorrt_llm  # noqa: PLC0415 - as above
    import torch  # noqa: PLC0415 - as above

    return {
        "gpus": [
            {
                "name": torch.cuda.get_device_name(number),
                "compute_capability": ".".join(map(str, torch.cuda.get_device_capability(number))),
                "memory_bytes": torch.cuda.get_device_properties(number).total_memory,
            }
            for number in range(torch.cuda.device_count())
        ],
        "driver": driver_version(),
        "cuda": str(torch.version.cuda),
        "tensorrt": str(tensorrt.__version__),
        "tensorrt_llm": str(tensorrt_llm.__version__),
    }


def driver_version() -> str:
    """Return the version of NVIDIA's driver, "" where it does not say."""
    import pynvml  # noqa: PLC0415 - of nvidia-ml-py, which TensorRT-LLM needs

    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return ""


def build(job: dict[str, Any], pipe: Any) -> dict[str, Any]:
    """Build an engine by the words of `trtllm-build`, part after part on the first GPU."""
    from tensorrt_llm.commands import build as command  # noqa: PLC0415 - slow

    build_part = command.build_and_save
    done = 0

    def counted(*words: Any, **named: Any) -> Any:
        nonlocal done
        result = build_part(*words, **named)
        done += 1
        pipe.say("step", done)
        return result

    command.build_and_save = counted
    sys.argv = ["trtllm-build", *job["words"], "--workers", "1"]
    command.main()
    return machine()


def answer(job: dict[str, Any], pipe: Any) -> dict[str, Any]:
    """Return the likeliest token after each of `starts`, by the engine in the folder `engine`."""
    del pipe
    from tensorrt_llm import SamplingParams  # noqa: PLC0415 - slow
    from tensorrt_llm._tensorrt_engine import LLM  # noqa: PLC0415 - as above

    config = json.loads((Path(job["engine"]) / "config.json").read_text(encoding="utf-8"))
    parallel = int(config["pretrained_config"]["mapping"]["tp_size"])
    longest = int(config["build_config"]["max_input_len"])
    # Ids go in and come out: no end, no padding, no text.
    greedy = SamplingParams(
        max_tokens=1, temperature=0.0, top_k=1, end_id=-1, pad_id=0, ignore_eos=True,
        detokenize=False,
    )  # fmt: skip
    llm = LLM(model=job["engine"], skip_tokenizer_init=True, tensor_parallel_size=parallel)
    try:
        asked = [{"prompt_token_ids": ids} for ids in job["starts"] if len(ids) <= longest]
        found = llm.generate(asked, greedy, use_tqdm=False)
        return {"tokens": [int(one.outputs[0].token_ids[0]) for one in found]}
    finally:
        llm.shutdown()


OPERATIONS = {"build": build, "answer": answer}
