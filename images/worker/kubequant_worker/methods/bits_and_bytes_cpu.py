"""How a checkpoint of bitsandbytes computes on a CPU in our processes.

Its own way depends on the processor: one with AVX512-BF16 computes in bfloat16 whatever was asked
for, and raises for a weight whose rows are no multiple of 32; one without computes in the type that
config.json names, which may be half precision and many times slower. transformers leaves what is
not quantized in the type that it is stored in. Here all of it computes in one type, so that numbers
are the quantization's and not the processor's. What is published is as it was asked for.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from bitsandbytes.nn import Linear4bit, modules

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


def loaded(load: Callable[[], Any], dtype: torch.dtype) -> Any:
    """Return the model that `load` gives, computing in `dtype`."""
    # It warns in every product of every layer that 8 bits are reached through half precision.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with patch.object(modules, "has_avx512bf16", lambda: False):
        model = load()
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype = dtype
            module.compute_type_is_set = True
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return model
