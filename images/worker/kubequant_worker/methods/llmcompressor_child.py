"""The child that holds llmcompressor: `python -m kubequant_worker.methods.llmcompressor_child`.

It tokenizes calibration text and makes quantized checkpoints by the recipes it is given. The
parent's half is `llmcompressor`.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

import numpy as np
import torch
from compressed_tensors.offload import get_execution_device, load_offloaded_model
from compressed_tensors.quantization.utils import is_module_quantized
from llmcompressor import oneshot
from llmcompressor.core import LifecycleCallbacks
from llmcompressor.modeling.moe.linearize import get_non_linearized_moes, linearize_moe
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.pruning.sparsegpt import SparseGPTModifier
from llmcompressor.modifiers.pruning.wanda import WandaPruningModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from llmcompressor.pipelines.sequential import pipeline as sequential
from torch.utils.data import DataLoader

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods import older_transformers, prune_modules, remote_code
from kubequant_worker.methods.engine_child import (
    Work,
    save_pretrained,
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
from kubequant_worker.methods.llmcompressor_magnitude import MagnitudeModifier
from kubequant_worker.methods.transformers_model import Loading, load_model
from kubequant_worker.sources.safetensors_header import read_header

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from kubequant_worker.methods.child import Operation, Parent

_MODIFIERS: Final[dict[str, Any]] = {
    "AWQModifier": AWQModifier,
    "GPTQModifier": GPTQModifier,
    "MagnitudeModifier": MagnitudeModifier,
    "QuantizationModifier": QuantizationModifier,
    "SmoothQuantModifier": SmoothQuantModifier,
    "SparseGPTModifier": SparseGPTModifier,
    "WandaPruningModifier": WandaPruningModifier,
}
# What llmcompressor raises where it does not know what to do with a model. Its cache takes a config
# among a layer's inputs apart, and puts it together of what transformers does not take.
_CANNOT: Final = (
    KeyError, NotImplementedError, ValueError, older_transformers.UNFIT, torch.fx.proxy.TraceError,
)  # fmt: skip
# The columns of a block of FP8_BLOCK. Where they do not divide a row, llmcompressor writes what
# transformers cannot compute with.
_BLOCK: Final = 128


class LLMCompressorWork(Work):
    """Quantizes, and prunes, by recipes."""

    def operations(self) -> Mapping[str, Operation]:
        """Return what the parent may ask for."""
        return {**super().operations(), "prune": self.prune}

    def quantize(self, job: Mapping[str, Any]) -> list[str]:
        """Make the checkpoint that `job`, which holds a recipe, describes; return notes."""
        model = _loaded(job)
        notes = _require_quantizable(model, job["modifiers"])
        self._carry_out(model, job)
        return notes

    def prune(self, job: Mapping[str, Any]) -> dict[str, list[str]]:
        """Prune as `job`, which holds one step, describes; return modules and notes.

        llmcompressor gets the modules by their names: what it compares with `ignore` is not a
        linear module's own name.
        """
        model = _loaded(job)
        (step,) = job["modifiers"]
        arguments = dict(step["arguments"])
        two_of_four = arguments["mask_structure"] == "2:4"
        chosen = prune_modules.choose(model, arguments.pop("ignore"), two_of_four=two_of_four)
        arguments["targets"] = list(chosen.names)
        self._carry_out(model, {**job, "modifiers": [{**step, "arguments": arguments}]})
        return {"modules": list(chosen.names), "notes": list(chosen.notes)}

    def _carry_out(self, model: Any, job: Mapping[str, Any]) -> None:
        """Apply the recipe to the loaded model, and save it."""
        modifiers = [_MODIFIERS[one["kind"]](**one["arguments"]) for one in job["modifiers"]]
        with ExitStack() as stack:
            stack.enter_context(_progress(self._parent, modifiers))
            stack.enter_context(_pinning_where_it_helps())
            stack.enter_context(_scaling_what_is_quantized())
            _run(model, modifiers, job)
        self._parent.event(len(modifiers), 0, 1, "saving")
        if job["probe"]:
            device = get_execution_device(model.get_input_embeddings())
            write_logits(model, device, Path(job["probe"]), Path(job["expected"]))
        _save(model, Path(job["target"]), Path(job["model"]))


def _loaded(job: Mapping[str, Any]) -> Any:
    loading = Loading(**job["loading"])
    remote_code.decide(trusted=loading.trust_remote_code)
    torch.manual_seed(job["seed"])
    with _offloaded(loading):
        # What moves offloaded modules takes nothing but a model; whether its files are whole was
        # seen when the original was measured.
        told = loading.most_bytes is None
        model = load_model(Path(job["model"]), loading, output_loading_info=told)
    if get_non_linearized_moes(model):
        linearize_moe(model)  # as llmcompressor would itself, before modules are chosen by name
        _require_experts_by_name(model, Path(job["model"]))
    return model


def _require_experts_by_name(model: Any, source: Path) -> None:
    """Raise BadRequestError where experts would be saved by other names than they are read by.

    transformers holds a layer's experts as one tensor, and llmcompressor parts them into modules of
    names of its own, which it saves.
    """
    stored = {span.name for path in source.glob("*.safetensors") for span in read_header(path)}
    inside = {name.partition("layers.")[2] for name in stored}
    experts = [name for name in linear_modules(model) if ".experts." in name]
    lost = [name for name in experts if f"{name}.weight".partition("layers.")[2] not in inside]
    if stored and lost:
        raise BadRequestError(
            f"spec.method: llmcompressor saves the experts of {type(model).__name__} by names that "
            f"nothing reads ({lost[0]}, which is none in the model's files)",
            reason=FailureReason.UNSUPPORTED_MODEL,
            advice="take method GGUF, which quantizes experts; none here prunes such ones",
        )


def _run(model: Any, modifiers: list[Any], job: Mapping[str, Any]) -> None:
    """Apply the modifiers; what the engine cannot do with this model becomes a sentence."""
    settings: dict[str, Any] = {}
    if job["samples"]:
        settings["dataset"] = _batches(np.load(job["samples"]))
        settings["num_calibration_samples"] = None
    if job["one_by_one"]:
        settings["sequential_targets"] = ["Linear"]
    try:
        oneshot(
            model=model,
            recipe=modifiers,
            trust_remote_code_model=job["loading"]["trust_remote_code"],
            **settings,
        )
    except torch.OutOfMemoryError as error:
        raise MemoryError(str(error).splitlines()[0]) from error
    except _CANNOT as error:
        name = type(model).__name__
        raise BadRequestError(
            f"spec.method: llmcompressor cannot do this with {name}: {sentence(error)}",
            reason=FailureReason.UNSUPPORTED_MODEL,
            advice="ignore the modules that it names (ignore: in the method's parameters), set "
            "gptq.trueSequential: false where the method is GPTQ, or take another method",
        ) from error


def _batches(samples: np.ndarray[Any, Any]) -> DataLoader[Any]:
    """Return a loader of one sequence at a time."""
    rows = [
        {
            "input_ids": torch.from_numpy(row.astype(np.int64))[None],
            "attention_mask": torch.ones(1, len(row), dtype=torch.int64),
        }
        for row in samples
    ]
    return DataLoader(rows, batch_size=None)  # type: ignore[arg-type] # a list is a dataset too


def _require_quantizable(model: Any, modifiers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return notes on what stays as it is; raise BadRequestError where it cannot be done.

    llmcompressor itself passes over a model without linear modules in silence.
    """
    ignore = [name for one in modifiers for name in one["arguments"].get("ignore", ())]
    targets = linear_modules(model, ignore)
    require_targets(model, targets, "llmcompressor")
    widths, classes = widths_of(targets), classes_of(model)
    for one in modifiers:
        if one["arguments"].get("scheme") == "FP8_BLOCK":
            require_whole_groups(widths, _BLOCK, "scheme: Block, whose width of", "scheme: Dynamic")
        for group in one["arguments"].get("config_groups", {}).values():
            require_whole_groups(widths, group["weights"].get("group_size"))
    everything = len(linear_modules(model))
    counted = f"{len(targets)} of {everything} linear modules are quantized"
    return [counted, *unused(words_of_nothing(classes, ignore, classes))]


