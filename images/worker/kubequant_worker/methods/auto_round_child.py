"""The child that holds AutoRound: `python -m kubequant_worker.methods.auto_round_child`.

It tokenizes calibration text and learns the rounding of weights, block by block. The parent's half
is `int4.AutoRoundINT4`.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

import numpy as np
import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_submodules
from auto_round import AutoRound, calib_dataset
from auto_round.algorithms.composer import AlgorithmComposer
from auto_round.algorithms.quantization.sign_round.config import SignRoundConfig
from auto_round.algorithms.quantization.sign_round.quantizer import SignRoundQuantizer
from auto_round.export.export_to_llmcompressor.export import save_quantized_as_llmcompressor

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods import remote_code
from kubequant_worker.methods.engine_child import (
    Work,
    bound_gpu,
    plain_generation,
    sentence,
    serve_engine,
    write_logits,
)
from kubequant_worker.methods.ignored import (
    classes_of,
    linear_modules,
    require_targets,
    require_whole_groups,
    unused,
    widths_of,
    words_of_nothing,
)
from kubequant_worker.methods.shards import SHARD_BYTES, restore_types
from kubequant_worker.methods.transformers_model import Loading, load_model, load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kubequant_worker.methods.child import Parent

# How many sequences a step sees, by AutoRound's default.
_BATCH: Final = 8
# Only a name: `_own_samples` answers for it. AutoRound gives the data sets that it knows by name
# to the model without a mask; for any other it would keep one of length x length per sequence.
_DATASET: Final = "calibration"
_UNQUANTIZED: Final = {"bits": 16, "act_bits": 16, "data_type": "float"}


class AutoRoundWork(Work):
    """Quantizes weights by learning how each is rounded."""

    def quantize(self, job: Mapping[str, Any]) -> list[str]:
        """Make the checkpoint that `job` (see `int4.AutoRoundINT4`) describes; return notes."""
        loading = Loading(**job["loading"])
        remote_code.decide(trusted=loading.trust_remote_code)
        bound_gpu(job["most_gpu_bytes"])
        torch.manual_seed(job["seed"])
        model = load_model(Path(job["model"]), loading)
        targets = linear_modules(model, job["ignore"])
        require_targets(model, targets, "AutoRound")
        require_whole_groups(widths_of(targets), job["group_size"])
        classes = classes_of(model)
        self._tune(model, targets, job)
        done = {name for name, module in targets.items() if hasattr(module, "scale")}
        nothing = words_of_nothing(classes, job["ignore"], classes)
        notes = [*_counted(model, targets, done), *unused(nothing)]
        if job["probe"]:
            with _computing_on(model, job["device"]) as device:
                write_logits(model, device, Path(job["probe"]), Path(job["expected"]))
        _save(model, Path(job["target"]), Path(job["model"]))
        return notes

    def _tune(self, model: Any, targets: Mapping[str, Any], job: Mapping[str, Any]) -> None:
        """Leave the rounded values in the model, and each module's scales beside them."""
        samples = np.load(job["samples"])
        try:
            with ExitStack() as stack:
                stack.enter_context(_own_samples(samples))
                stack.enter_context(_progress(self._parent, job["iterations"]))
                _auto_round(model, targets, samples, job).quantize()
        except torch.OutOfMemoryError as error:
            raise MemoryError(str(error).splitlines()[0]) from error
        # It also leaves the program where it does not know what to do with a model.
        except (ValueError, KeyError, NotImplementedError, AssertionError, SystemExit) as error:
            raise BadRequestError(
                f"spec.method: AutoRound cannot do this with {type(model).__name__}: "
                f"{sentence(error)}",
                reason=FailureReason.UNSUPPORTED_MODEL,
                advice="ignore the modules that it names (int4.ignore), or set rounding: Nearest",
            ) from error


def _auto_round(
    model: Any, targets: Mapping[str, Any], samples: np.ndarray[Any, Any], job: Mapping[str, Any]
) -> Any:
    """Return AutoRound at work on `model`, to which nothing has been done yet."""
    # With little memory a step sees its sequences one by one, and sums their gradients.
    batch = 1 if job["one_by_one"] else _BATCH
    output = model.get_output_embeddings()
    return AutoRound(
        model,
        tokenizer=_unpadding_tokenizer(job),
        scheme={
            "bits": job["bits"],
            "group_size": job["group_size"],
            "sym": job["symmetric"],
            "data_type": "int",
        },
        alg_configs=SignRoundConfig(
            iters=job["iterations"], gradient_accumulate_steps=_BATCH // batch
        ),
        layer_config={name: _UNQUANTIZED for name in linear_modules(model) if name not in targets},
        quant_lm_head=any(module is output for module in targets.values()),
        dataset=_DATASET,
        nsamples=len(samples),
        seqlen=samples.shape[1],
        batch_size=batch,
        seed=job["seed"],
        device_map=job["device"],
        low_gpu_mem_usage=job["spare_gpu"],
        # It works on a model that is loaded as a whole, and writes nothing itself.
        low_cpu_mem_usage=False,
        amp=job["loading"]["dtype"] != "float32",
        # Inductor needs a C compiler, which the image has not.
        enable_torch_compile=False,
        trust_remote_code=job["loading"]["trust_remote_code"],
    )


