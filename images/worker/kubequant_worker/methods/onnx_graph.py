"""What is done to a decoder's ONNX graph: names that users expect, and types that cost no more.

Works on `onnx_ir` models, whose weights stay in their files until they are read. Nothing is
exported or quantized here; `onnx_export_child` and `onnx_quantize_child` do that.
"""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MODEL_FILE: Final = "model.onnx"
# As Optimum calls it, so that its downloads from a hub find the file.
DATA_FILE: Final = "model.onnx_data"
# Smaller tensors stay in the graph's own file, where shape inference can read them.
_IN_GRAPH_BYTES: Final = 1024
_SCOPES: Final = "pkg.torch.onnx.name_scopes"
_LAYER: Final = re.compile(r"past_key_values\.layers\.(\d+)\.(keys|values)$")
_SIXTEEN_BITS: Final = {"bfloat16": ir.DataType.BFLOAT16, "float16": ir.DataType.FLOAT16}
_EIGHT_BITS: Final = {ir.DataType.INT8, ir.DataType.UINT8}
_MATRIX: Final = 2

# The axes of what goes in and comes out, as Optimum and onnxruntime-genai name them.
_TOKENS: Final = ("batch_size", "sequence_length")
_ALL_TOKENS: Final = ("batch_size", "past_sequence_length + sequence_length")


def as_decoder(model: ir.Model) -> None:
    """Give an exported decoder the names of Optimum's: `past_key_values.0.key`, `present.0.key`...

    Outputs that are neither logits nor keys and values are dropped.
    """
    graph = model.graph
    for value in graph.inputs:
        value.name = _decoder_name(value.name or "", "past_key_values")
    kept = [value for value in graph.outputs if _is_decoders(value.name or "")]
    graph.outputs[:] = kept
    for value in kept:
        value.name = _decoder_name(value.name or "", "present")
    for value in (*graph.inputs, *kept):
        value.shape = _decoder_shape(value)
    for node in graph.all_nodes():  # traced sizes, which were named by numbers
        for value in node.outputs:
            if value not in kept:
                value.shape = _without_symbols(value.shape)


def _is_decoders(name: str) -> bool:
    return name == "logits" or _LAYER.search(name) is not None


def _decoder_name(name: str, prefix: str) -> str:
    found = _LAYER.search(name)
    return f"{prefix}.{found[1]}.{found[2].removesuffix('s')}" if found else name


def _decoder_shape(value: ir.Value) -> ir.Shape:
    name, shape = value.name or "", value.shape
    if shape is None:
        raise ValueError(f"{name} has no shape")
    if name == "attention_mask":
        return ir.Shape(_ALL_TOKENS)
    if name.startswith("past_key_values."):
        return ir.Shape(["batch_size", shape[1], "past_sequence_length", shape[3]])
    if name.startswith("present."):
        return ir.Shape(["batch_size", shape[1], _ALL_TOKENS[1], shape[3]])
    return ir.Shape([*_TOKENS, *shape[2:]])


def _without_symbols(shape: ir.Shape | None) -> ir.Shape | None:
    if shape is None:
        return None
    return ir.Shape([dim if isinstance(dim, int) else None for dim in shape])


def name_products(model: ir.Model) -> None:
    """Make every product with a constant matrix a MatMul that bears its module's name.

    Its second input is the matrix itself then, not a transposition of it.
    """
    graph, taken = model.graph, set[str]()
    for node in list(graph):
        if node.op_type == "Gemm" and _is_plain_gemm(node):
            node = _product_and_sum(graph, node)  # noqa: PLW2901 - goes on with what replaced it
        if node.op_type != "MatMul":
            continue
        _untranspose(graph, node)
        if is_product(node):
            name = _module(node) or node.name or "product"
            number = 2
            while name in taken:
                name, number = f"{name.partition('#')[0]}#{number}", number + 1
            taken.add(name)
            node.name = name


def is_product(node: ir.Node) -> bool:
    """Say whether a node multiplies by a constant matrix."""
    weight = node.inputs[1] if node.op_type == "MatMul" else None
    return (
        weight is not None
        and weight.is_initializer()
        and weight.shape is not None
        and len(weight.shape) == _MATRIX
        and weight.dtype == ir.DataType.FLOAT
    )


def _module(node: ir.Node) -> str:
    """Return the name of the module that a node was traced in, as transformers names it."""
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    return str(scopes[-2]) if len(scopes) >= _MATRIX else ""


def _is_plain_gemm(node: ir.Node) -> bool:
    weight = node.inputs[1]
    return (
        weight is not None
        and weight.is_initializer()
        and node.attributes.get_float("alpha", 1.0) == 1.0
        and node.attributes.get_float("beta", 1.0) == 1.0
        and not node.attributes.get_int("transA", 0)
    )


