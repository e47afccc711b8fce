"""Raising a model's opset just as far as an operator that it is given needs, in place, touching nothing else.

onnx's own version converter drops what it does not know (functions, metadata, names), so the few operators
whose meaning changed between opset 11 and 23 are adapted here, or refused; a test holds these tables against onnx's
schemas.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from mxort.converters.functions import MIN_OPSET
from mxort.converters.walk import bodies

OLDEST = 11
"""The lowest opset that is raised; the one before changed the meaning of many operators."""

IR_VERSION = 8
"""Written unless the model has a later one: functions need it, and every onnxruntime since 1.10 opens it."""


NEWEST = 23
"""The highest that is raised to: that of the standard's Attention, RotaryEmbedding and RMSNormalization."""


class OpsetError(Exception):
    """Says why a model's opset cannot be raised."""


def opset_of(graph: ir.Graph | ir.Function) -> int:
    """Version of the default domain."""
    imports = graph.opset_imports
    return imports.get("", imports.get("ai.onnx", 1))


def raise_versions(model: ir.Model) -> None:
    """Raises opset and IR version to what the operator's function needs, or an OpsetError."""
    for body in bodies(model):
        _raise_opset(body, MIN_OPSET)
    model.ir_version = max(model.ir_version, IR_VERSION)


def raise_to_newest(model: ir.Model) -> str:
    """Raises a model, of at least MIN_OPSET, to NEWEST; or changes nothing and says why."""
    for body in bodies(model):
        for node in ir.traversal.RecursiveGraphIterator(body):
            versions = range(opset_of(body) + 1, NEWEST + 1) if node.domain == "" else ()
            refused = next((v for v in versions if (v, node.op_type) in REFUSED), None)
            if refused:
                return f"{node.op_type} changed in opset {refused}"
            given = any(attribute.is_ref() for attribute in node.attributes.values())
            if given and any((v, node.op_type) in ADAPTERS for v in versions):
                return f"{node.op_type} changed, and takes an attribute from its function"
    for body in bodies(model):
        _raise_opset(body, NEWEST)
    return ""


def _raise_opset(body: ir.Graph | ir.Function, target: int) -> None:
    current = opset_of(body)
    if current >= target or not ({"", "ai.onnx"} & body.opset_imports.keys()):
        return
    if current < OLDEST:
        raise OpsetError(
            f"opset {current} is too old to be raised to {MIN_OPSET}, which the operator needs; "
            f"bring the model to opset {OLDEST} or later (onnx.version_converter.convert_version)"
        )
    for node in list(ir.traversal.RecursiveGraphIterator(body)):
        if node.domain == "":
            for version in range(current + 1, target + 1):
                if adapter := ADAPTERS.get((version, node.op_type)):
                    adapter(node)
    body.opset_imports.pop("ai.onnx", None)
    body.opset_imports[""] = target


def _constant_before(node: ir.Node, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> ir.Value:
    """Output of a new Constant node in front of ``node``: functions and subgraphs alike may hold one."""
    constant = ir.node("Constant", [], {"value": ir.tensor(array)})
    constant.name = None
    assert node.graph is not None
    node.graph.insert_before(node, constant)
    output = constant.outputs[0]
    output.shape, output.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
    output.name = f"{node.outputs[0].name}/{node.op_type}_{output.name}"
    return output


def _attribute_to_input(name: str, dtype: type[np.generic], index: int = 1) -> Callable[[ir.Node], None]:
    """An adapter for an attribute that became an input; absent stays absent."""

    def adapt(node: ir.Node) -> None:
        attribute = node.attributes.pop(name, None)
        if attribute is None:
            return
        if attribute.is_ref():
            raise OpsetError(
                f"node {node.name!r} takes {name!r} from its function, which later opsets cannot"
            )
        node.resize_inputs(index + 1)
        node.replace_input_with(index, _constant_before(node, np.asarray(attribute.value, dtype)))

    return adapt


def _softmax(node: ir.Node) -> None:
    """Before 13 the axes from ``axis`` (default 1) on were one; since 13 it is a single axis (default -1)."""
    attribute = node.attributes.get("axis")
    if attribute is not None and attribute.is_ref():
        raise OpsetError(
            f"node {node.name!r} takes 'axis' from its function, whose meaning changed in opset 13"
        )
    axis = 1 if attribute is None else attribute.as_int()
    source, result = node.inputs[0], node.outputs[0]
    rank = source.shape.rank() if source is not None and source.shape is not None else None
    if axis == -1 or axis + 1 == rank:
        node.attributes["axis"] = ir.AttrInt64("axis", -1)
        return
    assert source is not None and node.graph is not None
    flat = ir.node("Flatten", [source], {"axis": axis})
    shape = ir.node("Shape", [source])
    back = ir.node("Reshape", [result, shape.outputs[0]])
    for helper, part in ((flat, "2d_in"), (shape, "shape"), (back, "")):
        helper.name = f"{node.name or result.name}/{helper.op_type}"
        if part:
            helper.outputs[0].name = f"{result.name}/{part}"
    node.graph.insert_before(node, [flat, shape])
    node.graph.insert_after(node, back)
    node.replace_input_with(0, flat.outputs[0])
    node.attributes["axis"] = ir.AttrInt64("axis", -1)
    _take_over(result, back.outputs[0], except_node=back)


def _take_over(old: ir.Value, new: ir.Value, except_node: ir.Node) -> None:
    """Gives ``new`` the name, type, uses and graph-output place of ``old``, which keeps ``except_node``."""
    name = old.name
    new.shape, new.type = old.shape, old.type
    old.shape = None
    users = [(user, index) for user, index in old.uses() if user is not except_node]
    for user, index in users:
        user.replace_input_with(index, new)
    if old.is_graph_output():
        graph = old.graph
        assert graph is not None
        for i, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[i] = new
    old.name = f"{name}/2d"
    new.name = name


def _dropout(node: ir.Node) -> None:
    """Since 12 the ratio is an input; in inference Dropout passes its input on, whatever the ratio."""
    node.attributes.pop("ratio", None)


def _batch_normalization(node: ir.Node) -> None:
    if len([output for output in node.outputs if output.name]) > 1:
        raise OpsetError(
            f"node {node.name!r} is a BatchNormalization in training mode, which changed in opset 14"
        )


def _split(node: ir.Node) -> None:
    """Since 18 a Split into equal parts says how many."""
    if len(node.inputs) < 2 or node.inputs[1] is None:
        node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")

ADAPTERS: dict[tuple[int, str], Callable[[ir.Node], None]] = {
    (12, "Dropout"): _dropout,
    (13, "Hardmax"): _softmax,
    (13, "LogSoftmax"): _softmax,
    (13, "ReduceSum"): _attribute_to_input("axes", np.int64),
    (13, "Softmax"): _softmax,
    (13, "Split"): _attribute_to_input("split", np.int64),
    (13, "Squeeze"): _attribute_to_input("axes", np.int64),
    (13, "Unsqueeze"): _attribute_to_input("axes", np.int64),
    (14, "BatchNormalization"): _batch_normalization,
    (18, "Split"): _split,
    **{(18, f"Reduce{kind}"): _attribute_to_input("axes", np.int64) for kind in _REDUCTIONS},
}
"""(opset that changed it, operator) -> what brings an older node to it; others are valid as they are."""

REFUSED = frozenset([(16, "RoiAlign"), (20, "DFT"), (20, "GridSample"), (21, "GroupNormalization")])
"""(opset that changed it, operator) of which nobody has written an adapter: such a model is not raised so far."""
