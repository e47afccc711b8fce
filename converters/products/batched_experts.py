"""Experts as torch exports them of transformers (``batched_mm``): for each choice of a row the expert's matrices are
picked from their stacks, and multiplied as a batch. The whole, from the choice to the sum, is one com.microsoft MoE,
which chooses by softmax; another choice stays before it (choices.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from mxort.converters.opset import opset_of
from mxort.converters.products.base import Builder, Context, Left
from mxort.converters.products.choices import as_logits, never_negative

_SHAPES = ("Identity", "Reshape", "Squeeze", "Unsqueeze")
"""What lies between the parts: one row for each choice, as a row, a column or a batch of one."""


class _OtherError(Exception):
    """It is another sum."""


@dataclass(frozen=True)
class _Product:
    """x . W of a stack's picked matrices; ``stack`` [E, N, K], or [E, K, N] where ``turned``; ``bias`` [E, N]."""

    x: ir.Value
    stack: ir.Value
    turned: bool
    bias: ir.Value | None
    choice: ir.Node


@dataclass(frozen=True)
class _Gate:
    """What a hidden layer makes of the first product."""

    product: ir.Value
    halves: bool
    alpha: float = 1.0
    beta: float = 0.0
    limit: float = 0.0


def express(context: Context, node: ir.Node) -> None:
    """MoE in the place of the ReduceSum over a row's choices. Raises Left for experts that are not to be converted."""
    try:
        found = _Experts.of(context, node)
    except _OtherError:
        return
    found.put(context, node)


@dataclass(frozen=True)
class _Routing:
    """``k`` experts of a row by softmax of ``logits`` [rows, E], their weights made to sum to 1 or not; or (logits
    None) those that ``choice`` and ``weights`` say."""

    k: int
    choice: ir.Value
    weights: ir.Value
    logits: ir.Value | None = None
    normalize: bool = True

    @property
    def ends(self) -> tuple[ir.Value, ...]:
        return (self.choice, self.weights) if self.logits is None else (self.logits,)


@dataclass(frozen=True)
class _Experts:
    rows: ir.Value
    first: _Product
    second: _Product
    gate: _Gate
    routing: _Routing

    @staticmethod
    def of(context: Context, node: ir.Node) -> _Experts:
        """Raises _OtherError."""
        if _integers(context, node.inputs, 1) != [1] or node.attributes.get_int("keepdims", 1) != 0:
            raise _OtherError
        mul = _made_by(_peeled(node.inputs[0]), "Mul")
        for result, weights in (mul.inputs, mul.inputs[::-1]):
            try:
                second = _product(context, result)
            except _OtherError:
                continue
            gate = _gate(context, _peeled(second.x))
            first = _product(context, gate.product)
            routing = _routing(context, first.choice, weights)
            if second.choice is not first.choice:
                raise _OtherError
            return _Experts(_rows(context, first.x, routing.k), first, second, gate, routing)
        raise _OtherError

    def put(self, context: Context, node: ir.Node) -> None:
        products = (self.first, self.second)
        for product in products:
            _, a, b = context.constant(product.stack).shape
            context.check(
                node, context.constant(product.stack), *((a, b) if product.turned else (b, a)), "MoE"
            )
        build, routing, sums = Builder(context, node), self.routing, None
        logits = routing.logits
        if logits is None:
            experts = context.constant(self.first.stack).shape[0]
            logits, sums = as_logits(build, routing.choice, routing.weights, routing.k, experts)
        inputs: list[ir.Value | None] = [self.rows, logits]
        for product in products:
            stack: ir.Value = product.stack
            if product.turned:
                stack = build.op("Transpose", [stack], perm=[0, 2, 1])
            halves = self.gate.halves and product is self.first
            for value in (stack, product.bias):
                inputs.append(
                    _in_turns(context, build, value, product) if halves and value is not None else value
                )
        attributes: dict[str, Any] = {
            "k": routing.k,
            "activation_type": "swiglu",
            "normalize_routing_weights": int(routing.normalize),
            "swiglu_fusion": 1,
            "activation_alpha": self.gate.alpha,
            "activation_beta": self.gate.beta,
        }
        if self.gate.limit:
            attributes["swiglu_limit"] = self.gate.limit
        y = build.product_of("MoE", inputs, attributes, origin="MoE", domain="com.microsoft")
        if sums is not None:
            y = build.op("Mul", [y, sums])
        parts = _between(node, (self.rows, *routing.ends))
        build.replace([y])
        context.model.opset_imports.setdefault("com.microsoft", 1)
        _drop(parts)