def _product_and_sum(graph: ir.Graph, gemm: ir.Node) -> ir.Node:
    """Put a MatMul and an Add in the place of a Gemm (GPT-2 has them); return the MatMul."""
    factor, weight, bias = (*gemm.inputs, None)[:3]
    output = gemm.outputs[0]
    if gemm.attributes.get_int("transB", 0) and weight is not None:
        turned = ir.node("Transpose", [weight], attributes={"perm": [1, 0]})
        graph.insert_before(gemm, turned)
        weight = turned.outputs[0]
    product = ir.node("MatMul", [factor, weight], name=f"{gemm.name}_product")
    product.metadata_props.update(gemm.metadata_props)
    graph.insert_before(gemm, product)
    made = product.outputs[0]
    if bias is not None:
        made.shape, made.type = output.shape, output.type
        added = ir.node("Add", [made, bias], name=f"{gemm.name}_sum")
        graph.insert_before(gemm, added)
        made = added.outputs[0]
    take_place(made, output)
    graph.remove(gemm, safe=True)
    return product


def take_place(new: ir.Value, old: ir.Value) -> None:
    """Let `new` be what `old` was: its name, shape and type, and whatever reads it."""
    name, new.shape, new.type = old.name, old.shape, old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name, new.name = None, name


def _untranspose(graph: ir.Graph, product: ir.Node) -> None:
    """Make the second input the matrix itself where it is a transposition of a constant one."""
    value = product.inputs[1]
    turned = value.producer() if value is not None else None
    source = turned.inputs[0] if turned is not None and turned.op_type == "Transpose" else None
    if turned is None or source is None or not source.is_initializer():
        return
    tensor = source.const_value
    if tensor is None or tensor.shape.rank() != _MATRIX:
        return
    rows, columns = tensor.shape
    name = f"{source.name}_transposed"
    if name not in graph.initializers:
        lazy = ir.LazyTensor(
            lambda: ir.Tensor(np.ascontiguousarray(tensor.numpy().T), name=name),
            dtype=tensor.dtype,
            shape=ir.Shape([columns, rows]),
            name=name,
        )
        made = ir.Value(name=name, shape=lazy.shape, type=ir.TensorType(tensor.dtype))
        made.const_value = lazy
        graph.register_initializer(made)
    product.replace_input_with(1, graph.initializers[name])
    if not list(turned.outputs[0].uses()):
        graph.remove(turned, safe=True)


