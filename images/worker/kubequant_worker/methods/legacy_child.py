"""What the children of AutoGPTQ and AutoAWQ share: which modules, what is written, what is checked.

An engine's own module (`autogptq_child`, `autoawq_child`) gives the part in between: `run`. torch
and transformers are imported here, so only children import this module. The parent's half is
`legacy`.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
import torch
from huggingface_hub import save_torch_state_dict
from torch import nn

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods import remote_code
from kubequant_worker.methods.engine_child import (
    Work,
    bound_gpu,
    sentence,
    write_logits,
)
from kubequant_worker.methods.ignored import (
    GROUP_SIZES,
    classes_of,
    ignored,
    linear_modules,
    require_targets,
    require_whole_groups,
    unused,
    widths_of,
    words_of_nothing,
)
from kubequant_worker.methods.shards import SHARD_BYTES, restore_types
from kubequant_worker.methods.transformers_model import Loading, load_model

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence


_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Task:
    """What an engine does.

    `chosen` are the modules to quantize and `left` those in layers that stay, by their full names.
    `rows` are token ids, shape (samples, length). `settings` are the engine's own words. `tell`
    takes (done, of, message).
    """

    model: Any
    chosen: Mapping[str, nn.Linear]
    left: Mapping[str, nn.Linear]
    rows: np.ndarray[Any, Any]
    settings: Mapping[str, Any]
    tell: Callable[[float, float, str], None]
    offloads: bool


class LegacyWork(Work):
    """Quantizes the modules in a model's layers."""

    NAME: ClassVar[str]
    """The engine's word in the API."""
    GROUP_SIZES: ClassVar[Sequence[int]] = GROUP_SIZES
    """The widths of groups that it knows."""

    @abstractmethod
    def candidates(self, model: Any) -> Mapping[str, nn.Linear]:
        """Return the modules in layers that the engine can quantize, by their full names.

        Raises:
            BadRequestError: The engine does not know this kind of model.
        """

    @abstractmethod
    def left(self, names: Collection[str], out: Collection[str]) -> Collection[str]:
        """Return those of the candidates `names` that stay as they are; `out` are ignored.

        Raises:
            BadRequestError: The format has no words for them.
        """

    @abstractmethod
    def run(self, task: Task) -> dict[str, Any]:
        """Quantize in place, and return what config.json says of it."""

    def quantize(self, job: Mapping[str, Any]) -> list[str]:
        """Make the checkpoint that `job` describes; return notes."""
        loading = Loading(**job["loading"])
        remote_code.decide(trusted=loading.trust_remote_code)
        bound_gpu(job["most_gpu_bytes"])
        torch.manual_seed(job["seed"])
        model = load_model(Path(job["model"]), loading)
        classes = classes_of(model)
        there = self.candidates(model)
        stay = self.left(there, ignored(there, job["ignore"], classes))
        task = Task(
            model=model,
            chosen={name: module for name, module in there.items() if name not in stay},
            left={name: module for name, module in there.items() if name in stay},
            rows=np.load(job["samples"]),
            settings=job["settings"],
            tell=self._parent.event,
            offloads=job["offloads"],
        )
        linear = linear_modules(model)
        as_it_was = [*linear_modules(model, job["ignore"]).keys() - task.chosen.keys()]
        self._require_fitting(task, job["settings"])
        written = self._run_in_words(task)
        self._parent.event(1, 1, "saving")
        _save(model, Path(job["model"]), Path(job["target"]), written)
        if job["probe"]:
            _compute(task, job["compute_device"], loading, job)
        nothing = words_of_nothing(classes, job["ignore"], classes)
        return [*_counted(task, len(linear), as_it_was), *unused(nothing)]

    def _run_in_words(self, task: Task) -> dict[str, Any]:
        try:
            return self.run(task)
        except torch.OutOfMemoryError as error:
            raise MemoryError(str(error).splitlines()[0]) from error
        except Exception as error:  # both raise it plainly, for numbers that are none for example
            raise BadRequestError(
                f"spec.method: {self.NAME} cannot do this with {type(task.model).__name__}: "
                f"{type(error).__name__}: {sentence(error)}",
                reason=FailureReason.UNSUPPORTED_MODEL,
                advice="it is no longer kept up; take engine LLMCompressor",
            ) from error

    def unknown(self, model: Any, known: Iterable[str]) -> BadRequestError:
        """Return the sentence for a model that the engine does not know."""
        return BadRequestError(
            f"spec.method: {self.NAME} does not know models of type {model.config.model_type}; it "
            f"knows {', '.join(sorted(known))}",
            reason=FailureReason.UNSUPPORTED_MODEL,
            advice="take engine LLMCompressor",
        )

    def _require_fitting(self, task: Task, settings: Mapping[str, Any]) -> None:
        """Raise BadRequestError where shapes are none that the format holds."""
        require_targets(task.model, task.chosen, self.NAME)
        size = settings.get("group_size", settings.get("q_group_size"))
        require_whole_groups(widths_of(task.chosen), size, sizes=self.GROUP_SIZES)
        odd = [name for name, module in task.chosen.items() if not self.fits(module)]
        if odd:
            module = task.chosen[odd[0]]
            raise BadRequestError(
                f"spec.method: {self.NAME} cannot pack {odd[0]}, of {module.in_features} columns "
                f"and {module.out_features} rows ({len(odd)} of {len(task.chosen)} modules are so)",
                reason=FailureReason.UNSUPPORTED_MODEL,
                advice="ignore those modules, or take engine LLMCompressor",
            )

    @abstractmethod
    def fits(self, module: nn.Linear) -> bool:
        """Say whether the format holds a module of this shape."""


def _counted(task: Task, linear: int, as_it_was: Sequence[str]) -> list[str]:
    """Return notes on how many modules are quantized, and on those that the engine left out."""
    notes = [f"{len(task.chosen)} of {linear} linear modules are quantized"]
    if as_it_was:
        names = ", ".join(sorted(as_it_was)[:_SHOWN])
        notes.append(f"{names}: not what this engine quantizes, and as it was")
    return notes


def modules_in(model: Any, layers: Iterable[nn.Module]) -> dict[str, nn.Linear]:
    """Return the linear modules of `layers`, by their full names."""
    inside = {id(module) for layer in layers for module in layer.modules()}
    linear = linear_modules(model)
    return {name: module for name, module in linear.items() if id(module) in inside}


def _save(model: Any, source: Path, target: Path, written: Mapping[str, Any]) -> None:
    """Write the checkpoint: packed weights, and beside them the original's own words.

    An older transformers would leave out of config.json what it does not know.
    """
    model.to("cpu")
    save_torch_state_dict(
        model.state_dict(),
        target,
        max_shard_size=SHARD_BYTES,
        shared_tensors_to_discard=model._tied_weights_keys,  # noqa: SLF001 - as save_pretrained does
    )
    restore_types(target, source)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = dict(written)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (target / "config.json").write_text(text, encoding="utf-8")


def _compute(task: Task, device: str, loading: Loading, job: Mapping[str, Any]) -> None:
    """Write what the model computes with the weights that the engine rounded, not yet packed.

    Both engines leave them in the modules that they replace.
    """
    for name, module in task.chosen.items():
        task.model.set_submodule(name, module.to(getattr(torch, loading.dtype)))
    task.model.to(device)
    write_logits(task.model, torch.device(device), Path(job["probe"]), Path(job["expected"]))
