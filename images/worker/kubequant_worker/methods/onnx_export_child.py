"""The child that exports: `python -m kubequant_worker.methods.onnx_export_child`.

transformers' own exporter traces the model with torch; what comes out is a decoder with a cache of
keys and values, in float32. While the model is there, its logits of a short text are kept too,
which the export is held against. The parent's half is `onnxruntime`.
"""

from __future__ import annotations

import inspect
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from transformers import DynamicCache
from transformers.exporters.configs import OnnxConfig
from transformers.exporters.exporter_onnx import OnnxExporter

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods import onnx_graph, remote_code
from kubequant_worker.methods.checkpoint_check import CHECK_TEXT, check_ids
from kubequant_worker.methods.child import Parent, serve
from kubequant_worker.methods.engine_child import sentence
from kubequant_worker.methods.transformers_model import (
    Loading,
    bos_token,
    context_length,
    load_model,
    load_tokenizer,
    tokenize,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kubequant_worker.methods.child import Operation

# No two axes of the example are equal, and none is 1: the tracer would take one for the other.
_BATCH, _NEW, _PAST = 2, 3, 5
_KEYS_AXES: Final = 4
# What torch and its exporter raise where they do not know a model.
_UNKNOWN: Final = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip


class Export:
    """The operations of the child."""

    def __init__(self, parent: Parent) -> None:
        """Answer to `parent`."""
        self._parent = parent

    def operations(self) -> Mapping[str, Operation]:
        """Return what the parent may ask for."""
        return {"export": self.export}

    def export(self, job: Mapping[str, Any]) -> None:
        """Write the model in `job["model"]` to the folder `job["target"]`, in float32.

        `loading`: the fields of `transformers_model.Loading`. The files `ids` and `reference`:
        the check text's ids, and the logits over them, shape (tokens, vocabulary).
        """
        loading = Loading(**job["loading"])
        remote_code.decide(trusted=loading.trust_remote_code)
        path, target = Path(job["model"]), Path(job["target"])
        self._parent.event("trace", 0, 1, "loading the model")
        model = load_model(path, loading)
        self._keep_logits(model, path, loading, job)
        program = self._traced(model)
        onnx_graph.as_decoder(program)
        onnx_graph.name_products(program)
        onnx_graph.forget_origins(program)
        total = onnx_graph.weight_bytes(program)

        def count(amount: int, name: str) -> None:
            self._parent.event("write", amount, total, f"writing {name}")

        onnx_graph.save(program, target, largest_file_bytes=0, on_bytes=count)

    def _keep_logits(
        self, model: Any, path: Path, loading: Loading, job: Mapping[str, Any]
    ) -> None:
        trusted = loading.trust_remote_code
        tokenizer = load_tokenizer(path, trust_remote_code=trusted)
        ids = check_ids(
            tokenize(tokenizer, CHECK_TEXT, special=False),
            bos_token=bos_token(tokenizer),
            context_length=context_length(path, trust_remote_code=trusted),
        )
        with torch.no_grad():
            rows = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0]
        np.save(job["reference"], rows.numpy())
        np.save(job["ids"], ids)

    def _traced(self, model: Any) -> Any:
        """Return the model's ONNX program; raises BadRequestError where it has none."""
        inputs, axes = _example(model)
        exporter: Any = OnnxExporter
        try:
            with self._counting(model):
                exported = exporter().export(model, inputs, config=OnnxConfig(dynamic_shapes=axes))
        except _UNKNOWN as error:
            name = type(model).__name__
            raise BadRequestError(
                f"spec.int8.engine: ONNXRuntime needs the model as ONNX, and transformers cannot "
                f"export {name}: {sentence(error)}",
                reason=FailureReason.UNSUPPORTED_MODEL,
                advice="set engine: LLMCompressor, or take method GGUF",
            ) from error
        return exported.program

    @contextmanager
    def _counting(self, model: Any) -> Iterator[None]:
        """Tell the parent of each module that is traced."""
        leaves = {
            module: name for name, module in model.named_modules() if not list(module.children())
        }

        def traced(module: Any, *_: object) -> None:
            self._parent.event("trace", 1, len(leaves), f"tracing {leaves[module]}")

        handles = [module.register_forward_hook(traced) for module in leaves]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _example(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what to trace the model with, and which of its axes are free."""
    pairs = _past(model)
    free = torch.export.Dim.DYNAMIC
    inputs = {
        "input_ids": torch.zeros(_BATCH, _NEW, dtype=torch.int64),
        "attention_mask": torch.ones(_BATCH, _PAST + _NEW, dtype=torch.int64),
    }
    axes: dict[str, Any] = {name: {0: free, 1: free} for name in inputs}
    if "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = torch.arange(_PAST, _PAST + _NEW).repeat(_BATCH, 1)
        axes["position_ids"] = {0: free, 1: free}
    axes["past_key_values"] = [{0: free, 2: free} for _ in range(2 * len(pairs))]
    return {**inputs, "past_key_values": DynamicCache(pairs)}, axes


def _past(model: Any) -> list[tuple[Any, Any]]:
    """Return each layer's keys and values after a few tokens.

    Raises:
        BadRequestError: The model keeps something else between tokens.
    """
    with torch.no_grad():
        ids = torch.zeros(_BATCH, _PAST, dtype=torch.int64)
        kept = getattr(model(input_ids=ids, use_cache=True), "past_key_values", None)
    pairs = [
        (getattr(layer, "keys", None), getattr(layer, "values", None))
        for layer in getattr(kept, "layers", ())
    ]
    if not pairs or any(
        part is None or part.dim() != _KEYS_AXES or part.shape[2] != _PAST
        for pair in pairs
        for part in pair
    ):
        raise BadRequestError(
            f"spec.int8.engine: ONNXRuntime needs a decoder that keeps keys and values for every "
            f"layer, and {type(model).__name__} keeps something else between tokens",
            reason=FailureReason.UNSUPPORTED_MODEL,
            advice="set engine: LLMCompressor, or take method GGUF",
        )
    return pairs


def main() -> None:
    """Serve until the parent is gone. Arguments: socket, parent's pid, threads."""
    torch.set_num_threads(int(sys.argv[3]))
    torch.set_num_interop_threads(1)
    serve(sys.argv[1:], lambda parent: Export(parent).operations())


if __name__ == "__main__":
    main()
