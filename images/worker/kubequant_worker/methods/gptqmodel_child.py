"""The child that holds gptqmodel: `python -m kubequant_worker.methods.gptqmodel_child`.

It tokenizes calibration text and makes quantized checkpoints by the tasks it is given. The parent's
half is `gptqmodel`.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

import numpy as np
import torch
from gptqmodel import BACKEND, AWQConfig, GPTQConfig, GPTQModel
from gptqmodel.looper import awq_processor, module_looper
from gptqmodel.models import loader
from gptqmodel.nn_modules.qlinear import BaseQuantLinear
from gptqmodel.utils.model import (
    convert_gptq_v1_to_v2_format_module,
    get_layer_name,
    get_layers_with_prefixes,
)

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods import remote_code
from kubequant_worker.methods.engine_child import (
    Work,
    bound_gpu,
    sentence,
    serve_engine,
    write_logits,
)
from kubequant_worker.methods.gptqmodel_kernels import compute_plainly
from kubequant_worker.methods.gptqmodel_modules import (
    Choice,
    choose,
    require_possible,
    shown,
    without,
)
from kubequant_worker.methods.shards import SHARD_BYTES, restore_types
from kubequant_worker.methods.transformers_model import Loading

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from kubequant_worker.methods.child import Parent

_CONFIGS: Final[dict[str, Any]] = {"gptq": GPTQConfig, "awq": AWQConfig}
_BACKENDS: Final = {"gptq": BACKEND.GPTQ_TORCH, "awq": BACKEND.AWQ_TORCH}
# What is said of how a checkpoint was made; the rest of gptqmodel's words are of this machine.
_META: Final = (
    "quantizer", "uri", "damp_percent", "damp_auto_increment", "static_groups", "true_sequential",
    "mse", "act_group_aware",
)  # fmt: skip
# What an engine raises where it does not know a model, or cannot do with it what is asked for.
_CANNOT: Final = (ValueError, TypeError, KeyError, NotImplementedError, AssertionError)


class GPTQModelWork(Work):
    """Quantizes by tasks."""

    def quantize(self, job: Mapping[str, Any]) -> list[str]:
        """Make the checkpoint that `job`, which holds a task, describes; return notes."""
        loading = Loading(**job["loading"])
        remote_code.decide(trusted=loading.trust_remote_code)
        torch.manual_seed(job["seed"])
        compute_plainly()
        os.chdir(_expected(job).parent)  # it writes a log of its own into the working folder
        bound_gpu(job["most_gpu_bytes"])
        model = _loaded(job, loading)
        choice = _choose(model, job)
        _run(model, job, self._parent)
        _require_done(model.model, choice)
        self._parent.event(1.0, "saving")
        target, source = Path(job["target"]), Path(job["model"])
        _save(model, target, source, choice)
        if job["probe"]:
            device = torch.device(loading.device)
            write_logits(_computing(model, device), device, Path(job["probe"]), _expected(job))
        return [*choice.notes(), *_told(model)]


def _expected(job: Mapping[str, Any]) -> Path:
    return Path(job["expected"])


def _loaded(job: Mapping[str, Any], loading: Loading) -> Any:
    """Return gptqmodel's model; raises BadRequestError where it does not know the architecture."""
    config = _CONFIGS[job["method"]](
        **job["arguments"],
        device=loading.device,
        offload_to_disk=job["spills"],
        offload_to_disk_path=loading.spill if job["spills"] else None,
        wait_for_submodule_finalizers=job["waits"],
    )
    # What it reads from the disk layer by layer is safetensors anyway, and takes no such word.
    safe = {} if job["spills"] or loading.allow_pickle else {"use_safetensors": True}
    try:
        with _config_kept_from_the_tokenizer():
            return GPTQModel.from_pretrained(
                job["model"],
                config,
                dtype=getattr(torch, loading.dtype),
                trust_remote_code=loading.trust_remote_code,
                **safe,
            )
    except _CANNOT as error:
        raise BadRequestError(
            f"spec.model: gptqmodel does not load the model: {sentence(error)}",
            reason=FailureReason.UNSUPPORTED_MODEL,
            advice="take a causal language model of an architecture that gptqmodel knows, or "
            "another engine or method",
        ) from error


