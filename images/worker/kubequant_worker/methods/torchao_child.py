"""The child that holds torchao: `python -m kubequant_worker.methods.torchao_child`.

The parent's half is in the methods that it does (`int8`).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar, Final

import torch
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
from transformers import TorchAoConfig
from transformers.integrations.torchao import TorchAoQuantize

from kubequant_worker.methods.engine_child import serve_engine
from kubequant_worker.methods.quantized_load_child import QuantizedLoadWork

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SCHEMES: Final[dict[str, Any]] = {
    "WeightAndActivation": Int8DynamicActivationInt8WeightConfig,
    "WeightOnly": Int8WeightOnlyConfig,
}


class TorchAOWork(QuantizedLoadWork):
    """Quantizes by torchao."""

    NAME: ClassVar[str] = "torchao"
    OPERATIONS: ClassVar[tuple[type[Any], ...]] = (TorchAoQuantize,)

    def quantizes(self, module: torch.nn.Module) -> bool:
        """Say whether the engine knows modules of this kind."""
        return isinstance(module, torch.nn.Linear)

    def configuration(self, settings: Mapping[str, Any], kept: Sequence[str]) -> Any:
        """Return what transformers is told; the modules `kept` stay as they are."""
        scheme = _SCHEMES[settings["scheme"]]()
        return TorchAoConfig(scheme, modules_to_not_convert=list(kept))

    def label(self, metadata: Mapping[str, str], stored: str) -> dict[str, str]:
        """Return a shard's metadata, its tensors labelled with the checkpoint's own type.

        The label says what a weight is taken for once it is dequantized, and readers hold it
        against the model's type; the engine's own says in which type it was read.
        """
        return {name: _labelled(text, stored) for name, text in metadata.items()}


def _labelled(text: str, stored: str) -> str:
    if not text.startswith("{"):
        return text
    described = json.loads(text)
    kind = described.get("_data", {}).get("dtype", {})
    if kind.get("_type") == "torch.dtype":
        kind["_data"] = stored
    return json.dumps(described)


if __name__ == "__main__":
    serve_engine(TorchAOWork)
