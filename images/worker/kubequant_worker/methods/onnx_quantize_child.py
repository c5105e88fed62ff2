"""The child that quantizes ONNX: `python -m kubequant_worker.methods.onnx_quantize_child`.

ONNX Runtime's own tools quantize, each product with a constant matrix in a graph of its own: over
the whole graph they would hold it in memory several times. What they make of a product takes its
place in the whole. The parent's half is `onnxruntime`.
"""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import onnx_ir as ir
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
)

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods import onnx_graph
from kubequant_worker.methods.child import Parent, serve
from kubequant_worker.methods.ignored import ignored, unused, words_of_nothing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kubequant_worker.methods.child import Operation

_BITS: Final = 8
# Weights that share a scale where activations stay as they are. Smaller blocks gain nothing at 8
# bits (a divergence of 0.00002 nats against 0.00003 with blocks of 32) and cost 9 % more.
_BLOCK: Final = 128
_MICROSOFT: Final = "com.microsoft"


class Quantization:
    """The operations of the child."""

    def __init__(self, parent: Parent) -> None:
        """Answer to `parent`."""
        self._parent = parent

    def operations(self) -> Mapping[str, Operation]:
        """Return what the parent may ask for."""
        return {"quantize": self.quantize}

    def quantize(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Quantize the decoder in the folder `job["source"]` into the folder `job["target"]`.

        `scheme`: a word of `int8.scheme`. `ignore`: modules to leave out. `stored`: the type that
        the checkpoint stores. `work`: a folder for what lies on disk meanwhile.
        `largest_file_bytes`: as for `onnx_graph.save`.

        Returns `notes`, the `bytes` of the weights, and of the embeddings among them.
        """
        work = Path(job["work"])
        work.mkdir(parents=True, exist_ok=True)
        tempfile.tempdir = str(work)  # /tmp may be small, or memory
        model = ir.load(Path(job["source"]) / onnx_graph.MODEL_FILE)
        chosen, notes = _chosen(model, job["ignore"])
        embeddings = onnx_graph.embedding_names(model)
        for number, node in enumerate(chosen, 1):
            alone = work / str(number)
            alone.mkdir()
            _replace_product(model, node, _quantized(node, alone, job["scheme"]))
            self._parent.event(1, len(chosen), f"{node.name} ({number} of {len(chosen)})")
        if job["scheme"] == "WeightOnly":
            model.graph.opset_imports[_MICROSOFT] = 1
        onnx_graph.keep_stored_types(model, job["stored"])
        self._parent.event(0, len(chosen), "saving")
        largest = int(job["largest_file_bytes"])
        onnx_graph.save(model, Path(job["target"]), largest_file_bytes=largest)
        shutil.rmtree(work)
        total, wide = onnx_graph.weight_bytes(model), onnx_graph.weight_bytes(model, narrow=False)
        notes.append(
            f"{wide >> 10} of {total >> 10} KiB are not in 8 bits: embeddings and modules that are "
            f"ignored stay as the checkpoint stores them ({job['stored']})"
        )
        embedding_bytes = onnx_graph.embedding_bytes(model, embeddings)
        return {"notes": notes, "bytes": total, "embedding_bytes": embedding_bytes}


def _chosen(model: ir.Model, ignore: list[str]) -> tuple[list[ir.Node], list[str]]:
    """Return the products to quantize, and notes; raise BadRequestError where there are none."""
    everything = list(onnx_graph.products(model))
    names = [node.name or "" for node in everything]
    left_out = ignored(names, ignore)
    chosen = [node for node in everything if node.name not in left_out]
    if not chosen:
        raise BadRequestError(
            f"spec.int8.ignore: there is nothing for ONNXRuntime to quantize: the model has "
            f"{len(everything)} linear modules, and all are ignored",
            reason=FailureReason.UNSUPPORTED_MODEL,
            advice="ignore fewer",
        )
    _require_the_most(model, chosen)
    counted = f"{len(chosen)} of {len(everything)} linear modules are quantized"
    return chosen, [counted, *unused(words_of_nothing(names, ignore))]


def _require_the_most(model: ir.Model, chosen: list[ir.Node]) -> None:
    """Refuse a mixture of experts, whose weights are no matrices but stacks of them.

    ONNX Runtime's tools pass over stacks in silence, and most of the model would stay as it is.
    """
    stacks = onnx_graph.stacked_bytes(model)
    matrices = sum(onnx_graph.matrix_bytes(node) for node in chosen)
    if stacks > matrices:
        raise BadRequestError(
            f"spec.int8.engine: ONNXRuntime quantizes matrices, and of this model's weights "
            f"{stacks >> 20} MiB (in float32) are stacks of experts, against {matrices >> 20} MiB "
            "of matrices",
            reason=FailureReason.UNSUPPORTED_MODEL,
            advice="take method GGUF; engine: LLMCompressor does experts too, but not Mixtral's",
        )


def _quantized(product: ir.Node, folder: Path, scheme: str) -> ir.Graph:
    """Return the graph that ONNX Runtime makes of one product."""
    _save_alone(product, folder)
    made = folder / "quantized.onnx"
    if scheme == "WeightOnly":
        _quantize_weight(folder / onnx_graph.MODEL_FILE, made)
    else:
        _quantize_both(folder / onnx_graph.MODEL_FILE, made)
    return ir.load(made).graph


def _save_alone(product: ir.Node, folder: Path) -> None:
    """Write a model of this one product."""
    factor, weight = product.inputs
    if factor is None or weight is None:
        raise ValueError(f"{product.name} lacks a factor")
    taken = ir.Value(name=factor.name, shape=_any_rows(weight, 0), type=weight.type)
    matrix = ir.Value(name=weight.name, shape=weight.shape, type=weight.type)
    matrix.const_value = weight.const_value
    given = ir.Value(name=product.outputs[0].name, shape=_any_rows(weight, 1), type=weight.type)
    node = ir.Node("", "MatMul", [taken, matrix], name=product.name, outputs=[given])
    opset = (product.graph.opset_imports if product.graph else {}).get("", 20)
    graph = ir.Graph(
        [taken], [given], nodes=[node], initializers=[matrix], opset_imports={"": opset}
    )
    onnx_graph.save(ir.Model(graph, ir_version=10), folder, largest_file_bytes=0)


def _any_rows(weight: ir.Value, axis: int) -> ir.Shape:
    if weight.shape is None:
        raise ValueError(f"{weight.name} has no shape")
    return ir.Shape([None, None, weight.shape[axis]])


def _quantize_both(source: Path, target: Path) -> None:
    """Quantize the weight now, a scale for each column, and the factor whenever it is computed.

    Weights are unsigned: with signed ones, processors without VNNI add pairs of products in 16 bits
    and cut off what does not fit. It costs nothing: a mean divergence of 0.0044 nats on the tiny
    model, where signed weights gave 0.0045.
    """
    quantize_dynamic(
        source,
        target,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QUInt8,
        use_external_data_format=True,
    )


def _quantize_weight(source: Path, target: Path) -> None:
    """Quantize the weight in blocks; products are computed in float32."""
    settings = DefaultWeightOnlyQuantConfig(block_size=_BLOCK, is_symmetric=True, bits=_BITS)
    engine = MatMulNBitsQuantizer(str(source), algo_config=settings)
    engine.process()
    engine.model.save_model_to_file(str(target), use_external_data_format=True)


def _replace_product(model: ir.Model, product: ir.Node, made: ir.Graph) -> None:
    """Put the nodes of `made` in the place of `product`.

    A factor that several products share is quantized once: nodes of a name that is there are not
    put in again.
    """
    graph = model.graph
    there = {value.name: value for node in graph for value in node.outputs}
    known: dict[str | None, ir.Value | None] = {made.inputs[0].name: product.inputs[0]}
    for name, value in list(made.initializers.items()):
        if name not in graph.initializers:
            made.initializers.pop(name)
            graph.register_initializer(value)
        known[name] = graph.initializers[name]
    output = product.outputs[0]
    name = output.name
    made.outputs.clear()
    for node in list(made):
        if node.outputs[0].name in there and node.outputs[0].name != name:
            known |= {value.name: there[value.name] for value in node.outputs}
            continue
        made.remove(node)
        for index, value in enumerate(node.inputs):
            if value is not None and value.name in known:
                node.replace_input_with(index, known[value.name])
        known |= {value.name: value for value in node.outputs}
        graph.insert_before(product, node)
    result = known[name]
    if result is None:
        raise ValueError(f"ONNX Runtime made nothing of {product.name}")
    weight = product.inputs[1]
    onnx_graph.take_place(result, output)
    graph.remove(product, safe=True)
    if weight is not None and not list(weight.uses()):
        del graph.initializers[weight.name or ""]


def main() -> None:
    """Serve until the parent is gone. Arguments: socket, parent's pid."""
    logging.getLogger().setLevel(logging.ERROR)  # it advises to prepare graphs, which ours are
    serve(sys.argv[1:], lambda parent: Quantization(parent).operations())


if __name__ == "__main__":
    main()