@contextmanager
def _config_kept_from_the_tokenizer() -> Iterator[None]:
    """Build the model by its own config: gptqmodel mends the padding token in it by the family.

    A checkpoint with another vocabulary then has a padding token that it has no row for.
    """
    load = loader.load_hf_tokenizer

    def loaded(path: str, *, model_config: Any, **named: Any) -> Any:
        return load(path, model_config=copy.deepcopy(model_config), **named)

    with patch.object(loader, "load_hf_tokenizer", loaded):
        yield


def _choose(model: Any, job: Mapping[str, Any]) -> Choice:
    """Return which modules are quantized, and tell gptqmodel; raises BadRequestError."""
    inner = model.model
    # transformers' Conv1D (GPT-2's layers) it would quantize too, and transformers not load again.
    kind = torch.nn.Linear
    linear = {name: one for name, one in inner.named_modules() if isinstance(one, kind)}
    kinds = {name: [kind.__name__ for kind in type(one).__mro__] for name, one in linear.items()}
    reached = _reached(model, linear)
    choice = choose(kinds, reached, job["ignore"])
    require_possible(
        choice,
        head=model.get_output_embeddings_name() or "",
        widths={name: int(one.weight.shape[-1]) for name, one in linear.items()},
        group_size=job["arguments"]["group_size"],
        architecture=type(inner).__name__,
    )
    model.quantize_config.dynamic = without(choice, reached)
    return choice


def _reached(model: Any, linear: Collection[str]) -> frozenset[str]:
    """Return the names of the linear modules that gptqmodel quantizes where nothing is ignored."""
    _, prefixes = layers = get_layers_with_prefixes(model.model, model.extract_layers_node())
    config = model.quantize_config
    groups = model.simple_layer_modules(
        model.model.config, config, is_awq_quantize=isinstance(config, AWQConfig)
    )
    inside = [name for group in groups for name in group]
    names = [get_layer_name(prefixes, number) for number in range(len(layers[0]))]
    return frozenset(f"{layer}.{name}" for layer in names for name in inside) & frozenset(linear)


def _run(model: Any, job: Mapping[str, Any], parent: Parent) -> None:
    """Quantize; what gptqmodel cannot do with this model becomes a sentence."""
    rows = [torch.from_numpy(row.astype(np.int64)) for row in np.load(job["samples"])]
    model.subset_callback = _Progress(parent, len(_layers(model)))
    with ExitStack() as stack:
        stack.enter_context(_nothing_measured())
        stack.enter_context(_weights_kept_while_searching())
        stack.enter_context(_packed_from_float32())
        try:
            model.quantize(
                rows,
                batch_size=1,
                calibration_sort=None,
                calibration_data_min_length=0,
                backend=_BACKENDS[job["method"]],
            )
        except torch.OutOfMemoryError as error:
            raise MemoryError(str(error).splitlines()[0]) from error
        except _CANNOT as error:
            name = type(model.model).__name__
            raise BadRequestError(
                f"spec.method: gptqmodel cannot do this with {name}: {sentence(error)}",
                reason=FailureReason.UNSUPPORTED_MODEL,
                advice="take other parameters, another engine or another method",
            ) from error


def _layers(model: Any) -> list[Any]:
    layers, _ = get_layers_with_prefixes(model.model, model.extract_layers_node())
    return list(layers)


class _Progress:
    """Tells the parent of every group of modules that is done: gptqmodel calls it."""

    def __init__(self, parent: Parent, layers: int) -> None:
        self._parent = parent
        self._layers = layers

    def subset_event(
        self, *, stage: str, layer_idx: int, subset_index: int, subset_total: int, **_: object
    ) -> None:
        if stage == "quant_complete":
            part = (subset_index + 1) / max(1, subset_total)
            message = f"layer {layer_idx + 1} of {self._layers}"
            if subset_total > 1:
                message += f", part {subset_index + 1} of {subset_total}"
            self._parent.event((layer_idx + part) / self._layers, message)


@contextmanager
def _nothing_measured() -> Iterator[None]:
    """Spare the disk: gptqmodel writes 100 MB to warn where it is slow."""
    with patch.object(module_looper, "estimate_disk_io_speed", lambda: float("inf")):
        yield


