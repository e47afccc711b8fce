"""Attention of encoders, as exporters write it in single steps, becomes one operator of ours: MultiHeadAttention.

    q, k, v [batch, length, heads, size] --Transpose--> q k^T --scale, mask--> Softmax --> times v --Transpose--> y

Whatever else reads one of the values between, or is not of that form, leaves the steps as they are. The operator's
function is the same steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import no_type_check

import numpy as np
import onnx
import onnx_ir as ir
import onnxscript
from onnxscript import opset15 as op

from mxort.converters import functions, head_scale
from mxort.converters.attention import Fused, add_function
from mxort.converters.constants import NotConstantError
from mxort.converters.resolving import resolve
from mxort.converters.rewrite import drop_steps
from mxort.converters.shapes import width

NAME = "MultiHeadAttention"
_SIZE_MULTIPLE = 16
"""What the kernel takes of a head's size (ep/kernels/attention.h)."""

_HEADS_FIRST, _LAST_TWO, _BOTH = [0, 2, 1, 3], [0, 1, 3, 2], [0, 2, 3, 1]


@no_type_check
@onnxscript.script(onnxscript.values.Opset(functions.DOMAIN, functions.VERSION), default_opset=op)
def MultiHeadAttention(query, key, value, mask, scale: float = 1.0):  # noqa: N802
    """y [batch, length, heads, size] = softmax(scale query key^T + mask) value for each head."""
    scores = op.MatMul(op.Transpose(query, perm=[0, 2, 1, 3]), op.Transpose(key, perm=[0, 2, 3, 1]))
    weights = op.Softmax(scores * op.Constant(value_float=scale) + mask, axis=-1)
    return op.Transpose(op.MatMul(weights, op.Transpose(value, perm=[0, 2, 1, 3])), perm=[0, 2, 1, 3])


class _Other(Exception):  # noqa: N818 (not an error)
    """The steps around a Softmax are of another form, for the reason in its text."""


@dataclass(frozen=True)
class _Steps:
    """What has been recognised: the operator's inputs and what it takes the place of."""

    query: ir.Value
    key: ir.Value
    value: ir.Value
    mask: ir.Value | None
    scale: float
    last: ir.Node


def function(opset: int) -> onnx.FunctionProto:
    """The operator in single steps."""
    proto: onnx.FunctionProto = MultiHeadAttention.to_function_proto()
    del proto.opset_import[:]
    proto.opset_import.append(onnx.helper.make_opsetid("", opset))
    return proto


def fuse(model: ir.Model) -> Fused:
    """Replaces what it can, in place."""
    result = Fused()
    for node in list(model.graph):
        if node.domain != "" or node.op_type != "Softmax" or not _weighs(node):
            continue
        try:
            steps = _Reader(model.ir_version).steps(node)
        except _Other as reason:
            result.left[str(reason)] += 1
            continue
        _replace(model.graph, steps)
        result.count += 1
    if result.count:
        add_function(model, function(model.opset_imports[""]))
    return result


