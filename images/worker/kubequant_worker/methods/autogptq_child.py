"""The child that holds AutoGPTQ: `python -m kubequant_worker.methods.autogptq_child`.

It tokenizes calibration text and makes checkpoints in the gptq format. The parent's half is
`legacy`.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final
from unittest.mock import patch

import torch
from auto_gptq.modeling import _base as engine
from auto_gptq.modeling.auto import GPTQ_CAUSAL_LM_MODEL_MAP
from torch import nn

from kubequant.api.engines import AUTO_GPTQ
from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods.engine_child import serve_engine
from kubequant_worker.methods.legacy_child import LegacyWork, Task, modules_in

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

# Integers are packed by so many, along rows and along columns.
_WORD: Final = 32
# How much of the work packing is, against one for each module.
_PACKING: Final = 0.1


class AutoGPTQWork(LegacyWork):
    """Quantizes by AutoGPTQ, one module after another."""

    NAME: ClassVar[str] = AUTO_GPTQ

    def candidates(self, model: Any) -> Mapping[str, nn.Linear]:
        """Return those linear modules in layers that AutoGPTQ has a name for."""
        kind = model.config.model_type
        if kind not in GPTQ_CAUSAL_LM_MODEL_MAP:
            raise self.unknown(model, GPTQ_CAUSAL_LM_MODEL_MAP)
        found = GPTQ_CAUSAL_LM_MODEL_MAP[kind]
        names = [name for together in found.inside_layer_modules for name in together]
        layers = model.get_submodule(found.layers_block_name)
        block = self._block = found.layers_block_name
        known = {f"{block}.{number}.{name}" for number in range(len(layers)) for name in names}
        there = modules_in(model, layers)
        return {name: module for name, module in there.items() if name in known}

    def left(self, names: Collection[str], out: Collection[str]) -> Collection[str]:
        """Return what is ignored.

        The format's readers tell modules apart by their names in a layer, so one that is ignored in
        a layer must be so in all.
        """
        kinds = {self._kind(name) for name in out}
        half = [name for name in names if name not in out and self._kind(name) in kinds]
        if half:
            raise BadRequestError(
                f"spec.gptq.ignore: {self._kind(half[0])} is ignored in some layers and not in "
                f"{half[0]}; readers of the gptq format cannot tell layers apart",
                reason=FailureReason.UNSUPPORTED_MODEL,
                advice="ignore it in all layers or in none, or take engine LLMCompressor",
            )
        return out

    def _kind(self, name: str) -> str:
        return name.removeprefix(f"{self._block}.").partition(".")[2]

    def fits(self, module: nn.Linear) -> bool:
        """Say whether rows and columns come to whole words."""
        return module.in_features % _WORD == 0 and module.out_features % _WORD == 0

    def run(self, task: Task) -> dict[str, Any]:
        """Quantize in place, and return what config.json says of it."""
        model = task.model
        settings = engine.BaseQuantizeConfig(**task.settings)
        gptq = GPTQ_CAUSAL_LM_MODEL_MAP[model.config.model_type](model, False, settings)  # noqa: FBT003 - its own form
        rows = torch.from_numpy(task.rows.astype("int64"))
        examples = [
            {"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in rows
        ]
        with _told(task):
            gptq.quantize(examples, batch_size=1, cache_examples_on_gpu=not task.offloads)
        for name, module in task.chosen.items():
            if module.bias is None:  # it makes one of zeros for every module
                model.get_submodule(name).bias = None
        return {**task.settings, **self._others(task)}

    def _others(self, task: Task) -> dict[str, Any]:
        """Return what the config says besides the settings: the format, and what is left out."""
        words: dict[str, Any] = {"quant_method": "gptq", "checkpoint_format": "gptq"}
        if task.left:
            # The one word is transformers', the other vLLM's and GPTQModel's.
            kinds = dict.fromkeys(self._kind(name) for name in task.chosen)
            out = dict.fromkeys(self._kind(name) for name in task.left)
            words["modules_in_block_to_quantize"] = [[kind] for kind in kinds]
            words["dynamic"] = {rf"-:.*\.{re.escape(kind)}$": {} for kind in out}
        return words


@contextmanager
def _told(task: Task) -> Iterator[None]:
    """Let AutoGPTQ's own loop tell of each module, and pass over what is left out."""
    of = len(task.chosen) * (1 + _PACKING)
    left = {id(module) for module in task.left.values()}
    done = 0
    whole, pack = engine.find_layers, engine.pack_model

    class Told(engine.GPTQ):  # type: ignore[misc] # not here when mypy runs
        def fasterquant(self, *arguments: Any, **settings: Any) -> Any:
            nonlocal done
            found = super().fasterquant(*arguments, **settings)
            done += 1
            task.tell(done, of, f"GPTQ: module {done} of {len(task.chosen)}")
            return found

    def kept(module: nn.Module) -> dict[str, nn.Module]:
        return {name: one for name, one in whole(module).items() if id(one) not in left}

    def packed(*arguments: Any, **settings: Any) -> None:
        task.tell(done, of, "packing")
        pack(*arguments, **settings)

    with (
        patch.object(engine, "GPTQ", Told),
        patch.object(engine, "find_layers", kept),
        patch.object(engine, "pack_model", packed),
    ):
        yield


if __name__ == "__main__":
    serve_engine(AutoGPTQWork)
