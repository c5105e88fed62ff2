"""The child that holds ModelOpt: `python -m kubequant_worker.methods.modelopt_child`.

It calibrates, writes the unified checkpoint, and beside it, where an engine is to be built, the
same model in the form that TensorRT-LLM builds engines of. The parent's half is `tensorrt`.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import modelopt.torch.quantization as mtq
import numpy as np
import torch
from modelopt.torch.export import (
    export_hf_checkpoint,
    export_tensorrt_llm_checkpoint,
    get_model_type,
)

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods import remote_code
from kubequant_worker.methods.engine_child import (
    Work,
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
from kubequant_worker.methods.published_config import older_rotation
from kubequant_worker.methods.shards import SHARD_BYTES, restore_types
from kubequant_worker.methods.transformers_model import Loading, load_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_PRESETS: Final[dict[str, dict[str, Any]]] = {
    "FP8": mtq.FP8_DEFAULT_CFG,
    "INT8": mtq.INT8_SMOOTHQUANT_CFG,
    "INT4AWQ": mtq.INT4_AWQ_CFG,
}
# How often the calibration text goes through the model: AWQ looks at it, then tries its scales.
_PASSES: Final = {"FP8": 1, "INT8": 1, "INT4AWQ": 2}
_WEIGHTS: Final = "*weight_quantizer"
_INPUTS: Final = "*input_quantizer"
_GROUP: Final = 128
_HALF: Final = torch.float16
# What TensorRT-LLM computes in; other types are halved.
_COMPUTED: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16}
# What ModelOpt raises where it does not know a model.
_UNKNOWN: Final = (
    AssertionError, AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip


class ModelOptWork(Work):
    """Quantizes by ModelOpt's presets."""

    def quantize(self, job: Mapping[str, Any]) -> list[str]:
        """Make the checkpoint that `job` describes; return notes.

        In it are `precision` and `ignore`, the API's, and `engine`: None, or the folder for what
        TensorRT-LLM builds of (`checkpoint`) and over how many GPUs (`tensor_parallel`).
        """
        loading = Loading(**job["loading"])
        remote_code.decide(trusted=loading.trust_remote_code)
        torch.manual_seed(job["seed"])
        model = load_model(Path(job["model"]), loading)
        target, source = Path(job["target"]), Path(job["model"])
        halved = job["precision"] == "FP16"
        notes = [] if halved else self._calibrate(model, job)
        if job["probe"]:
            device = model.get_input_embeddings().weight.device
            write_logits(model, device, Path(job["probe"]), Path(job["expected"]))
        if job["engine"]:
            self._parent.event("save", 0, 1, "writing what TensorRT-LLM builds of")
            stored = _HALF if halved else _COMPUTED.get(job["stored"], _HALF)
            _export_for_engine(model, job["engine"], stored)
        self._parent.event("save", 0, 1, "saving")
        if halved:
            with plain_generation(model, target):
                model.to(_HALF).save_pretrained(target, max_shard_size=SHARD_BYTES)
            return notes
        with (
            _told("the checkpoint"),
            torch.inference_mode(),
            plain_generation(model, target),
        ):
            export_hf_checkpoint(
                model,
                dtype=getattr(torch, job["stored"]),
                export_dir=target,
                max_shard_size=SHARD_BYTES,
            )
        restore_types(target, source)
        return notes

    def _calibrate(self, model: Any, job: Mapping[str, Any]) -> list[str]:
        """Quantize in place, as the text teaches, and return notes."""
        precision, ignore = job["precision"], job["ignore"]
        targets = linear_modules(model, ignore)
        require_targets(model, targets, "ModelOpt")
        if precision == "INT4AWQ":
            what = f"spec.tensorRT.precision: INT4AWQ has groups of {_GROUP}, and that"
            require_whole_groups(widths_of(targets), _GROUP, what, "precision: FP8")
        config = configuration(model, precision, targets)
        with _told("quantizing"):
            mtq.quantize(model, config, self._forward(np.load(job["samples"]), _PASSES[precision]))
        made = [
            name
            for name, module in model.named_modules()
            if getattr(getattr(module, "weight_quantizer", None), "is_enabled", False)
        ]
        classes = classes_of(model)
        counted = f"{len(made)} of {len(linear_modules(model))} linear modules are quantized"
        left = sorted(targets.keys() - set(made))
        kept = [f"ModelOpt keeps {', '.join(left[:8])} as stored, for this model"] if left else []
        return [counted, *kept, *unused(words_of_nothing(classes, ignore, classes))]

    def _forward(
        self, samples: np.ndarray[Any, Any], passes: int
    ) -> Callable[[torch.nn.Module], None]:
        """Return what ModelOpt calls to send the text through the model, telling of each text."""
        seen, total = 0, passes * len(samples)

        def forward(model: Any) -> None:
            nonlocal seen
            device = model.get_input_embeddings().weight.device
            for row in samples:
                ids = torch.from_numpy(row.astype(np.int64))[None].to(device)
                model(input_ids=ids, use_cache=False)
                seen += 1
                done = min(seen, total)
                self._parent.event("calibrate", done, total, f"text {done} of {total}")

        return forward