class _Reader:
    def __init__(self, ir_version: int) -> None:
        self.ir_version = ir_version
        self.scale = 1.0
        self.is_float = False

    def steps(self, softmax: ir.Node) -> _Steps:
        if softmax.attributes.get_int("axis", -1) not in (-1, 3):
            raise _Other("it is not over the last dimension")
        scores, mask = self._scores(softmax.inputs[0])
        query, heads = self._heads(scores.inputs[0], [_HEADS_FIRST])
        key, key_heads = self._heads(scores.inputs[1], [_BOTH], [_LAST_TWO, _HEADS_FIRST])
        product = self._user(softmax.outputs[0], "MatMul")
        if product.inputs[0] is not softmax.outputs[0]:
            raise _Other("its weights are not the left operand")
        value, value_heads = self._heads(product.inputs[1], [_HEADS_FIRST], scaled=False)
        if not heads == key_heads == value_heads:  # the kernel broadcasts no keys
            raise _Other("its operands have not the same heads")
        if heads[1] % _SIZE_MULTIPLE:
            raise _Other(f"its heads are not of one size that is a multiple of {_SIZE_MULTIPLE}")
        last = self._user(product.outputs[0], "Transpose")
        if _permutation(last) != _HEADS_FIRST:
            raise _Other("its result is not transposed back")
        if not self.is_float:
            raise _Other("it is not float, or of unknown type")
        return _Steps(query, key, value, mask, self.scale, last)

    def _scores(self, value: ir.Value | None) -> tuple[ir.Node, ir.Value | None]:
        """(the product of queries and keys, the mask)."""
        node, mask, scaled = self._step(value), None, False
        while node.op_type != "MatMul":
            if node.op_type == "Add" and mask is None and not scaled:
                kinds = [_kind(operand) for operand in node.inputs]
                at = next((i for i, kind in enumerate(kinds) if kind in ("MatMul", "Div", "Mul")), None)
                if at is None or kinds[1 - at] == "MatMul":
                    raise _Other("it has no product of queries and keys")
                mask = node.inputs[1 - at]
                if (
                    mask is not None
                    and kinds[1 - at] in ("Div", "Mul")
                    and not self._has_scalar(node.inputs[at])
                ):
                    mask, at = node.inputs[at], 1 - at
                node = self._step(node.inputs[at])
            else:
                node, scaled = self._step(self._unscaled(node)), True
        return node, mask

    def _has_scalar(self, value: ir.Value | None) -> bool:
        node = None if value is None else value.producer()
        return node is not None and (node.op_type == "MatMul" or any(self._scalar(v) for v in node.inputs))

    def _heads(
        self, value: ir.Value | None, *ways: Sequence[Sequence[int]], scaled: bool = True
    ) -> tuple[ir.Value, tuple[int, int]]:
        """(the operand [batch, length, heads, size] behind one of the ways of permutations, its heads and size)."""
        node = self._step(value)
        found: list[list[int]] = []
        while True:
            if scaled and node.op_type in ("Mul", "Div"):
                node = self._step(self._unscaled(node))
                continue
            if node.op_type != "Transpose":
                raise _Other("an operand is not split into heads and transposed")
            found.append(_permutation(node))
            source = node.inputs[0]
            if found in [[list(p) for p in way] for way in ways]:
                assert source is not None
                return source, self._heads_and_size(source)
            if len(found) > 1:
                raise _Other("an operand is transposed otherwise")
            node = self._step(source)

    def _heads_and_size(self, value: ir.Value) -> tuple[int, int]:
        """The last two dimensions of what a Reshape makes: from its shape, of which one may be -1."""
        node = value.producer()
        if node is None or node.domain != "" or node.op_type != "Reshape":
            raise _Other("an operand is not split into heads")
        shape = node.inputs[1]
        maker = None if shape is None else shape.producer()
        parts = maker.inputs[-2:] if maker is not None and maker.op_type == "Concat" else [shape]
        try:
            known = [int(d) for part in parts for d in resolve(part, self.ir_version).numpy().reshape(-1)]
        except NotConstantError:
            raise _Other("the number or size of its heads is computed") from None
        heads, size = known[-2:] if len(known) > 1 else (0, 0)
        if heads == -1 and size > 0:
            heads = width(node.inputs[0], self.ir_version) // size
        if min(heads, size) < 1:
            raise _Other("the number or size of its heads is computed")
        return heads, size

    def _unscaled(self, node: ir.Node) -> ir.Value | None:
        """What a multiplication or division by a constant scalar has as its other operand; the scale takes it up."""
        if node.op_type in ("Mul", "Div"):
            for at in (1, 0) if node.op_type == "Mul" else (1,):
                if (factor := self._scalar(node.inputs[at])) is not None:
                    self.scale = self.scale / factor if node.op_type == "Div" else self.scale * factor
                    return node.inputs[1 - at]
        raise _Other("it has a step that is not known")

    def _scalar(self, value: ir.Value | None) -> float | None:
        try:
            constant = resolve(value, self.ir_version)
        except NotConstantError:
            return self._computed_scalar(value)
        if int(np.prod(constant.shape)) != 1:
            return None
        self.is_float |= constant.dtype == ir.DataType.FLOAT
        factor = float(constant.numpy().reshape(()))
        return factor if factor and np.isfinite(factor) else None

    def _computed_scalar(self, value: ir.Value | None) -> float | None:
        found = None if value is None else head_scale.computed(value, self._last_dimension, self.ir_version)
        if found is None:
            return None
        factor, is_float = found
        self.is_float |= is_float
        return factor

    def _last_dimension(self, value: ir.Value) -> int:
        """Of an operand that is split into heads, before or behind the first transposition."""
        node = value.producer()
        if node is not None and node.op_type == "Transpose" and _permutation(node) == _HEADS_FIRST:
            value = node.inputs[0] or value
        try:
            return self._heads_and_size(value)[1]
        except _Other as reason:
            raise ValueError(str(reason)) from None

    def _step(self, value: ir.Value | None) -> ir.Node:
        """The node of the default domain that makes a value which nothing else reads, but for its shape."""
        node = None if value is None else value.producer()
        if value is None or node is None or node.domain != "":
            raise _Other("an operand is no step of attention")
        users = [user for user, _ in value.uses() if (user.domain, user.op_type) != ("", "Shape")]
        if len(users) != 1 or value.is_graph_output():
            raise _Other("something else reads a step between")
        return node

    def _user(self, value: ir.Value, op_type: str) -> ir.Node:
        users = [user for user, _ in value.uses()]
        if len(users) != 1 or value.is_graph_output() or (users[0].domain, users[0].op_type) != ("", op_type):
            raise _Other(f"its result does not go into one {op_type}")
        return users[0]


def _weighs(softmax: ir.Node) -> bool:
    """Whether what a Softmax computes multiplies something: others are no attention, and not to be mentioned."""
    return any(user.op_type == "MatMul" for user, _ in softmax.outputs[0].uses())


def _kind(value: ir.Value | None) -> str:
    node = None if value is None else value.producer()
    return node.op_type if node is not None and node.domain == "" else ""


def _permutation(node: ir.Node) -> list[int]:
    return list(node.attributes.get_ints("perm", []))


def _replace(graph: ir.Graph, steps: _Steps) -> None:
    last = steps.last
    old = last.outputs[0]
    new: list[ir.Node] = []
    mask = steps.mask
    if mask is None:
        zero = ir.tensor(np.zeros(1, np.float32), name=f"{old.name}_no_mask")
        new.append(ir.node("Constant", [], {"value": zero}))
        mask = new[0].outputs[0]
        mask.name = f"{old.name}_no_mask"
    operator = ir.Node(
        functions.DOMAIN,
        NAME,
        [steps.query, steps.key, steps.value, mask],
        [ir.AttrFloat32("scale", steps.scale)],
        name=last.name,
        doc_string=last.doc_string,
        metadata_props=dict(last.metadata_props),
    )
    new.append(operator)
    result = operator.outputs[0]
    result.name, result.type, result.shape = old.name, old.type, old.shape
    inputs = [value for value in last.inputs if value is not None]
    ir.convenience.replace_nodes_and_values(graph, last, [last], new, [old], [result])
    drop_steps(inputs)
