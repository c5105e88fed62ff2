"""The child that holds AutoAWQ: `python -m kubequant_worker.methods.autoawq_child`.

It tokenizes calibration text and makes checkpoints in the awq format. The parent's half is
`legacy`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final
from unittest.mock import patch

from awq.models._config import AwqConfig
from awq.models.auto import AWQ_CAUSAL_LM_MODEL_MAP
from awq.models.base import TRANSFORMERS_AUTO_MAPPING_DICT
from awq.quantize import quantizer as engine
from awq.utils.module import get_named_linears

from kubequant.api.engines import AUTO_AWQ
from kubequant_worker.methods.engine_child import serve_engine
from kubequant_worker.methods.legacy_child import LegacyWork, Task, modules_in

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from torch import nn

# How many sequences go through a layer at once; all of them would be too much for a GPU.
_AT_ONCE: Final = 1
# Clipping goes through the outputs in pieces of so many.
_PIECE: Final = 64


class AutoAWQWork(LegacyWork):
    """Quantizes by AutoAWQ."""

    NAME: ClassVar[str] = AUTO_AWQ
    GROUP_SIZES: ClassVar[Sequence[int]] = (128, 64, 32)

    def candidates(self, model: Any) -> Mapping[str, nn.Linear]:
        """Return the linear modules in layers."""
        self._words: list[str] = []
        kind = model.config.model_type
        texts = {
            name
            for name in AWQ_CAUSAL_LM_MODEL_MAP
            if TRANSFORMERS_AUTO_MAPPING_DICT[name] == "AutoModelForCausalLM"
        }
        if kind not in texts:
            raise self.unknown(model, texts)
        found = AWQ_CAUSAL_LM_MODEL_MAP[kind]
        self._words = list(getattr(found, "modules_to_not_convert", None) or ())
        return modules_in(model, found.get_model_layers(model))

    def left(self, names: Collection[str], out: Collection[str]) -> Collection[str]:
        """Return what is ignored, and whatever a reader of the format takes for ignored then.

        Readers look for each word of modules_to_not_convert anywhere in a name. AutoAWQ has some
        such words of its own for some kinds of models.
        """
        self._words += [name for name in names if name in out]
        return {name for name in names if any(word in name for word in self._words)}

    def fits(self, module: nn.Linear) -> bool:
        """Say whether the outputs come to whole pieces."""
        return module.out_features % _PIECE == 0

    def run(self, task: Task) -> dict[str, Any]:
        """Quantize in place, and return what config.json says of it."""
        model = task.model
        awq = AWQ_CAUSAL_LM_MODEL_MAP[model.config.model_type](
            model,
            model.config.model_type,
            is_quantized=False,
            config=model.config,
            quant_config=AwqConfig(),
            processor=None,
        )
        awq.modules_to_not_convert = self._words or None
        left = {id(module) for module in task.left.values()}
        with patch.object(engine, "exclude_layers_to_not_quantize", _without(left)):
            awq.quantize(
                None,
                {**task.settings},
                calib_data=task.rows.tolist(),
                max_calib_samples=task.rows.shape[0],
                max_calib_seq_len=task.rows.shape[1],
                n_parallel_calib_samples=_AT_ONCE,
                quantizer_cls=_Told,
                left=left,
                tell=task.tell,
            )
        written: dict[str, Any] = awq.quant_config.to_transformers_dict()
        return written


def _without(left: set[int]) -> Any:
    """Return the filter of modules by what they are, where AutoAWQ has one by parts of names."""

    def kept(modules: dict[str, nn.Module], _words: object) -> dict[str, nn.Module]:
        return {name: module for name, module in modules.items() if id(module) not in left}

    return kept


class _Told(engine.AwqQuantizer):  # type: ignore[misc] # not here when mypy runs
    """AutoAWQ's own loop, which tells of each step, and takes layers with modules left out."""

    def __init__(self, *arguments: Any, left: set[int], tell: Any, **settings: Any) -> None:
        self._left = left
        self._tell = tell
        self._layer = 0
        self._part = 0
        self._parts = 1
        super().__init__(*arguments, **settings)
        whole = self.awq_model.get_layers_for_scaling
        self.awq_model.get_layers_for_scaling = lambda *given: self._scaled(whole(*given))

    def _get_input_feat(self, layer: nn.Module, named_linears: Any) -> Any:
        # It looks up what goes into modules that are left out too.
        del named_linears
        self._part, self._parts = 0, 1
        return super()._get_input_feat(layer, get_named_linears(layer))

    def _scaled(self, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the groups of modules of which one at least is quantized."""
        found = [
            entry for entry in entries if any(id(one) not in self._left for one in entry["layers"])
        ]
        # Each is a part of the work on a layer, and so are clipping and packing together.
        self._parts = len(found) + 1
        return found

    def _compute_best_scale(
        self, x: Any, w_mean: Any, x_mean: Any, module2inspect: nn.Module, *others: Any
    ) -> Any:
        # Between tries it puts back the weights that it took by cpu(): on a CPU those are the very
        # tensors that each try scales, so that every try would spoil the next, and the model.
        whole = module2inspect.state_dict

        def copied() -> dict[str, Any]:
            return {name: tensor.clone() for name, tensor in whole().items()}

        with patch.object(module2inspect, "state_dict", copied):
            return super()._compute_best_scale(x, w_mean, x_mean, module2inspect, *others)

    def _search_best_scale(self, *arguments: Any, **settings: Any) -> Any:
        found = super()._search_best_scale(*arguments, **settings)
        self._part += 1
        self._say(f"scales {self._part} of {self._parts - 1}")
        return found

    def _apply_quant(self, module: nn.Module, named_linears: Any) -> None:
        super()._apply_quant(module, named_linears)
        self._part = self._parts
        self._say("packed")
        self._layer += 1

    def _say(self, what: str) -> None:
        done, of = self._layer + self._part / self._parts, len(self.modules)
        self._tell(done, of, f"AWQ: layer {self._layer + 1} of {of}: {what}")


if __name__ == "__main__":
    serve_engine(AutoAWQWork)
