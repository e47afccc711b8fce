"""Stretches of a graph in which the channels stay the last axis, so that the transposes around products vanish.

A stretch is what is connected of operators that compute element by element. It takes on the order of its products
where that leaves no more transposes than before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from mxort.converters.constants import NotConstantError
from mxort.converters.products.base import Context
from mxort.converters.resolving import resolve
from mxort.converters.walk import bodies

_ELEMENTWISE = frozenset(
    {"Abs", "Add", "Cast", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity"}
    | {
        "LeakyRelu",
        "Log",
        "Max",
        "Min",
        "Mish",
        "Mul",
        "Neg",
        "Pow",
        "PRelu",
        "Reciprocal",
        "Relu",
        "Sigmoid",
    }
    | {"Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tanh", "Where"}
)
"""Operators of the standard domain whose output has, at each place, what the inputs have there."""

_PARAMETERS = {"Clip": 1}
"""Operator -> the input from which on they are single numbers, of no place."""


def settle(context: Context) -> None:
    """Takes away transposes that undo each other, directly or through a stretch between them."""
    for body in bodies(context.model):
        for graph in (body, *body.subgraphs()):
            _settle(context, graph)


def _settle(context: Context, graph: ir.Graph | ir.Function) -> None:
    if not any(_is_last_to_first(node) for node in graph):
        return
    for stretch in list(_stretches(context, graph)):
        if stretch.worthwhile():
            stretch.turn(context)
    for node in list(graph):
        _cancel(node)
    _share(graph)


def _permutation(node: ir.Node | None) -> list[int]:
    if node is None or (node.domain, node.op_type) != ("", "Transpose") or "perm" not in node.attributes:
        return []
    return list(node.attributes["perm"].as_ints())


def to_first(rank: int) -> list[int]:
    return [0, rank - 1, *range(1, rank - 1)]


def to_last(rank: int) -> list[int]:
    return [0, *range(2, rank), 1]


def _is_last_to_first(node: ir.Node | None) -> bool:
    perm = _permutation(node)
    return len(perm) > 2 and perm == to_first(len(perm))


def _is_first_to_last(node: ir.Node | None) -> bool:
    perm = _permutation(node)
    return len(perm) > 2 and perm == to_last(len(perm))


def _cancel(node: ir.Node) -> None:
    """Who reads the transpose of a transpose that it undoes reads what that one reads."""
    if not _is_first_to_last(node) or node.graph is None:
        return
    source = node.inputs[0]
    before = None if source is None else source.producer()
    if before is None or before.graph is not node.graph or not _is_last_to_first(before):
        return
    if len(_permutation(before)) != len(_permutation(node)) or node.outputs[0].is_graph_output():
        return
    original = before.inputs[0]
    assert original is not None
    node.outputs[0].replace_all_uses_with(original)
    node.graph.remove(node, safe=True)
    assert source is not None
    _drop_unread(source)


def _drop_unread(value: ir.Value) -> None:
    node = value.producer()
    if node is not None and node.graph is not None and not value.uses() and not value.is_graph_output():
        node.graph.remove(node, safe=True)


def _share(graph: ir.Graph | ir.Function) -> None:
    """One transpose for all who read the same."""
    seen: dict[tuple[ir.Value | None, tuple[int, ...]], ir.Value] = {}
    for node in list(graph):
        perm = tuple(_permutation(node))
        if len(perm) < 3 or node.outputs[0].is_graph_output():
            continue
        first = seen.setdefault((node.inputs[0], perm), node.outputs[0])
        if first is not node.outputs[0]:
            node.outputs[0].replace_all_uses_with(first)
            graph.remove(node, safe=True)


@dataclass
class _Stretch:
    """Operators connected with each other, all of one rank, and the values at their borders."""

    rank: int
    nodes: list[ir.Node]
    entering: list[ir.Value] = field(default_factory=list)

    def _made(self) -> set[ir.Value]:
        return {node.outputs[0] for node in self.nodes}

    def worthwhile(self) -> bool:
        """Whether a transpose goes away before it, and as many go as come."""
        inside, made = set(self.nodes), self._made()
        gone = new = 0
        for value in self.entering:
            if _is_last_to_first(value.producer()):
                gone += not value.is_graph_output() and all(
                    user in inside or _is_first_to_last(user) for user, _ in value.uses()
                )
            else:
                new += 1
        if not gone:
            return False
        for value in made:
            users = [user for user, _ in value.uses() if user not in inside]
            gone += len([user for user in users if _is_first_to_last(user)])
            new += value.is_graph_output() or any(not _is_first_to_last(user) for user in users)
        return gone >= new

    def turn(self, context: Context) -> None:
        """Has the operators compute with the channels last."""
        inside, last = set(self.nodes), dict[ir.Value, ir.Value]()
        for value in self.entering:
            producer = value.producer()
            if producer is not None and _is_last_to_first(producer) and producer.inputs[0] is not None:
                last[value] = producer.inputs[0]
        for node in self.nodes:
            for index, value in enumerate(_operands(node)):
                if value.producer() not in inside:
                    if value not in last:
                        last[value] = self._turned(context, node, value)
                    node.replace_input_with(index, last[value])
        for node in self.nodes:
            self._back(context, node, inside)
        for value in self.entering:
            if _is_last_to_first(value.producer()):
                _drop_unread(value)

    def _turned(self, context: Context, node: ir.Node, value: ir.Value) -> ir.Value:
        """A value that enters, with its channels last: single numbers stay, short constants get all axes first."""
        assert node.graph is not None
        rank = _constant_rank(context, value)
        if rank is not None and _is_single(context, value):
            return value
        if rank is not None and rank < self.rank:
            shape = resolve(value, context.model.ir_version).shape
            whole = ir.Tensor(np.array([1] * (self.rank - rank) + list(shape), np.int64))
            target = _before(context, node, "Constant", [], {"value": whole})
            value = _before(context, node, "Reshape", [value, target], {})
        return _before(context, node, "Transpose", [value], {"perm": to_last(self.rank)})

    def _back(self, context: Context, node: ir.Node, inside: Collection[ir.Node]) -> None:
        """Who reads an operator's output outside of the stretch gets it with the channels first, under its old name."""
        value = node.outputs[0]
        others = [(user, at) for user, at in value.uses() if user not in inside]
        shape = value.shape
        value.shape = None
        for user, at in list(others):
            if _is_first_to_last(user) and not user.outputs[0].is_graph_output():
                user.outputs[0].replace_all_uses_with(value)
                assert user.graph is not None
                user.graph.remove(user, safe=True)
                others.remove((user, at))
        if not others and not value.is_graph_output():
            return
        assert node.graph is not None
        back = ir.node("Transpose", [value], {"perm": to_first(self.rank)}, name=f"{node.name}/Transpose")
        output = back.outputs[0]
        output.shape, output.type = shape, value.type
        node.graph.insert_after(node, back)
        if value.is_graph_output():
            graph = value.graph
            assert graph is not None
            for i, old in enumerate(graph.outputs):
                if old is value:
                    graph.outputs[i] = output
        name = value.name or ""
        value.name = context.unique(f"{name}/channel_last")
        output.name = name
        for user, at in others:
            user.replace_input_with(at, output)


