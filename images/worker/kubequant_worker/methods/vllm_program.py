"""What is asked of vLLM, in the Python that holds it (`foreign_program`). It stands alone.

vLLM's engine runs in this process (VLLM_ENABLE_V1_MULTIPROCESSING=0 of the parent), so that it ends
with it.
"""

from __future__ import annotations

from typing import Any

# What is left of a GPU's free memory for what vLLM does not count.
_SHARE_OF_FREE = 0.95


def read(job: dict[str, Any], pipe: Any) -> dict[str, Any]:
    """Load the checkpoint `model` as `vllm serve` does, read `ids` and write `written` tokens more.

    Returns vLLM's version, and for each position but the last the `likeliest` tokens of the next
    one with their log probabilities (natural).
    """
    del pipe
    import torch  # noqa: PLC0415 - slow
    import vllm  # noqa: PLC0415 - as above

    share = float(job["gpu_share"])
    if torch.cuda.is_available():
        free, whole = torch.cuda.mem_get_info()
        share = min(share, _SHARE_OF_FREE * free / whole)
    llm = vllm.LLM(
        model=job["model"],
        trust_remote_code=job["trusted"],
        max_model_len=len(job["ids"]) + job["written"],
        max_num_seqs=1,
        max_logprobs=job["likeliest"],
        gpu_memory_utilization=share,
        enforce_eager=True,  # what it would compile and record is for speed
        seed=0,
    )
    greedy = vllm.SamplingParams(
        temperature=0.0,
        max_tokens=job["written"],
        ignore_eos=True,
        prompt_logprobs=job["likeliest"],
        detokenize=False,
    )
    (found,) = llm.generate([{"prompt_token_ids": job["ids"]}], greedy, use_tqdm=False)
    if len(found.outputs[0].token_ids) != job["written"]:
        raise RuntimeError("it writes fewer tokens than it was asked for")
    rows = [one for one in found.prompt_logprobs if one is not None]
    return {
        "version": vllm.__version__,
        "tokens": [[int(token) for token in row] for row in rows],
        "logprobs": [[float(one.logprob) for one in row.values()] for row in rows],
    }


OPERATIONS = {"read": read}