@contextmanager
def _progress(parent: Parent, modifiers: Sequence[Any]) -> Iterator[None]:
    """Tell the parent of every step: modifiers run one after another, each over all subgraphs."""
    whole = LifecycleCallbacks.sequential_epoch_end
    trace = sequential.trace_subgraphs
    state = {"stage": -1, "step": 0, "of": 1}

    def traced(*arguments: Any, **settings: Any) -> Any:
        subgraphs = trace(*arguments, **settings)
        state.update(stage=state["stage"] + 1, step=0, of=len(subgraphs))
        return subgraphs

    def ended(*arguments: Any, **settings: Any) -> Any:
        result = whole(*arguments, **settings)
        state["step"] += 1
        if state["step"] > state["of"] or state["stage"] < 0:  # one that needs no data
            state.update(stage=state["stage"] + 1, step=1, of=1)
        stage = min(state["stage"], len(modifiers) - 1)
        name = type(modifiers[stage]).__name__.removesuffix("Modifier")
        message = f"{name}: part {state['step']} of {state['of']}"
        parent.event(stage, state["step"], state["of"], message)
        return result

    with (
        patch.object(LifecycleCallbacks, "sequential_epoch_end", ended),
        patch.object(sequential, "trace_subgraphs", traced),
    ):
        yield


@contextmanager
def _pinning_where_it_helps() -> Iterator[None]:
    """Leave memory as it is where there is no accelerator: pinning it raises there."""
    if torch.accelerator.is_available():
        yield
        return
    with patch.object(IntermediatesCache, "pin_memory", lambda *_, **__: None):
        yield


@contextmanager
def _scaling_what_is_quantized() -> Iterator[None]:
    """Let AWQ leave out layers of which nothing is quantized: it divides by their number."""
    resolve = AWQModifier._set_resolved_mappings  # noqa: SLF001 - it has no public way

    def resolved(modifier: Any, model: Any) -> None:
        resolve(modifier, model)
        modifier._resolved_mappings = [  # noqa: SLF001 - as above
            mapping
            for mapping in modifier._resolved_mappings  # noqa: SLF001 - as above
            if any(is_module_quantized(layer) for layer in mapping.balance_layers)
        ]

    with patch.object(AWQModifier, "_set_resolved_mappings", resolved):
        yield


@contextmanager
def _offloaded(loading: Loading) -> Iterator[None]:
    """Let llmcompressor itself move what is spilled."""
    if loading.most_bytes is None:
        yield
        return
    with load_offloaded_model():
        yield


def _save(model: Any, target: Path, source: Path) -> None:
    """Write the compressed checkpoint, in shards.

    What is not quantized gets back the type that it was stored in; scales keep the precision that
    they were computed in.
    """
    save_pretrained(model, target, source, save_compressed=True)


if __name__ == "__main__":
    serve_engine(LLMCompressorWork)
