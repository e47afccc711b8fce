"""Models as onnxruntime opens them, made models as the ONNX specification has them: small steps, in order.

Those of ``PROTO_STEPS`` work on the file's message, where onnx_ir would refuse or lose something; those of
``MODEL_STEPS`` on the model. Each changes in place what it finds, and nothing where it finds nothing.
"""

from __future__ import annotations

import functools
import heapq
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.defs
import onnx.helper
import onnx.numpy_helper
import onnx_ir as ir
from onnx_ir.passes import common as passes

from mxort.converters import functions, loop_constants
from mxort.converters.constants import SPARSE
from mxort.converters.walk import bodies
from mxort.errors import MxortError
from mxort.formats import BLOCK_SIZE, WEIGHT_FORMATS

_DEFAULT_DOMAINS = ("", "ai.onnx")
_KEPT_FUNCTIONS = ("", "ai.onnx", "com.microsoft", functions.DOMAIN)
"""Domains whose functions stay: a runtime may have a kernel for the operator, which inlining would lose."""

_CONVERTED = ("MatMul", "Gemm", "Gather", "Conv", "Einsum", "LSTM", "GRU")

_DENSE_BYTES = 1 << 31
"""A sparse tensor that is larger when dense is refused: a damaged file may claim any shape."""

_MXFP4_BITS = WEIGHT_FORMATS["mxfp4"].bits + 8 / BLOCK_SIZE
"""Bits of an element and its part of a scale: a sparse tensor that is smaller than that stays sparse."""

IR_WITH_CONSTANT_INITIALIZERS = 4

_NEWEST_OPSET = 2**31 - 1
"""What onnx can be asked for: the newest that it knows."""


def normalise_proto(proto: onnx.ModelProto, name: str) -> None:
    """Raises MxortError for what cannot be brought into order."""
    for step in PROTO_STEPS:
        step(proto, name)


def normalise_model(model: ir.Model) -> None:
    """After the tensors of the model were checked."""
    for step in MODEL_STEPS:
        step(model)


def _node_lists(proto: onnx.ModelProto) -> Iterator[Any]:
    yield proto.graph.node
    for function in proto.functions:
        yield function.node


def _subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [graph for a in node.attribute for graph in ([a.g] if a.HasField("g") else []) + list(a.graphs)]


def _all_nodes(nodes: Any) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for graph in _subgraphs(node):
            yield from _all_nodes(graph.node)


def _all_graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    yield proto.graph
    for nodes in _node_lists(proto):
        for node in _all_nodes(nodes):
            yield from _subgraphs(node)


def _dense_tensors(proto: onnx.ModelProto, name: str) -> None:
    """Sparse initializers and constants become dense ones, as in onnxruntime."""
    for graph in _all_graphs(proto):
        for sparse in graph.sparse_initializer:
            graph.initializer.append(_dense(sparse, name))
        del graph.sparse_initializer[:]
    for nodes in _node_lists(proto):
        for node in _all_nodes(nodes):
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.SPARSE_TENSOR and node.op_type == "Constant":
                    dense = _dense(attribute.sparse_tensor, name)
                    attribute.Clear()
                    attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
                    attribute.t.CopyFrom(dense)


def _dense(sparse: onnx.SparseTensorProto, name: str) -> onnx.TensorProto:
    label = f"{name}: sparse tensor {sparse.values.name!r}"
    try:
        values = onnx.numpy_helper.to_array(sparse.values)
        indices = onnx.numpy_helper.to_array(sparse.indices)
        shape = tuple(sparse.dims)
        size = np.prod([max(0, d) for d in shape], dtype=object) * values.itemsize
        if min(shape, default=0) < 0 or size > _DENSE_BYTES:
            raise MxortError(
                f"{label} of shape {list(shape)} takes {size} bytes, expected at most {_DENSE_BYTES}"
            )
        array = np.zeros(shape, values.dtype)
        flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), shape)
        if flat.size and not 0 <= flat.min() <= flat.max() < array.size:
            raise ValueError("an index is outside of the shape")
        array.reshape(-1)[flat] = values
    except MxortError:
        raise
    except Exception as error:  # what a damaged tensor raises is open-ended
        raise MxortError(f"{label}: {' '.join(str(error).split())}") from None
    dense = onnx.numpy_helper.from_array(array, sparse.values.name)
    if values.nbytes + indices.nbytes < array.size * _MXFP4_BITS / 8:
        dense.metadata_props.add(key=SPARSE, value="")
    return dense


