"""How checkpoints in the gptq and the awq format are computed here: by torch alone.

gptqmodel would take kernels that it compiles at their first use, for which an image holds no
compiler, or such as compute in 16 bits, which on many CPUs is very slow. Its plain ones dequantize
a module's weights and multiply, on any device. gptqmodel and transformers are imported when they
are needed, so that images without gptqmodel can ask too.
"""

from __future__ import annotations

import json
import os
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

_FORMATS = ("gptq", "awq")


def loading_arguments(path: Path) -> dict[str, Any]:
    """Return arguments of `from_pretrained` for the checkpoint in the folder `path`.

    None where it is in another format, or gptqmodel is not there.
    """
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    written = config.get("quantization_config") or {}
    if written.get("quant_method") not in _FORMATS or find_spec("gptqmodel") is None:
        return {}
    from transformers import AwqConfig, GPTQConfig  # noqa: PLC0415 - see above
    from transformers.utils.quantization_config import AwqBackend  # noqa: PLC0415 - see above

    compute_plainly()
    # Of what is given only the kernel counts: the checkpoint says the rest itself.
    kernel = (
        AwqConfig(bits=written["bits"], backend=AwqBackend.TORCH_AWQ)
        if written["quant_method"] == "awq"
        else GPTQConfig(bits=written["bits"], backend="gptq_torch")
    )
    return {"quantization_config": kernel}


def compute_plainly() -> None:
    """Let gptqmodel's plain kernels compile nothing and compute in the type of their input."""
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    _compute_awq_in_float32()


@cache
def _compute_awq_in_float32() -> None:
    """Let the plain kernel of awq multiply float32 as such; its own way is to go over float16."""
    import torch  # noqa: PLC0415 - see above
    from gptqmodel.nn_modules.qlinear import torch_awq  # noqa: PLC0415 - see above

    kernel = torch_awq.AwqTorchLinear
    half = kernel.forward

    def forward_in_float32(self: Any, inputs: Any) -> Any:
        if inputs.dtype is not torch.float32:
            return half(self, inputs)
        self._ensure_runtime_dtype(device=inputs.device, dtype=torch.float32)
        weight = torch_awq.dequantize_gemm(
            qweight=self.qweight,
            qzeros=self.qzeros,
            scales=self.scales,
            bits=self.bits,
            group_size=self.group_size,
        )
        output = inputs @ weight
        return output if self.bias is None else output + self.bias

    kernel.forward = forward_in_float32
