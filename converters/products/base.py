"""What the rules of this package share: the model they work on, and how they put nodes in another's place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mxort.converters import router
from mxort.converters.constants import Constant, NotConstantError
from mxort.converters.opset import opset_of
from mxort.converters.resolving import resolve
from mxort.converters.rewrite import drop_dead
from mxort.converters.shapes import Ranks
from mxort.converters.sites import LEFT, NOTE, ORIGIN, Selection, output_name, reason_against

_SPLIT_BY_INPUT = 13
"""The opset from which on the lengths of a Split are an input."""


_OPTIONAL_INPUTS = ("Conv", "Gemm", "LSTM")
"""Operators of those made here that do without some of their inputs."""


class Left(Exception):  # noqa: N818 (not an error)
    """Leaves an operator as it is, for the reason in its text; ``nodes``: in whose rows it then stands."""

    def __init__(self, reason: str, nodes: Sequence[ir.Node] = ()) -> None:
        super().__init__(reason)
        self.nodes = tuple(nodes)


@dataclass(frozen=True)
class Context:
    """The model, and what the user's recipe says about its nodes."""

    model: ir.Model
    selection: Selection
    ranks: Ranks
    names: set[str] = field(repr=False)
    tables: dict[tuple[Any, ...], ir.Value] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(model: ir.Model, selection: Selection) -> Context:
        names = {v.name or "" for graph in model.graphs() for v in graph.initializers.values()}
        names |= {v.name or "" for graph in model.graphs() for node in graph for v in node.outputs}
        names |= {v.name or "" for graph in model.graphs() for v in graph.inputs}
        return Context(model, selection, Ranks(model), names)

    def constant(self, value: ir.Value | None, what: str = "weight") -> Constant:
        """The constant behind a value. Raises Left."""
        try:
            return resolve(value, self.model.ir_version)
        except NotConstantError as error:
            raise Left(f"{what} {error}") from None

    def is_constant(self, value: ir.Value | None) -> bool:
        try:
            resolve(value, self.model.ir_version)
        except NotConstantError:
            return False
        return True

    def check(self, node: ir.Node, weight: Constant | None, k: int, n: int, op_type: str = "") -> None:
        """Raises Left where a product of this node, of W [K, N] (None: of floats), would not be converted.

        ``op_type``: what it counts as, where that is not its own.
        """
        dtype = ir.DataType.FLOAT if weight is None else weight.dtype
        if reason := reason_against(self.selection, node, dtype, k, n, op_type=op_type):
            raise Left(reason)
        if chooser := router.chooser(node, n):
            raise Left(router.reason(chooser))

    def unique(self, name: str) -> str:
        candidate, number = name, 1
        while candidate in self.names:
            number += 1
            candidate = f"{name}_{number}"
        self.names.add(candidate)
        return candidate


