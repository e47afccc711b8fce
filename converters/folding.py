"""Where the channels of a site's operand can be divided by constants without a node of their own.

A / s is what the nodes before compute when s is folded into them: into the scale and bias of a normalisation, into a
constant that is multiplied or added, or into the output columns of a converted linear layer. On the way to one of
these stand only operators that let a positive factor of a channel through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mxort.converters import rewrite
from mxort.converters.constants import FLOAT_TYPES, Constant, NotConstantError
from mxort.converters.resolving import resolve
from mxort.converters.sites import Site

_NORMS: dict[tuple[str, str], tuple[int, ...]] = {
    ("", "LayerNormalization"): (1, 2),
    ("", "RMSNormalization"): (1,),
    ("", "SimplifiedLayerNormalization"): (1,),
    ("com.microsoft", "SkipLayerNormalization"): (2, 3),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): (2,),
}
"""(domain, operator) -> the inputs that scale and shift its first output, along the last axis."""

_TRANSPARENT = frozenset({"Identity", "Relu"})


@dataclass(frozen=True)
class Fold:
    """What is divided by s: ``constants``, as inputs of nodes, and the output columns of ``site``, if there is one."""

    constants: tuple[tuple[ir.Node, int], ...] = ()
    site: Site | None = None


class NotFoldableError(Exception):
    """Says why, as a phrase whose subject is the operand."""


def fold_of(model: ir.Model, group: Sequence[Site], converted: Mapping[ir.Node, Site]) -> Fold:
    """The fold for the operand that all of ``group`` share. Raises NotFoldableError.

    ``converted`` has the sites before it that become the operator, by node; one's output columns can be divided.
    """
    operand, k = group[0].node.inputs[0], group[0].K
    assert operand is not None
    if group[0].transpose_a:
        raise NotFoldableError("is transposed")
    nodes = {site.node for site in group}
    if operand.is_graph_output() or any(user not in nodes or index != 0 for user, index in operand.uses()):
        raise NotFoldableError("has other uses")
    makers = {(site.bias_node or node): site for node, site in converted.items()}
    return _Tracer(model.ir_version, k, makers).trace(operand)


class _Tracer:
    def __init__(self, ir_version: int, k: int, makers: Mapping[ir.Node, Site]) -> None:
        self._ir_version, self._k, self._makers = ir_version, k, makers

    def trace(self, value: ir.Value) -> Fold:
        """The fold for ``value``, whose uses are known to be fine."""
        node = value.producer()
        if node is None:
            raise NotFoldableError("is an input")
        if (site := self._makers.get(node)) is not None and self._k == site.N:
            return Fold(site=site)
        inputs = _NORMS.get((node.domain, node.op_type))
        if inputs is not None and value is node.outputs[0]:
            return self._norm(node, inputs)
        if node.domain == "" and node.op_type in _TRANSPARENT:
            return self._inside(node.inputs[0])
        if node.domain == "" and node.op_type == "Mul":
            return self._product(node)
        if node.domain == "" and node.op_type == "Add":
            index = next((i for i in (0, 1) if self._is_row(node.inputs[i])), None)
            if index is not None:
                before = self._inside(node.inputs[1 - index])
                return Fold((*before.constants, (node, index)), before.site)
        raise NotFoldableError(f"is computed by {node.op_type}")

    def _norm(self, node: ir.Node, inputs: tuple[int, ...]) -> Fold:
        given = [i for i in inputs if i < len(node.inputs) and node.inputs[i] is not None]
        if not all(self._is_row(node.inputs[i]) for i in given):
            raise NotFoldableError(f"is scaled by what {node.op_type} is given at run time")
        return Fold(tuple((node, i) for i in given))

    def _product(self, node: ir.Node) -> Fold:
        for i in (0, 1):
            if self._is_row(node.inputs[i]):
                return Fold(((node, i),))
        try:
            return self._inside(node.inputs[0])
        except NotFoldableError as first:
            try:
                return self._inside(node.inputs[1])
            except NotFoldableError:
                raise first from None

    def _inside(self, value: ir.Value | None) -> Fold:
        if value is None or value.is_graph_output() or len(value.uses()) != 1:
            raise NotFoldableError("depends on a value with other uses")
        return self.trace(value)

    def _is_row(self, value: ir.Value | None) -> bool:
        """Whether a value is constant and of one number for each channel.

        Not one for all of them: ONNX Runtime recognises activations by such, Gelu by its 0.5.
        """
        try:
            constant = resolve(value, self._ir_version)
        except NotConstantError:
            return False
        *outer, last = constant.shape or (1,)
        return all(d == 1 for d in outer) and last == self._k and constant.dtype in FLOAT_TYPES


def divide(model: ir.Model, fold: Fold, divisor: NDArray[np.float32]) -> None:
    """Divides the constants of ``fold`` by float32 [K], each for its node alone; the site is left to ``rewrite``."""
    names = {value.name for value in model.graph.initializers.values()}
    for node, index in fold.constants:
        old = node.inputs[index]
        assert old is not None
        constant = resolve(old, model.ir_version)
        name, number = f"{constant.name}_smoothed", 1
        while name in names:
            number += 1
            name = f"{constant.name}_smoothed_{number}"
        names.add(name)
        value = ir.Value(name=name, const_value=_divided(constant, divisor, name))
        assert value.const_value is not None
        value.type, value.shape = (
            ir.TensorType(value.const_value.dtype),
            ir.Shape(value.const_value.shape.numpy()),
        )
        model.graph.register_initializer(value)
        node.replace_input_with(index, value)
        rewrite.drop_dead([old])


def _divided(constant: Constant, divisor: NDArray[np.float32], name: str) -> ir.TensorProtocol:
    quotient = constant.numpy().astype(np.float32) / divisor
    return ir.Tensor(quotient.astype(constant.dtype.numpy()), dtype=constant.dtype, name=name)
