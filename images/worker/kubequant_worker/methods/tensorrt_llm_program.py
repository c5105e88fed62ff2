"""Asks TensorRT-LLM 1.2, in the Python that holds it: tensorrt_llm_program.py PIPE PARENT-PID JOB.

It stands alone: that Python holds none of kubequant's packages. JOB is a file of JSON, the answer
lines of JSON (kind, value) into PIPE: "step" while it works, then "result" or "refused". Building
is `trtllm-build` itself (`tensorrt_llm.commands.build`), so that an engine is what its users make;
asking is the LLM API over TensorRT engines (`tensorrt_llm._tensorrt_engine`). Both are gone from
TensorRT-LLM 1.3, whose PyTorch backend builds no engines.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
# What the library raises where it does not know a model or has no kernel for it.
_FORESEEABLE = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip
_LONGEST = 400


class Pipe:
    """Where answers go."""

    def __init__(self, descriptor: int) -> None:
        """Write to `descriptor`, which nothing that is started inherits."""
        os.set_inheritable(descriptor, False)  # noqa: FBT003 - the function's only form
        self._descriptor = descriptor

    def say(self, kind: str, value: object) -> None:
        """Write one line."""
        line = json.dumps({"kind": kind, "value": value}) + "\n"
        os.write(self._descriptor, line.encode())


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


def build(job: dict[str, Any], pipe: Pipe) -> dict[str, Any]:
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


def answer(job: dict[str, Any], pipe: Pipe) -> dict[str, Any]:
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


def first_line(error: BaseException) -> str:
    """Return an error's own words on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:_LONGEST]


def main() -> int:
    """Carry out one job; the exit code says whether there is an answer."""
    descriptor, parent, job_path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked to die with it
        return 1
    pipe = Pipe(descriptor)
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    operation = {"build": build, "answer": answer}[job["operation"]]
    try:
        pipe.say("result", operation(job, pipe))
    except _FORESEEABLE as error:
        import traceback  # noqa: PLC0415 - only here

        traceback.print_exc()
        pipe.say("refused", first_line(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