class Builder:
    """The nodes that take the place of one. ``product`` is the one that stands for it in reports."""

    def __init__(self, context: Context, node: ir.Node) -> None:
        self._context, self._node = context, node
        self._base = node.name or f"{node.op_type}({output_name(node)})"
        self._nodes: list[ir.Node] = []
        self.made: ir.Node
        """The product that was made last."""

    def op(
        self, op_type: str, inputs: Sequence[ir.Value | None], outputs: int = 1, **attributes: Any
    ) -> ir.Value:
        """A node of the standard domain -> its first output."""
        return self.ops(op_type, inputs, outputs, **attributes)[0]

    def ops(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        outputs: int = 1,
        domain: str = "",
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        needed = inputs[:2] if op_type in _OPTIONAL_INPUTS else inputs
        if domain == "" and any(value is None for value in needed):
            raise Left("lacks an input")
        name = f"{self._base}/{op_type}"
        node = ir.Node(
            domain,
            op_type,
            inputs,
            ir.convenience.convert_attributes(attributes),
            num_outputs=outputs,
            name=name,
        )
        for value in node.outputs:
            value.name = self._context.unique(name)
        self._nodes.append(node)
        return node.outputs

    def constant(self, array: NDArray[Any], dtype: ir.DataType | None = None) -> ir.Value:
        """A Constant node: functions and subgraphs alike may hold one."""
        return self.op("Constant", [], value=ir.Tensor(array, dtype=dtype))

    def split(self, value: ir.Value | None, lengths: Sequence[int], axis: int) -> Sequence[ir.Value]:
        """The parts of a value, as the model's opset says it."""
        if opset_of(self._context.model.graph) < _SPLIT_BY_INPUT:
            return self.ops("Split", [value], len(lengths), axis=axis, split=list(lengths))
        return self.ops("Split", [value, self.integers(lengths)], len(lengths), axis=axis)

    def nth(self, value: ir.Value | None, i: int, shape: Sequence[int]) -> ir.Value:
        """Element ``i`` along the first axis, of this shape. (A Gather of constants looks like a table.)"""
        part = self.op("Slice", [value, *map(self.integers, ([i], [i + 1], [0]))])
        return self.op("Reshape", [part, self.integers(shape)])

    def integers(self, numbers: Sequence[int]) -> ir.Value:
        return self.constant(np.array(numbers, np.int64))

    def number(self, number: float, dtype: ir.DataType) -> ir.Value:
        return self.constant(np.array(number, dtype.numpy()), dtype)

    def zero(self, dtype: ir.DataType) -> ir.TensorProtocol:
        """An attribute: one zero."""
        return ir.Tensor(np.zeros(1, dtype.numpy()), dtype=dtype)

    def product(self, left: ir.Value | None, right: ir.Value, suffix: str = "", origin: str = "") -> ir.Value:
        """A MatMul that is called as the node is."""
        return self.product_of("MatMul", [left, right], {}, suffix, origin)

    def product_of(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any],
        suffix: str = "",
        origin: str = "",
        outputs: int = 1,
        domain: str = "",
    ) -> ir.Value:
        """A node that is called as the one was, and stands for it in reports: as ``origin``, or as what it was."""
        result = self.ops(op_type, inputs, outputs, domain, **attributes)[0]
        made, old = self._nodes[-1], self._node
        made.name = self._base + suffix
        made.doc_string, made.meta[ORIGIN] = old.doc_string, origin or old.meta.get(ORIGIN, old.op_type)
        self.made = made
        if NOTE in old.meta:
            made.meta[NOTE] = old.meta[NOTE]
        made.metadata_props.update(old.metadata_props)
        return result

    def note(self, text: str) -> None:
        """Something for the report about the product made last."""
        self.made.meta[NOTE] = text

    def replace(
        self,
        new: Sequence[ir.Value],
        outputs: Sequence[ir.Value] | None = None,
        nodes: Sequence[ir.Node] | None = None,
    ) -> None:
        """Puts the nodes in the place of the one, and ``new`` in that of its outputs; unread constants go.

        ``outputs`` and ``nodes`` say so where more than the one are replaced, the last of them in the end.
        """
        gone = list(nodes or [self._node])
        old = list(outputs or self._node.outputs[: len(new)])
        read = [value for node in gone for value in node.inputs if value is not None]
        for before, after in zip(old, new, strict=True):
            after.shape, after.type, after.doc_string = before.shape, before.type, before.doc_string
        graph = gone[-1].graph
        assert graph is not None
        ir.convenience.replace_nodes_and_values(graph, gone[-1], gone, self._nodes, old, list(new))
        drop_dead(read)


class Body(Builder):
    """The nodes of a Scan's body, which stands beside what another builder makes: ``outside``."""

    def __init__(self, outside: Builder, suffix: str) -> None:
        super().__init__(outside._context, outside._node)
        self.outside, self._base = outside, self._base + suffix
        self._inputs: list[ir.Value] = []

    def input(self, name: str, dtype: ir.DataType, rank: int) -> ir.Value:
        """An input of the body: the states first, then what is scanned."""
        full = self._context.unique(f"{self._base}/{name}")
        self._inputs.append(ir.Value(name=full, type=ir.TensorType(dtype), shape=ir.Shape([None] * rank)))
        return self._inputs[-1]

    def scan(
        self, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], direction: int
    ) -> Sequence[ir.Value]:
        """The Scan, outside, over the last of the inputs -> its outputs: the states, then what is stacked."""
        for value in outputs:
            value.type, value.shape = self._inputs[0].type, self._inputs[0].shape
        body = ir.Graph(self._inputs, outputs, nodes=self._nodes, name=self._base)
        return self.outside.ops(
            "Scan",
            inputs,
            len(outputs),
            num_scan_inputs=1,
            body=body,
            scan_input_directions=[direction],
            scan_output_directions=[direction],
        )


Express = Callable[[Context, ir.Node], None]
"""Puts products in the place of a node, or raises Left."""


def leave(node: ir.Node, reason: str) -> None:
    """Notes why a node stays, for its row in the report."""
    node.meta[LEFT] = reason


def attribute_ints(node: ir.Node, name: str, default: Sequence[int]) -> list[int]:
    attribute = node.attributes.get(name)
    return list(default) if attribute is None else list(attribute.as_ints())


Table = Mapping[tuple[str, str], Express]