def _stretches(context: Context, graph: ir.Graph | ir.Function) -> Iterator[_Stretch]:
    ranks = {node: rank for node in graph if (rank := _rank(context, node)) is not None}
    seen: set[ir.Node] = set()
    for first in ranks:
        if first in seen:
            continue
        connected, pending = {first}, [first]
        while pending:
            for other in _neighbours(pending.pop()):
                if ranks.get(other) == ranks[first] and other not in connected:
                    connected.add(other)
                    pending.append(other)
        seen |= connected
        stretch = _Stretch(ranks[first], [node for node in ranks if node in connected])
        entering = (
            value for node in stretch.nodes for value in _operands(node) if value not in stretch._made()
        )
        stretch.entering = [v for v in dict.fromkeys(entering) if not context.is_constant(v)]
        yield stretch


def _operands(node: ir.Node) -> list[ir.Value]:
    """What an operator reads of each place."""
    return [v for v in node.inputs[: _PARAMETERS.get(node.op_type, len(node.inputs))] if v is not None]


def _neighbours(node: ir.Node) -> Iterator[ir.Node]:
    """Operators that an operator reads from or is read by, and those that read the same product."""
    for value in _operands(node):
        if (producer := value.producer()) is not None:
            yield producer
            if _is_last_to_first(producer):
                yield from _readers(value)
    yield from _readers(node.outputs[0])


def _readers(value: ir.Value) -> Iterator[ir.Node]:
    for user, index in value.uses():
        if index < _PARAMETERS.get(user.op_type, len(user.inputs)):
            yield user


def _rank(context: Context, node: ir.Node) -> int | None:
    """The rank that all operands of an elementwise operator have, but for constants of a lower one; None of others."""
    if node.domain != "" or node.op_type not in _ELEMENTWISE or len(node.outputs) != 1:
        return None
    operands = _operands(node)
    ranks = {_rank_of(context, value) for value in operands if not context.is_constant(value)}
    if len(ranks) != 1 or None in ranks:
        return None
    (rank,) = ranks
    constants = [_constant_rank(context, value) for value in operands if context.is_constant(value)]
    if rank is None or rank < 3 or any(other is None or other > rank for other in constants):
        return None
    return rank


def _rank_of(context: Context, value: ir.Value) -> int | None:
    return len(_permutation(value.producer())) or context.ranks.of(value)


def _constant_rank(context: Context, value: ir.Value) -> int | None:
    try:
        return len(resolve(value, context.model.ir_version).shape)
    except NotConstantError:
        return None


def _is_single(context: Context, value: ir.Value) -> bool:
    """Whether a constant is the same in any order of the axes."""
    return all(size == 1 for size in resolve(value, context.model.ir_version).shape)


def _before(
    context: Context, node: ir.Node, op_type: str, inputs: list[ir.Value], attributes: dict[str, Any]
) -> ir.Value:
    """The output of a new node in front of another."""
    name = f"{node.name or node.outputs[0].name}/{op_type}"
    made = ir.node(op_type, inputs, attributes, name=name)
    made.outputs[0].name = context.unique(name)
    assert node.graph is not None
    node.graph.insert_before(node, made)
    return made.outputs[0]