def forget_origins(model: ir.Model) -> None:
    """Drop what the exporter noted about every node: paths of this machine, stack traces."""
    for holder in (model, model.graph, *model.graph.all_nodes()):
        holder.metadata_props.clear()
        holder.doc_string = None
    values = [value for node in model.graph.all_nodes() for value in node.outputs]
    for value in (*values, *model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None


def keep_stored_types(model: ir.Model, stored: str) -> None:
    """Keep matrices that were not quantized in the 16 bits in which the checkpoint stores them.

    A Cast makes them float32 again when they are used: an embedding row by row, the matrix of a
    product when the model is loaded. Only what comes back bit by bit is changed. A matrix that is
    an embedding's transposition (tied weights) is stored once.
    """
    kind = _SIXTEEN_BITS.get(stored)
    if kind is None:
        return
    graph = model.graph
    tables = [
        node.inputs[0]
        for node in graph
        if node.op_type == "Gather" and node.inputs[0] is not None and _is_matrix(node.inputs[0])
    ]
    for product in [node for node in graph if is_product(node)]:
        _tie(graph, product, tables)
    for value in list(graph.initializers.values()):
        if _is_matrix(value) and value.dtype == ir.DataType.FLOAT:
            _narrow(graph, value, kind)
    for name in [name for name, value in graph.initializers.items() if not list(value.uses())]:
        del graph.initializers[name]


def _is_matrix(value: ir.Value) -> bool:
    return value.is_initializer() and value.shape is not None and value.shape.rank() == _MATRIX


def _tie(graph: ir.Graph, product: ir.Node, tables: list[Any]) -> None:
    weight = product.inputs[1]
    for table in tables:
        if weight is None or table.shape is None or weight.shape is None:
            continue
        if list(table.shape) != [weight.shape[1], weight.shape[0]]:
            continue
        if np.array_equal(_array(table), _array(weight).T):
            turned = ir.node("Transpose", [table], attributes={"perm": [1, 0]})
            turned.outputs[0].name = f"{product.name}_transposed"
            turned.name = f"{product.name}_transpose"
            turned.outputs[0].shape, turned.outputs[0].type = weight.shape, weight.type
            graph.insert_before(product, turned)
            product.replace_input_with(1, turned.outputs[0])
            return


def _array(value: ir.Value) -> np.ndarray[Any, Any]:
    if value.const_value is None:
        raise ValueError(f"{value.name} has no data")
    found: np.ndarray[Any, Any] = value.const_value.numpy()
    return found


def _narrow(graph: ir.Graph, value: ir.Value, kind: ir.DataType) -> None:
    """Store one matrix in `kind`, and cast what is read of it."""
    whole = _array(value)
    with np.errstate(over="ignore"):
        narrow = whole.astype(kind.numpy())
    if not np.array_equal(narrow.astype(np.float32), whole):
        return
    uses = list(value.uses())
    value.const_value = ir.Tensor(narrow, dtype=kind, name=value.name)
    value.type = ir.TensorType(kind)
    for number, (node, index) in enumerate(uses):
        # Casting the few rows that are read, or a view, costs less than casting a table.
        if node.op_type in {"Gather", "Transpose"} and index == 0:
            read = node.outputs[0]
            users, name = list(read.uses()), read.name
            cast = ir.node("Cast", [read], attributes={"to": int(ir.DataType.FLOAT)})
            cast.outputs[0].shape = read.shape
            read.type, read.name = ir.TensorType(kind), f"{name}_{kind.name.lower()}"
            graph.insert_after(node, cast)
            for user, at in users:
                user.replace_input_with(at, cast.outputs[0])
            made = name
        else:
            cast = ir.node("Cast", [value], attributes={"to": int(ir.DataType.FLOAT)})
            cast.outputs[0].shape = value.shape
            graph.insert_before(node, cast)
            node.replace_input_with(index, cast.outputs[0])
            made = f"{value.name}_float_{number}"
        cast.outputs[0].name, cast.outputs[0].type = made, ir.TensorType(ir.DataType.FLOAT)
        cast.name = f"{made}_cast"


def stacked_bytes(model: ir.Model) -> int:
    """Return the bytes of what is more than a matrix: stacks of experts, kernels."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return sum(one.nbytes for one in tensors if one is not None and one.shape.rank() > _MATRIX)


def matrix_bytes(product: ir.Node) -> int:
    """Return the bytes of the constant matrix of a product."""
    weight = product.inputs[1]
    if weight is None or weight.const_value is None:
        raise ValueError(f"{product.name} has no constant matrix")
    return int(weight.const_value.nbytes)


def weight_bytes(model: ir.Model, *, narrow: bool = True) -> int:
    """Return the bytes of all weights, or without `narrow` of those that are wider than 8 bits."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return sum(
        one.nbytes
        for one in tensors
        if one is not None and (narrow or one.dtype not in _EIGHT_BITS)
    )


def save(
    model: ir.Model,
    folder: Path,
    *,
    largest_file_bytes: int,
    on_bytes: Callable[[int, str], None] | None = None,
) -> None:
    """Write `model.onnx`, and its weights beside it where they are more than fits one file.

    `on_bytes` gets (bytes that are about to be written, name) for each tensor written beside it.
    """
    aside = weight_bytes(model) > largest_file_bytes

    def told(tensor: Any, _: object) -> None:
        if on_bytes is not None:
            on_bytes(tensor.nbytes, tensor.name)

    if not aside:  # what lies in other files goes into this one
        ir.external_data.load_to_model(model)
    ir.save(
        model,
        folder / MODEL_FILE,
        external_data=DATA_FILE if aside else None,
        size_threshold_bytes=_IN_GRAPH_BYTES,
        callback=told if aside else None,
    )


def products(model: ir.Model) -> Iterator[ir.Node]:
    """Yield the products with constant matrices, in the order in which they are computed."""
    return (node for node in model.graph if is_product(node))


def embedding_names(model: ir.Model) -> frozenset[str]:
    """Return the names of the token embeddings and of the matrix that the logits come from."""
    tables = [node.inputs[0] for node in model.graph if node.op_type == "Gather"]
    heads = [
        node.inputs[1]
        for node in products(model)
        if any(value.is_graph_output() for value in node.outputs)
    ]
    found = [value for value in (*tables, *heads) if value is not None and _is_matrix(value)]
    return frozenset(str(value.name) for value in found)


def embedding_bytes(model: ir.Model, names: frozenset[str]) -> int:
    """Return the bytes of what `names` became: the tensors themselves, or what was made of them."""
    return sum(
        value.const_value.nbytes
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
        and any(name == one or name.startswith(f"{one}_") for one in names)
    )