def _unpadding_tokenizer(job: Mapping[str, Any]) -> Any:
    """Return the model's tokenizer, which AutoRound asks for, without a token to pad with.

    No sequence is padded, and where the token that ends texts pads as well, each of its places in
    the text would be left out of the loss.
    """
    trusted = job["loading"]["trust_remote_code"]
    tokenizer = load_tokenizer(Path(job["model"]), trust_remote_code=trusted)
    tokenizer.pad_token = None
    return tokenizer


@contextmanager
def _own_samples(samples: np.ndarray[Any, Any]) -> Iterator[None]:
    """Have AutoRound calibrate with these ids: it would fetch, filter and shuffle texts."""

    def batches(*arguments: Any, **_: Any) -> list[dict[str, torch.Tensor]]:
        batch = arguments[4]
        ids = torch.from_numpy(samples.astype(np.int64))
        parts = [ids[first : first + batch] for first in range(0, len(ids), batch)]
        return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in parts]

    with patch.object(calib_dataset, "get_dataloader", batches):
        yield


@contextmanager
def _progress(parent: Parent, iterations: int) -> Iterator[None]:
    """Tell the parent of every step of every block."""
    compress, step = AlgorithmComposer.compress_block, SignRoundQuantizer._step  # noqa: SLF001 - it has no public hook
    state = {"done": 0, "block": 0, "of": 1}

    def tell() -> None:
        message = f"block {state['block']} of {state['of']}"
        parent.event(state["done"], state["of"] * iterations, message)

    def block(*arguments: Any, **settings: Any) -> Any:
        context = settings["block_ctx"]
        state.update(block=context.block_index + 1, of=context.block_cnt)
        tell()
        result = compress(*arguments, **settings)
        state["done"] = state["block"] * iterations
        tell()
        return result

    def stepped(*arguments: Any, **settings: Any) -> Any:
        result = step(*arguments, **settings)
        state["done"] += 1
        tell()
        return result

    parent.event(0, 1, "collecting what the first block gets")
    with (
        patch.object(AlgorithmComposer, "compress_block", block),
        patch.object(SignRoundQuantizer, "_step", stepped),
    ):
        yield


def _counted(model: Any, targets: Mapping[str, Any], done: set[str]) -> list[str]:
    """Return notes on how many modules are quantized, and on those that AutoRound left out."""
    require_targets(model, done, "AutoRound")
    notes = [f"{len(done)} of {len(linear_modules(model))} linear modules are quantized"]
    if left := sorted(targets.keys() - done):
        names = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")  # noqa: PLR2004 - a few
        notes.append(
            f"AutoRound left out {names}: it quantizes the modules of the model's blocks and an "
            "output head that is not tied to the embeddings, whose rows and columns are multiples "
            "of 32"
        )
    return notes


@contextmanager
def _computing_on(model: Any, device: str) -> Iterator[torch.device]:
    """Let a model that lies in the CPU's memory compute on `device`, one layer at a time."""
    if device == "cpu":
        yield torch.device(device)
        return
    cpu_offload(model, torch.device(device))
    try:
        yield torch.device(device)
    finally:
        remove_hook_from_submodules(model)


def _save(model: Any, target: Path, source: Path) -> None:
    """Write the packed checkpoint, in shards.

    compressed-tensors is what both vLLM and transformers read with no engine beside them. Of
    AutoRound's own formats transformers would need AutoRound to load them (and computes in float16
    then, also on a CPU), or optimum and GPTQModel.
    """
    packed = save_quantized_as_llmcompressor(
        None, model=model, inplace=True, device="cpu", serialization_dict={}
    )
    with plain_generation(packed, target):
        packed.save_pretrained(target, max_shard_size=SHARD_BYTES)
    restore_types(target, source)


if __name__ == "__main__":
    serve_engine(AutoRoundWork)
