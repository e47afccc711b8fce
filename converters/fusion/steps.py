"""What the rules of fusion have in common: walking along the single steps that an exporter writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from mxort.converters import head_scale
from mxort.converters.constants import NotConstantError
from mxort.converters.resolving import resolve
from mxort.converters.shapes import width

HEADS_FIRST = [0, 2, 1, 3]
"""The permutation between [batch, length, heads, size] and [batch, heads, length, size]."""

_NORMS = ("RMSNormalization", "SimplifiedLayerNormalization", "LayerNormalization")


class Other(Exception):  # noqa: N818 (not an error)
    """The steps are of another form, for the reason in its text."""


def kind(node: ir.Node | None) -> str:
    """The operator of a node of the default domain, else ""."""
    return node.op_type if node is not None and node.domain == "" else ""


def maker(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def users(value: ir.Value) -> list[ir.Node]:
    """The nodes that read a value's numbers (Shape reads none)."""
    return [user for user, _ in value.uses() if kind(user) != "Shape"]


def single(value: ir.Value | None) -> bool:
    """Whether one node alone reads a value's numbers."""
    return value is not None and not value.is_graph_output() and len(users(value)) == 1


def next_node(value: ir.Value, *kinds: str) -> ir.Node | None:
    """The one node that reads a value, if it is of one of the kinds."""
    found = users(value)
    return found[0] if single(value) and kind(found[0]) in kinds else None


def inner(value: ir.Value | None, *kinds: str) -> ir.Node | None:
    """The node that makes a value which nothing else reads, if it is of one of the kinds."""
    node = maker(value)
    return node if single(value) and kind(node) in kinds else None


def permutation(node: ir.Node | None) -> list[int]:
    return (
        list(node.attributes.get_ints("perm", [])) if node is not None and kind(node) == "Transpose" else []
    )


def numbers(value: ir.Value | None, ir_version: int) -> list[float] | None:
    """A constant's numbers, of at most 8; None where it is none."""
    try:
        constant = resolve(value, ir_version)
    except NotConstantError:
        return None
    if int(np.prod(constant.shape)) > 8:
        return None
    return [float(x) for x in constant.numpy().reshape(-1).tolist()]


def scalar(value: ir.Value | None, ir_version: int) -> float | None:
    """A constant's one number; also one that follows from the size of heads."""
    found = numbers(value, ir_version)
    if found is not None:
        return found[0] if len(found) == 1 else None
    if value is None:
        return None
    computed = head_scale.computed(value, lambda v: heads_of_transposed(v, ir_version)[1], ir_version)
    return None if computed is None else computed[0]


def other_operand(node: ir.Node, value: ir.Value | None) -> ir.Value | None:
    """Of a node with two operands, the one that is not ``value``."""
    first, second = node.inputs
    return second if first is value else first


def heads_and_size(value: ir.Value | None, ir_version: int) -> tuple[int, int]:
    """(heads, size) of a value [batch, length, heads, size]; raises ValueError where they are not known."""
    node = maker(value)
    if value is not None and value.shape is not None and len(value.shape) == 4:
        heads, size = value.shape[2], value.shape[3]
        if isinstance(heads, int) and isinstance(size, int):
            return heads, size
    if kind(node) in _NORMS and node is not None:
        return heads_and_size(node.inputs[0], ir_version)
    if node is None or kind(node) != "Reshape":
        raise ValueError("not split into heads")
    shape = maker(node.inputs[1])
    parts = shape.inputs[-2:] if kind(shape) == "Concat" and shape is not None else node.inputs[1:2]
    known = [int(d) for part in parts for d in numbers(part, ir_version) or ()]
    heads, size = known[-2:] if len(known) > 1 else (0, 0)
    if heads == -1 and size > 0:
        heads = width(node.inputs[0], ir_version) // size
    if min(heads, size) < 1:
        raise ValueError("computed")
    return heads, size


def heads_of_transposed(value: ir.Value, ir_version: int) -> tuple[int, int]:
    """(heads, size) of a value [batch, heads, length, size], or of one before that transposition."""
    node = maker(value)
    if value.shape is not None and len(value.shape) == 4 and permutation(node) == HEADS_FIRST:
        heads, size = value.shape[1], value.shape[3]
        if isinstance(heads, int) and isinstance(size, int):
            return heads, size
    if permutation(node) == HEADS_FIRST and node is not None:
        return heads_and_size(node.inputs[0], ir_version)
    return heads_and_size(value, ir_version)


class Builder:
    """Nodes to put in front of one of a graph's, named after it."""

    def __init__(self, model: ir.Model, before: ir.Node) -> None:
        self.model, self.before = model, before
        self.base = before.name or before.outputs[0].name or before.op_type
        self.count = 0

    def add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, int | float | Sequence[int]] | None = None,
        *,
        like: ir.Value | None = None,
        outputs: int = 1,
        domain: str = "",
    ) -> ir.Node:
        """The first output is of the type of ``like``."""
        node = ir.node(op_type, inputs, dict(attributes or {}), domain=domain, num_outputs=outputs)
        self.count += 1
        node.name = f"{self.base}_fused_{self.count}"
        for index, output in enumerate(node.outputs):
            output.name = f"{node.name}_{index}"
        if like is not None:
            node.outputs[0].type = like.type
        assert isinstance(self.before.graph, ir.Graph)
        self.before.graph.insert_before(self.before, node)
        return node

    def ints(self, *values: int) -> ir.Value:
        node = self.add("Constant", [])
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.array(values, np.int64)))
        node.outputs[0].type = ir.TensorType(ir.DataType.INT64)
        node.outputs[0].shape = ir.Shape([len(values)])
        return node.outputs[0]


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Gives ``new`` the name, type, uses and graph-output place of ``old``."""
    name, type_, shape = old.name, old.type, old.shape
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    old.name = f"{name}_before"
    new.name, new.type, new.shape = name, type_, shape