@contextmanager
def _weights_kept_while_searching() -> Iterator[None]:
    """Give AWQ's search the copy that it thinks it has.

    It tries scales on the weights themselves and puts them back from `.detach()`, a conversion to
    float32 and `.cpu()`: of float32 on a CPU that is no copy, and each try ruins the next.
    """
    search = awq_processor.AWQProcessor._compute_best_scale  # noqa: SLF001 - it has no public way

    def searched(*given: Any) -> Any:
        modules = given[5]  # after the processor, inputs, two means and what is inspected
        for module in modules:
            module.weight.detach = partial(_copy, module.weight)
        try:
            return search(*given)
        finally:
            for module in modules:
                del module.weight.detach

    with patch.object(awq_processor.AWQProcessor, "_compute_best_scale", searched):
        yield


def _copy(weight: torch.Tensor) -> torch.Tensor:
    return torch.Tensor.detach(weight).clone()


@contextmanager
def _packed_from_float32() -> Iterator[None]:
    """Let the awq format be made of float32 weights: only its scales have to be of 16 bits."""
    create = awq_processor.create_quant_module

    def created(**named: Any) -> Any:
        if named.get("dtype") is torch.float32:
            named["dtype"] = torch.float16
        return create(**named)

    with patch.object(awq_processor, "create_quant_module", created):
        yield


def _packed(inner: Any) -> dict[str, Any]:
    return {name: one for name, one in inner.named_modules() if isinstance(one, BaseQuantLinear)}


def _require_done(inner: Any, choice: Choice) -> None:
    """Raise BadRequestError where gptqmodel passed over a module in silence."""
    missing = [name for name in choice.quantized if name not in _packed(inner)]
    if missing:
        raise BadRequestError(
            f"spec.method: gptqmodel left {len(missing)} of {len(choice.quantized)} modules of "
            f"{type(inner).__name__} as they are: {shown(missing)}",
            reason=FailureReason.UNSUPPORTED_MODEL,
            advice="ignore them, or take another engine or method",
        )


def _told(model: Any) -> list[str]:
    """Return a note where modules saw too little text, and were rounded to nearest instead."""
    rounded = [row for row in model.quant_log if "fallback" in str(row.get("loss", ""))]
    if not rounded:
        return []
    return [f"{len(rounded)} modules saw too little calibration text and were rounded to nearest"]


def _save(model: Any, target: Path, source: Path, choice: Choice) -> None:
    """Write weights in shards, and beside them the original's words with what was done to it.

    gptqmodel would also write the tokenizer anew, mend what it takes for mistakes in the config,
    and name folders of this machine.
    """
    model.save(str(target), max_shard_size=SHARD_BYTES)
    for path in target.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif not path.name.startswith("model") or path.suffix not in {".safetensors", ".json"}:
            path.unlink()
    restore_types(target, source)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = _words(model.quantize_config, choice)
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _words(config: Any, choice: Choice) -> dict[str, Any]:
    """Return what config.json says of the quantization, for every program that serves it.

    vLLM and SGLang read `dynamic`, transformers `modules_in_block_to_quantize`, and for awq all
    read `modules_to_not_convert`.
    """
    words: dict[str, Any] = json.loads(json.dumps(config.to_dict()))
    words["meta"] = {name: one for name, one in words["meta"].items() if name in _META}
    del words["method"]
    if isinstance(config, AWQConfig):
        words.pop("dynamic", None)
        words["modules_to_not_convert"] = [*choice.ignored, *choice.unreached]
    elif "dynamic" in words or choice.unreached:
        words["modules_in_block_to_quantize"] = [list(choice.quantized)]
    return words


def _computing(model: Any, device: torch.device) -> Any:
    """Return the quantized model ready to compute, as it would be once loaded.

    It is packed as the first version of the gptq format has it, which kernels do not compute with.
    """
    inner = model.model
    config = model.quantize_config
    for module in _packed(inner).values():
        if config.format == "gptq" and module.REQUIRES_FORMAT_V2:
            convert_gptq_v1_to_v2_format_module(module, bits=config.bits, pack_dtype=torch.int32)
        module.post_init()
    return inner.eval().to(device)


if __name__ == "__main__":
    serve_engine(GPTQModelWork)