def configuration(model: Any, precision: str, targets: Mapping[str, Any]) -> dict[str, Any]:
    """Return ModelOpt's configuration: a preset, and the modules that `targets` lacks left out.

    The presets leave every output head out; one that is a target is let in by its name.
    """
    config = copy.deepcopy(_PRESETS[precision])
    entries: list[dict[str, Any]] = list(config["quant_cfg"])
    kinds = [one for one in entries if one["quantizer_name"] in {_WEIGHTS, _INPUTS}]
    head = model.get_output_embeddings()
    for name, module in linear_modules(model).items():
        if name not in targets:
            entries.append({"quantizer_name": f"{name}.*", "enable": False})
        elif module is head:
            entries += [
                {**kind, "quantizer_name": f"{name}.{kind['quantizer_name'].removeprefix('*')}"}
                for kind in kinds
            ]
    return {**config, "quant_cfg": entries}


def _export_for_engine(model: Any, engine: Mapping[str, Any], dtype: torch.dtype) -> None:
    """Write the checkpoint that `trtllm-build` reads: other names than transformers', by rank.

    ModelOpt then lets modules that an engine merges (queries, keys and values) share an FP8 scale,
    and so does the checkpoint that is saved after this one.
    """
    kind = get_model_type(model)
    name = type(model).__name__
    if kind is None:
        raise BadRequestError(
            f"spec.tensorRT.build: an engine of {name} cannot be built, since ModelOpt knows no "
            "such architecture of TensorRT-LLM's",
            reason=FailureReason.UNSUPPORTED_MODEL,
            advice="set build: Checkpoint, which TensorRT-LLM's PyTorch backend loads",
        )
    older = _older_rotation(model)
    # Words for engines are left in the model's config: parallel training, a padded vocabulary.
    known = dict(vars(model.config))
    vars(model.config).update({name: one for name, one in older.items() if name not in known})
    with _told("what TensorRT-LLM builds of"), torch.inference_mode():
        export_tensorrt_llm_checkpoint(
            model,
            kind,
            dtype,
            export_dir=engine["checkpoint"],
            inference_tensor_parallel=engine["tensor_parallel"],
        )
    vars(model.config).clear()
    vars(model.config).update(known)


def _older_rotation(model: Any) -> dict[str, Any]:
    """Return how the model rotates positions, by the names under which ModelOpt looks for it.

    What it does not find there is left out of an engine's words, and the engine takes its default.
    """
    parameters = getattr(model.config, "rope_parameters", None) or {}
    older = older_rotation(parameters)
    if older is None:
        raise BadRequestError(
            f"spec.tensorRT.build: an engine of {type(model).__name__} cannot be built, since it "
            f"rotates positions by the kind of layer ({', '.join(parameters)}), for which ModelOpt "
            "has no words",
            reason=FailureReason.UNSUPPORTED_MODEL,
            advice="set build: Checkpoint, which TensorRT-LLM's PyTorch backend loads",
        )
    return older


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn what ModelOpt cannot do with this model into a sentence."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(str(error).splitlines()[0]) from error
    except BadRequestError:
        raise
    except _UNKNOWN as error:
        raise BadRequestError(
            f"spec.method: ModelOpt cannot do this with the model ({what}): {sentence(error)}",
            reason=FailureReason.UNSUPPORTED_MODEL,
            advice="ignore the modules that it names (tensorRT.ignore), or take another method",
        ) from error


if __name__ == "__main__":
    serve_engine(ModelOptWork)