def sparse_again(proto: onnx.ModelProto) -> None:
    """Undoes what loading did to the sparse tensors that are left: inverse of ``_dense_tensors``."""
    for graph in _all_graphs(proto):
        kept = [tensor for tensor in graph.initializer if _was_sparse(tensor)]
        for tensor in kept:
            graph.sparse_initializer.append(_sparse(tensor))
            graph.initializer.remove(tensor)
    for nodes in _node_lists(proto):
        for node in _all_nodes(nodes):
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR and _was_sparse(attribute.t):
                    sparse = _sparse(attribute.t)
                    attribute.Clear()
                    attribute.name, attribute.type = "sparse_value", onnx.AttributeProto.SPARSE_TENSOR
                    attribute.sparse_tensor.CopyFrom(sparse)


def _was_sparse(tensor: onnx.TensorProto) -> bool:
    return any(entry.key == SPARSE for entry in tensor.metadata_props)


def _sparse(tensor: onnx.TensorProto) -> onnx.SparseTensorProto:
    array = onnx.numpy_helper.to_array(tensor)
    flat = array.reshape(-1)
    places = np.flatnonzero(flat).astype(np.int64)
    values = onnx.numpy_helper.from_array(flat[places], tensor.name)
    indices = onnx.numpy_helper.from_array(places, f"{tensor.name}_indices")
    return onnx.helper.make_sparse_tensor(values, indices, array.shape)


def _one_default_domain(proto: onnx.ModelProto, name: str) -> None:
    """The default domain has two spellings: here it is ""."""
    for holder in (proto, *proto.functions):
        for opset in holder.opset_import:
            if opset.domain == "ai.onnx":
                opset.domain = ""
        versions = {opset.domain: opset.version for opset in holder.opset_import}
        if len(versions) < len(
            holder.opset_import
        ):  # of one that is imported twice, onnxruntime takes the last
            del holder.opset_import[:]
            for domain, version in versions.items():
                holder.opset_import.append(onnx.helper.make_opsetid(domain, version))
    for nodes in _node_lists(proto):
        for node in _all_nodes(nodes):
            if node.domain == "ai.onnx":
                node.domain = ""


def _imports(proto: onnx.ModelProto, name: str) -> None:
    """Imports of domains that are used without one, as onnxruntime supplies those that it knows."""
    for holder, nodes in ((proto, proto.graph.node), *((f, f.node) for f in proto.functions)):
        if (lowest := min((opset.version for opset in holder.opset_import), default=1)) < 1:
            raise MxortError(f"{name}: imports an opset {lowest}, expected 1 or later")
        there = {opset.domain for opset in holder.opset_import}
        for node in _all_nodes(nodes):
            if node.domain not in there and node.domain not in _DEFAULT_DOMAINS:
                there.add(node.domain)
                version = onnx.defs.onnx_ml_opset_version() if node.domain == "ai.onnx.ml" else 1
                holder.opset_import.append(onnx.helper.make_opsetid(node.domain, version))


def _constant_initializers(proto: onnx.ModelProto, name: str) -> None:
    """Before IR version 4 initializers were listed as inputs, though constant; some files of the time do not."""
    if proto.ir_version >= IR_WITH_CONSTANT_INITIALIZERS:
        return
    for graph in _all_graphs(proto):
        held = {tensor.name for tensor in graph.initializer}
        inputs = [value for value in graph.input if value.name not in held]
        if len(inputs) < len(graph.input):
            del graph.input[:]
            graph.input.extend(inputs)
    proto.ir_version = IR_WITH_CONSTANT_INITIALIZERS


def _dynamic_dimensions(proto: onnx.ModelProto, name: str) -> None:
    """A negative size means one that is not known, to onnxruntime."""
    for graph in _all_graphs(proto):
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.HasField("tensor_type"):
                for dim in value.type.tensor_type.shape.dim:
                    if dim.HasField("dim_value") and dim.dim_value < 0:
                        dim.ClearField("dim_value")


def _sorted_nodes(proto: onnx.ModelProto, name: str) -> None:
    """Nodes in the order of computation, in every graph; onnxruntime sorts them too."""
    for graph in _all_graphs(proto):
        _sort(graph.node, name)
    for function in proto.functions:
        _sort(function.node, name)


def _sort(nodes: Any, name: str) -> None:
    producer = {output: i for i, node in enumerate(nodes) for output in node.output if output}
    needs = [sorted({producer[v] for v in _read(node) if v in producer}) for node in nodes]
    if all(not need or need[-1] < i for i, need in enumerate(needs)):
        return
    order = _in_order(needs)
    if order is None:
        raise MxortError(f"{name}: not a valid ONNX model: its nodes need each other's outputs in a circle")
    copies = [onnx.NodeProto.FromString(nodes[i].SerializeToString()) for i in order]
    del nodes[:]
    nodes.extend(copies)


