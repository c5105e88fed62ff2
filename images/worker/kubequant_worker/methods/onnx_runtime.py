"""The parent's half of measuring with ONNX Runtime.

As transformers measures (`transformers_runtime`), but for the child (`onnx_child`) and its name.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from kubequant_worker.methods.transformers_runtime import TransformersEngine, TransformersRuntime

if TYPE_CHECKING:
    from collections.abc import Mapping

_MODULE = "kubequant_worker.methods.onnx_child"


class OnnxEngine(TransformersEngine):
    """A child that will hold one ONNX model, started at once."""

    def __init__(self, threads: int) -> None:
        """Compute with `threads` threads of the CPU."""
        super().__init__(threads, module=_MODULE, engine="ONNX Runtime")


class OnnxRuntime(TransformersRuntime):
    """One folder with a `model.onnx` in a process of its own."""

    @classmethod
    def described(cls, loading: Mapping[str, Any]) -> str:
        """Return what measures, and how the model is loaded."""
        return f"onnxruntime {version('onnxruntime')} on {loading['device']}"
