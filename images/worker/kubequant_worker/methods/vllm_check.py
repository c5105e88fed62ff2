"""Whether vLLM, where it is in the image, computes with a checkpoint what transformers does.

It lies there in a Python of its own (`foreign`), since it excludes packages that engines need, and
serves on the device that it was built for. What is asked of it is `vllm_program`; it is not
imported here.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError, MemoryExhaustedError
from kubequant_worker.methods.checkpoint_check import WRITTEN
from kubequant_worker.methods.checkpoint_files import weight_bytes
from kubequant_worker.methods.child import ChildFailedError
from kubequant_worker.methods.foreign import ForeignProgram, RefusedError, foreign_environment, said
from kubequant_worker.methods.gguf_check import compare
from kubequant_worker.methods.memory import available_bytes

if TYPE_CHECKING:
    from kubequant_worker.evaluation.runtime import FloatRows, TokenArray

OPERATIONS: Final = Path(__file__).with_name("vllm_program.py")
PYTHON: Final = "VLLM_PYTHON"
"""The variable that names the Python that holds vLLM."""
LIKELIEST: Final = 64
"""How many tokens of each position vLLM tells; it writes them out one by one."""
MOST_DIFFERENCE: Final = 0.1
"""The mean divergence, in nats, that the two libraries' arithmetic may make.

With vLLM 0.32 on a CPU it is below 0.005 for the tiny model in INT8, FP8 and 4 bits, as a test
says; 16 bits, and kernels that quantize activations themselves, may make more on larger models.
"""
# How much of a GPU vLLM may take: its own default, and no more than is free.
_GPU_SHARE: Final = 0.9
# What vLLM takes beside the weights, which also pass through memory on their way to a GPU (2 GB
# were measured on a CPU).
_MEMORY_BYTES: Final = 4 << 30
# Longer than the largest checkpoint takes to be read from a slow disk: a hang loses the run.
_SECONDS: Final = 3600.0
_LONGEST_NOTE: Final = 300
# Says what a Python's vLLM was built for, without importing it.
_BUILD: Final = (
    "import json; from importlib.metadata import packages_distributions, version; "
    "name = packages_distributions()['vllm'][0]; "
    "print(json.dumps('cpu' in name + '+' + version(name)))"
)
_SETTINGS: Final = {
    # In one process, which ends with us; without a word to anyone; on a CPU without its default of
    # half the memory.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # Greedy text needs no kernel for sampling, which would be compiled first.
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}


@dataclass(frozen=True, slots=True)
class Served:
    """What vLLM makes of a text: for each position but the last, the next token's likeliest.

    `tokens` and their log probabilities (natural), both of shape (positions, at least LIKELIEST);
    the text's own next token is always among them.
    """

    version: str
    tokens: TokenArray
    logprobs: FloatRows


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of asking vLLM: `served`, or a note on why there is nothing ("" where it is usual).

    `refused` says that vLLM is here, and does not load the checkpoint.
    """

    served: Served | None = None
    note: str = ""
    refused: bool = False


def interpreter(*, gpu: bool) -> str:
    """Return the Python that holds a vLLM for this device, "" where there is none."""
    python = os.environ.get(PYTHON) or (sys.executable if find_spec("vllm") else "")
    if not python:
        return ""
    found = said(python, _BUILD, environment=foreign_environment(gpus=gpu))
    return python if found is not None and json.loads(found) is not gpu else ""


def ask(checkpoint: Path, ids: TokenArray, scratch: Path, *, gpu: bool, trusted: bool) -> Answer:
    """Let vLLM load the folder `checkpoint`, read `ids` and write a little after them.

    That it does not load is no failure: transformers does, and vLLM knows fewer architectures. It
    is not asked where memory is short, since a pod that exceeds its limit is killed whole.
    """
    python = interpreter(gpu=gpu)
    if not python:
        note = "vLLM is not in this worker: transformers alone has loaded what is published"
        return Answer(note=note if gpu else "")
    needed, free = _MEMORY_BYTES + weight_bytes(checkpoint), available_bytes()
    if free < needed:
        gib = f"{needed / (1 << 30):.1f} GiB of memory, and {free / (1 << 30):.1f} GiB are free"
        return Answer(note=f"vLLM was not asked to load what is published: it takes about {gib}")
    cache = {"VLLM_CACHE_ROOT": str(scratch / "vllm"), "VLLM_CONFIG_ROOT": str(scratch / "vllm")}
    environment = foreign_environment(gpus=gpu, **_SETTINGS, **cache)
    job: dict[str, Any] = {
        "operation": "read",
        "model": str(checkpoint),
        "ids": ids.tolist(),
        "likeliest": LIKELIEST,
        "written": WRITTEN,
        "trusted": trusted,
        "gpu_share": _GPU_SHARE,
    }
    with ForeignProgram("vLLM", OPERATIONS, python, scratch, environment) as program:
        try:
            found = program.run(job, seconds=_SECONDS)
        except RefusedError as error:
            return Answer(note=f"vLLM does not load what is published: {error}", refused=True)
        except (MemoryExhaustedError, ChildFailedError) as error:
            words = " ".join(str(error).split())[:_LONGEST_NOTE]
            return Answer(note=f"whether vLLM loads what is published is not known: {words}")
    return Answer(_served(found))


def _served(found: dict[str, Any]) -> Served:
    # A position's own next token comes beside the likeliest where it is not among them.
    width = min(map(len, found["tokens"]))
    return Served(
        str(found["version"]),
        np.array([row[:width] for row in found["tokens"]], np.int32),
        np.array([row[:width] for row in found["logprobs"]], np.float32),
    )


def divergence(rows: FloatRows, served: Served) -> float:
    """Return the mean divergence of vLLM from logits of shape (positions, vocabulary), in nats.

    Kullback-Leibler, over the tokens that vLLM told and all others as one: at most what it is over
    all, since merging outcomes never makes two distributions easier to tell apart.
    """
    logits = np.array(rows[: len(served.tokens)], np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    ours = np.exp(np.take_along_axis(logits, served.tokens.astype(np.int64), axis=1))
    theirs = np.exp(served.logprobs.astype(np.float64))
    least = np.finfo(np.float32).tiny

    def with_rest(told: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        rest = np.clip(1 - told.sum(axis=1, keepdims=True), 0, 1)
        every: np.ndarray[Any, Any] = np.concatenate([told, rest], axis=1)
        return every.clip(min=least)

    p, q = with_rest(ours), with_rest(theirs)
    return float((p * np.log(p / q)).sum(axis=1).mean())


def judge_served(original: FloatRows, computed: FloatRows, served: Served) -> str:
    """Return a sentence on how near vLLM is to what transformers computes with the same files.

    `original` and `computed` are the original's and the variant's logits by transformers. What is
    quantized coarsely may differ by as much as quantizing changed.

    Raises:
        BadRequestError: vLLM loads it, and computes something else.
    """
    found = divergence(computed, served)
    most = max(MOST_DIFFERENCE, compare(original, computed).mean_kl_divergence)
    if not found <= most:
        raise BadRequestError(
            f"vLLM {served.version} loads the quantized model, and computes something else than "
            f"transformers: over {len(served.tokens)} tokens of a short text the mean divergence "
            f"is {found:.3f} nats, and at most {most:.3f} may come from their arithmetic",
            reason=FailureReason.VERIFICATION_FAILED,
            advice="take another engine or method, and report it: vLLM is to serve what is made",
        )
    return (
        f"vLLM {served.version} loads it, generates, and computes what transformers does: mean "
        f"divergence {found:.4f} nats"
    )
