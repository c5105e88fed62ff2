"""What there is to say of a TensorRT-LLM engine, by values alone: what is asked, what was built.

Pure but for the driver's own words on the GPUs that are here. How the library is run stands in
`tensorrt_llm`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kubequant.api.contract import EngineDetail
from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods.gpu import gpus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kubequant.api.tensorrt import TensorRTParameters
    from kubequant_worker.evaluation.runtime import FloatRows
    from kubequant_worker.methods.gpu import GPU

# The least share of a short text's tokens that engine and quantized model find likeliest alike. Two
# sound computations differ where two tokens are about as likely; a wrong engine agrees by chance.
LEAST_AGREEMENT: Final = 0.75
_PERCENT: Final = 100
_TOKENS: Final = 8192
_FP8_CAPABILITY: Final = (8, 9)


def product_label(name: str) -> str:
    """Return the driver's name of a GPU as NVIDIA's feature discovery writes it on nodes."""
    return name.strip().replace(" ", "-")


def is_product(name: str, wanted: str) -> bool:
    """Say whether a GPU is what a label's value means; shared and cut ones have an ending."""
    label = product_label(name)
    rest = wanted.removeprefix(label)
    return wanted.startswith(label) and (rest in {"", "-SHARED"} or rest.startswith("-MIG-"))


def require_gpu_for(asked: TensorRTParameters, there: Sequence[GPU] | None = None) -> None:
    """Refuse to build an engine on GPUs other than those that it is for, or could be.

    Raises:
        BadRequestError: There are too few, or they are of another kind or too old.
    """
    found = gpus() if there is None else there
    parallel = asked.tensor_parallel or 1
    if len(found) < parallel:
        raise BadRequestError(
            f"spec.tensorRT.tensorParallel: {parallel} GPUs are needed, and there "
            f"{'is' if len(found) == 1 else 'are'} {len(found)} here",
            reason=FailureReason.DEVICE_NOT_FOUND,
            advice="set spec.pod.gpu.count to as many, or tensorParallel to fewer, or build: "
            "Checkpoint, which needs none",
        )
    wanted = asked.gpu_product
    others = {one.name for one in found if wanted and not is_product(one.name, wanted)}
    if others:
        raise BadRequestError(
            f"spec.tensorRT.gpuProduct: the engine is to be built for {wanted}, and "
            f"here is {', '.join(sorted(others))}, for which alone it could be",
            reason=FailureReason.DEVICE_NOT_FOUND,
            advice="run it on a node with that GPU, or name the one that is here: "
            f"{product_label(min(others))}",
        )

    capability = min((one.compute_capability for one in found), default=_FP8_CAPABILITY)
    if asked.precision == "FP8" and capability < _FP8_CAPABILITY:
        raise BadRequestError(
            f"spec.tensorRT.precision: FP8 needs compute capability 8.9 or more (Ada, Hopper and "
            f"newer), and {found[0].name} has {'.'.join(map(str, capability))}",
            reason=FailureReason.DEVICE_NOT_FOUND,
            advice="set precision: INT8 or INT4AWQ, or run it on a newer GPU",
        )


def build_words(asked: TensorRTParameters) -> list[str]:
    """Return the words of `trtllm-build` for what an engine is to hold."""
    batch, prompt, answer = asked.max_batch_size, asked.max_input_length, asked.max_output_length
    if batch is None or prompt is None or answer is None:
        raise ValueError("the parameters are not the effective ones")
    limits = {
        "max_batch_size": batch,
        "max_input_len": prompt,
        "max_seq_len": prompt + answer,
        # Read at once, of all prompts together: the library's own default, or a whole prompt.
        "max_num_tokens": max(_TOKENS, prompt, batch),
    }
    return [word for name, value in limits.items() for word in (f"--{name}", str(value))]


def engine_detail(
    asked: TensorRTParameters, config: Mapping[str, Any], machine: Mapping[str, Any]
) -> EngineDetail:
    """Return what an engine is, by its own config.json and the library's words on the machine.

    Raises:
        BadRequestError: It was not built for what was asked.
    """
    built, model = config["build_config"], config["pretrained_config"]
    found = {
        "maxBatchSize": int(built["max_batch_size"]),
        "maxInputLength": int(built["max_input_len"]),
        "maxOutputLength": int(built["max_seq_len"]) - int(built["max_input_len"]),
        "tensorParallel": int(model["mapping"]["tp_size"]),
    }
    wanted = {
        "maxBatchSize": asked.max_batch_size,
        "maxInputLength": asked.max_input_length,
        "maxOutputLength": asked.max_output_length,
        "tensorParallel": asked.tensor_parallel,
    }
    less = [name for name, value in found.items() if value < (wanted[name] or 1)]
    if less:
        told = ", ".join(f"{name} {found[name]} and not {wanted[name]}" for name in less)
        raise BadRequestError(
            f"spec.tensorRT: TensorRT-LLM built an engine with {told}",
            reason=FailureReason.VERIFICATION_FAILED,
            advice="ask for no more than the model's context allows: maxInputLength and "
            "maxOutputLength together",
        )
    gpu = machine["gpus"][0]
    return EngineDetail(
        gpu=gpu["name"],
        gpu_product=product_label(gpu["name"])[:63],
        compute_capability=gpu["compute_capability"],
        gpu_memory_bytes=gpu["memory_bytes"],
        driver=machine["driver"],
        cuda=machine["cuda"],
        tensorrt=machine["tensorrt"],
        tensorrt_llm=machine["tensorrt_llm"],
        precision=asked.precision,
        max_batch_size=found["maxBatchSize"],
        max_input_length=found["maxInputLength"],
        max_output_length=found["maxOutputLength"],
        tensor_parallel=found["tensorParallel"],
    )


def judge_answers(expected: FloatRows, answers: Sequence[int]) -> str:
    """Return a sentence on how often an engine finds the token likeliest that the model did.

    `expected` are the quantized model's logits over a text, `answers` what the engine answered
    after each of its first tokens.

    Raises:
        BadRequestError: Too seldom for an engine of that model.
    """
    likeliest = expected[: len(answers)].argmax(axis=1)
    share = float(np.mean(likeliest == np.asarray(answers)))
    if not share >= LEAST_AGREEMENT:
        raise BadRequestError(
            f"the engine is not the quantized model's likeness: after {len(answers)} beginnings of "
            f"a short text it answers with the same token in {_PERCENT * share:.0f} %, and at "
            f"least {_PERCENT * LEAST_AGREEMENT:.0f} % are expected",
            reason=FailureReason.VERIFICATION_FAILED,
            advice="take build: Checkpoint, and report it with the model's architecture",
        )
    return (
        f"the engine answers {len(answers)} beginnings of a short text with the token that the "
        f"quantized model finds likeliest in {_PERCENT * share:.0f} %"
    )