def _in_order(needs: Sequence[Sequence[int]]) -> list[int] | None:
    """Indices such that each comes after those it needs, as near to their own order as can be; None for a circle."""
    users: list[list[int]] = [[] for _ in needs]
    for i, need in enumerate(needs):
        for j in need:
            users[j].append(i)
    missing = [len(need) for need in needs]
    ready = [i for i, count in enumerate(missing) if count == 0]  # ascending, so a heap
    order: list[int] = []
    while ready:
        i = heapq.heappop(ready)
        order.append(i)
        for user in users[i]:
            missing[user] -= 1
            if missing[user] == 0:
                heapq.heappush(ready, user)
    return order if len(order) == len(needs) else None


def _read(node: onnx.NodeProto) -> set[str]:
    """Names that a node and its subgraphs read from outside."""
    names = {value for value in node.input if value}
    for graph in _subgraphs(node):
        own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        inside = set[str]()
        for inner in graph.node:
            inside |= _read(inner)
            own |= set(inner.output)
        inside |= {value.name for value in graph.output}
        names |= inside - own
    return names


def _required_inputs(proto: onnx.ModelProto, name: str) -> None:
    """A standard operator without an input that it requires is nothing that anybody can run, or read."""
    for nodes, imports in [(proto.graph.node, proto), *((f.node, f) for f in proto.functions)]:
        opset = next((entry.version for entry in imports.opset_import if entry.domain == ""), 0)
        for node in _all_nodes(nodes):
            given = [bool(value) for value in node.input]
            known = node.domain == "" and isinstance(node.op_type, str)  # bytes: not UTF-8
            required = _required(node.op_type, opset) if known else 0
            if len(given) < required or not all(given[:required]):
                raise MxortError(
                    f"{name}: {node.op_type} {node.name!r} has {given.count(True)} inputs, "
                    f"expected at least the first {required}"
                )


@functools.cache
def _required(op_type: str, opset: int) -> int:
    """How many inputs the operator must have, as far as its schema is known."""
    try:
        return int(onnx.defs.get_schema(op_type, min(opset, _NEWEST_OPSET), "").min_input)
    except onnx.defs.SchemaError:
        return 0


def _inline_functions(model: ir.Model) -> None:
    """A product inside of a function of the model is a product like any other; functions without one stay."""
    wanted = {
        key for key, f in model.functions.items() if f.domain not in _KEPT_FUNCTIONS and _multiplies(model, f)
    }
    if wanted:
        passes.InlinePass(lambda function: function.identifier() in wanted)(model)


def _multiplies(model: ir.Model, function: ir.Function) -> bool:
    """Whether a function, or one that it calls, has an operator that may be converted. (None calls itself.)"""
    for node in ir.traversal.RecursiveGraphIterator(function):
        called = model.functions.get(node.op_identifier())
        if node.op_type in _CONVERTED and node.domain == "":
            return True
        if called is not None and called is not function and _multiplies(model, called):
            return True
    return False


def _drop_dead_nodes(model: ir.Model) -> None:
    """Nodes that lead nowhere keep weights in float that nothing reads. Initializers without a reader stay."""
    unread = [value for value in model.graph.initializers.values() if not value.uses()]
    passes.RemoveUnusedNodesPass()(model)
    for value in unread:
        if value.name not in model.graph.initializers:
            model.graph.register_initializer(value)


def unique_node_names(model: ir.Model) -> None:
    """onnxruntime refuses two nodes of one name in a graph, and reports would mix them up: the later is renamed."""
    nodes = [node for body in bodies(model) for node in ir.traversal.RecursiveGraphIterator(body)]
    taken = {node.name for node in nodes if node.name}
    seen = set[str]()
    for node in nodes:
        if not node.name:
            continue
        if node.name in seen:
            number = 2
            while f"{node.name}_{number}" in taken:
                number += 1
            node.name = f"{node.name}_{number}"
            taken.add(node.name)
        seen.add(node.name)


PROTO_STEPS: Sequence[Callable[[onnx.ModelProto, str], None]] = (
    _one_default_domain,
    _imports,
    _required_inputs,
    _dense_tensors,
    _constant_initializers,
    _dynamic_dimensions,
    _sorted_nodes,
)

MODEL_STEPS: Sequence[Callable[[ir.Model], None]] = (
    _inline_functions,
    loop_constants.read_from_outside,
    _drop_dead_nodes,
    unique_node_names,
)
