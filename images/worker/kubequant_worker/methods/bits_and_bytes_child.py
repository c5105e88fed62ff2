"""The child that holds bitsandbytes: `python -m kubequant_worker.methods.bits_and_bytes_child`.

The parent's half is `bits_and_bytes`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from transformers import BitsAndBytesConfig
from transformers.integrations.bitsandbytes import Bnb4bitQuantize, Bnb8bitQuantize
from transformers.pytorch_utils import Conv1D

from kubequant_worker.methods.engine_child import serve_engine
from kubequant_worker.methods.quantized_load_child import QuantizedLoadWork

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class BitsAndBytesWork(QuantizedLoadWork):
    """Quantizes by bitsandbytes."""

    NAME: ClassVar[str] = "bitsandbytes"
    OPERATIONS: ClassVar[tuple[type[Any], ...]] = (Bnb4bitQuantize, Bnb8bitQuantize)

    def quantizes(self, module: torch.nn.Module) -> bool:
        """Say whether the engine knows modules of this kind."""
        return type(module) is torch.nn.Linear or isinstance(module, Conv1D)

    def configuration(self, settings: Mapping[str, Any], kept: Sequence[str]) -> Any:
        """Return what transformers is told; the modules `kept` stay as they are."""
        kind: Any = BitsAndBytesConfig
        return kind(**settings, llm_int8_skip_modules=list(kept))


if __name__ == "__main__":
    serve_engine(BitsAndBytesWork)