def _in_turns(context: Context, build: Builder, value: ir.Value, product: _Product) -> ir.Value:
    """[E, 2 I, ...] with the rows of both halves in turn, the one order that onnxruntime's CPU kernel (1.31) has."""
    e, *sizes = context.constant(product.stack).shape
    n, k = sizes[::-1] if product.turned else sizes
    rest = [] if value is product.bias else [k]
    apart = build.op("Reshape", [value, build.integers([e, 2, n // 2, *rest])])
    turned = build.op("Transpose", [apart], perm=[0, 2, 1, *range(3, 3 + len(rest))])
    return build.op("Reshape", [turned, build.integers([e, n, *rest])])


def _between(last: ir.Node, first: Iterable[ir.Value]) -> list[ir.Node]:
    """The nodes that the last one's inputs are computed by, up to the values ``first``."""
    ends = {value.producer() for value in first}
    pending, found = [last], dict[ir.Node, None]()
    while pending:
        for value in pending.pop().inputs:
            node = None if value is None else value.producer()
            if node is not None and node not in ends and node not in found:
                found[node] = None
                pending.append(node)
    return list(found)


def _drop(nodes: list[ir.Node]) -> None:
    """Removes those whose results nobody reads any more."""
    dead: list[ir.Node] | None = None
    while dead is None or dead:
        left = [node for node in nodes if node.graph is not None]
        dead = [n for n in left if not any(v.uses() or v.is_graph_output() for v in n.outputs)]
        for node in dead:
            assert node.graph is not None
            node.graph.remove(node, safe=True)


def _peeled(value: ir.Value | None) -> ir.Value:
    """The value behind changes of shape."""
    while value is not None and (node := value.producer()) is not None:
        if node.domain != "" or node.op_type not in _SHAPES:
            return value
        value = node.inputs[0]
    if value is None:
        raise _OtherError
    return value


def _made_by(value: ir.Value | None, *op_types: str) -> ir.Node:
    node = None if value is None else value.producer()
    if node is None or node.domain != "" or node.op_type not in op_types:
        raise _OtherError
    return node


def _numbers(context: Context, value: ir.Value | None) -> np.ndarray[Any, Any]:
    try:
        return context.constant(value).numpy()
    except Left:
        raise _OtherError from None


def _integers(context: Context, inputs: Any, at: int) -> list[int]:
    if at >= len(inputs) or inputs[at] is None:
        raise _OtherError
    return [int(i) for i in _numbers(context, inputs[at]).reshape(-1)]


def _number(context: Context, value: ir.Value | None) -> float:
    numbers = _numbers(context, value)
    if numbers.size != 1:
        raise _OtherError
    return float(numbers.reshape(-1)[0])


def _picked(context: Context, value: ir.Value | None, rank: int) -> tuple[ir.Value, ir.Node]:
    """(a constant of ``rank`` axes, the TopK whose choices pick from its first)."""
    node = _made_by(value, "GatherND", "Gather")
    if node.op_type == "GatherND" and node.attributes.get_int("batch_dims", 0) != 0:
        raise _OtherError
    if node.op_type == "Gather" and node.attributes.get_int("axis", 0) != 0:
        raise _OtherError
    table, choice = node.inputs[0], _made_by(_peeled(node.inputs[1]), "TopK")
    if table is None or not context.is_constant(table) or len(context.constant(table).shape) != rank:
        raise _OtherError
    if _peeled(node.inputs[1]) is not choice.outputs[1]:
        raise _OtherError
    return table, choice


def _product(context: Context, value: ir.Value | None) -> _Product:
    node, bias = _made_by(_peeled(value), "MatMul", "Add"), None
    chosen = None
    if node.op_type == "Add":
        for at in (1, 0):
            try:
                bias, chosen = _picked(context, _peeled(node.inputs[at]), 2)
            except _OtherError:
                continue
            node = _made_by(_peeled(node.inputs[1 - at]), "MatMul")
            break
        else:
            raise _OtherError
    for at in (1, 0):
        try:
            stack, choice = _picked(context, node.inputs[at], 3)
        except _OtherError:
            continue
        x = node.inputs[1 - at]
        if x is None or (chosen is not None and chosen is not choice):
            raise _OtherError
        return _Product(x, stack, at == 1, bias, choice)
    raise _OtherError


def _gate(context: Context, hidden: ir.Value) -> _Gate:
    """SiLU of the first half times the second, or gpt-oss' of columns in turn."""
    mul = _made_by(hidden, "Mul")
    for one, other in (mul.inputs, mul.inputs[::-1]):
        try:
            inner = _made_by(one, "Mul")
            for gate, sigmoid in (inner.inputs, inner.inputs[::-1]):
                node = None if sigmoid is None else sigmoid.producer()
                if gate is not None and node is not None and node.op_type == "Sigmoid":
                    return _halves(gate, node, other) or _in_turn(context, gate, node, other)
        except _OtherError:
            continue
    raise _OtherError


def _halves(gate: ir.Value, sigmoid: ir.Node, up: ir.Value | None) -> _Gate | None:
    split = gate.producer()
    if split is None or split.op_type != "Split" or sigmoid.inputs[0] is not gate:
        return None
    whole = split.inputs[0]
    last = split.attributes.get_int("axis", 0) in (-1, 1)
    if whole is None or list(split.outputs) != [gate, up] or not last:
        raise _OtherError
    return _Gate(whole, halves=True)


def _in_turn(context: Context, gate: ir.Value, sigmoid: ir.Node, up: ir.Value | None) -> _Gate:
    """(clip(u) + beta) of every second column from 1 on; g sigmoid(alpha g), clipped above, of those from 0 on."""
    scaled = _made_by(sigmoid.inputs[0], "Mul")
    factors = [value for value in scaled.inputs if value is not gate]
    added = _made_by(up, "Add")
    clip_gate = _made_by(gate, "Clip")
    for clipped, beta in (added.inputs, added.inputs[::-1]):
        node = None if clipped is None else clipped.producer()
        if node is None or node.op_type != "Clip" or len(factors) != 1:
            continue
        limit = _number(context, (*clip_gate.inputs, None, None)[2])
        bounds = [_number(context, value) for value in (*node.inputs, None, None)[1:3]]
        if clip_gate.inputs[1] is not None or bounds != [-limit, limit] or not 0 < limit < math.inf:
            raise _OtherError
        columns = [_column(context, clip.inputs[0]) for clip in (clip_gate, node)]
        if columns[0][0] is not columns[1][0] or [start for _, start in columns] != [0, 1]:
            raise _OtherError
        return _Gate(columns[0][0], False, _number(context, factors[0]), _number(context, beta), limit)
    raise _OtherError


def _column(context: Context, value: ir.Value | None) -> tuple[ir.Value, int]:
    """(a value, the first of every second column that is taken of it)."""
    node = _made_by(value, "Slice")
    (start,), (end,), (axis,), (step,) = (_integers(context, node.inputs, at) for at in range(1, 5))
    if node.inputs[0] is None or axis not in (-1, 1) or step != 2 or end < 1 << 31:
        raise _OtherError
    return node.inputs[0], start


def _routing(context: Context, choice: ir.Node, weights: ir.Value | None) -> _Routing:
    (k,) = _integers(context, choice.inputs, 1)
    value = _peeled(weights)
    try:
        logits, normalize = _softmax(context, choice, value)
    except _OtherError:
        is_float = value.dtype in (None, ir.DataType.FLOAT)
        if (
            not is_float
            or opset_of(context.model.graph) < _AXES_AS_INPUT
            or not never_negative(context, value)
        ):
            raise
        return _Routing(k, choice.outputs[1], value)
    return _Routing(k, choice.outputs[1], value, logits, normalize)


_AXES_AS_INPUT = 13
"""The opset from which on ReduceSum and Unsqueeze have their axes as an input."""


def _softmax(context: Context, choice: ir.Node, value: ir.Value) -> tuple[ir.Value, bool]:
    """(logits [rows, E], whether the weights of the chosen are made to sum to 1)."""
    if choice.attributes.get_int("axis", -1) not in (-1, 1) or not choice.attributes.get_int("largest", 1):
        raise _OtherError
    scores = choice.inputs[0]
    if scores is None:
        raise _OtherError
    node = value.producer()
    if node is not None and node.op_type == "Softmax" and node.inputs[0] is choice.outputs[0]:
        return scores, True  # the softmax of the chosen ones is that of all, made to sum to 1
    softmax = _made_by(scores, "Softmax")
    logits = softmax.inputs[0]
    if logits is None or softmax.attributes.get_int("axis", -1) not in (-1, 1):
        raise _OtherError
    if value is choice.outputs[0]:
        return logits, False
    div = _made_by(value, "Div")
    total = _made_by(div.inputs[1], "ReduceSum")
    if div.inputs[0] is not choice.outputs[0] or total.inputs[0] is not choice.outputs[0]:
        raise _OtherError
    if _integers(context, total.inputs, 1) not in ([-1], [1]) or not total.attributes.get_int("keepdims", 1):
        raise _OtherError
    return logits, True


def _rows(context: Context, value: ir.Value, k: int) -> ir.Value:
    """The rows [rows, D] that each stand ``k`` times behind each other in ``value``."""
    expand = _made_by(_peeled(value), "Expand")
    if _integers(context, expand.inputs, 1) != [1, k, 1]:
        raise _OtherError
    unsqueeze = _made_by(expand.inputs[0], "Unsqueeze")
    if _integers(context, unsqueeze.inputs, 1) != [1] or unsqueeze.inputs[0] is None:
        raise _OtherError
    if context.ranks.of(unsqueeze.inputs[0]) != 2:
        raise _OtherError
    return unsqueeze.inputs[0]
