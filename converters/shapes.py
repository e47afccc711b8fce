"""Shapes of values: what the file says, else what follows from the nodes before."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from functools import cached_property

import onnx_ir as ir
import onnx_ir.passes.common

from mxort.converters import functions
from mxort.converters.constants import NotConstantError
from mxort.converters.resolving import resolve


class Ranks:
    """Looks up the number of axes of a model's values, by onnx's inference once and on demand; changes nothing."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model

    def known(self, value: ir.Value | None) -> int | None:
        """The rank that the file states (None: it does not)."""
        return None if value is None or value.shape is None else value.shape.rank()

    def of(self, value: ir.Value | None) -> int | None:
        """The rank that the file states or that inference finds; None where neither does."""
        if (rank := self.known(value)) is not None or value is None:
            return rank
        ranks = self._inferred.get(value.name or "", set())
        return next(iter(ranks)) if len(ranks) == 1 else None

    @cached_property
    def _inferred(self) -> dict[str, set[int]]:
        """Ranks by name: more than one where sibling subgraphs use a name for different values."""
        model = self._model.clone()
        onnx_ir.passes.common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
        ranks: dict[str, set[int]] = defaultdict(set)
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            for value in node.outputs:
                if value.name and value.shape is not None:
                    ranks[value.name].add(value.shape.rank())
        return ranks


class Inferred:
    """Types and shapes of a model's values by onnx's inference, once and on demand; changes nothing.

    It calls dimensions that are equal by one name, also through arithmetic on shapes. Values that are made later under
    the name of one that was there have what that had.
    """

    def __init__(self, model: ir.Model) -> None:
        self._model = model

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        if value is None or value.dtype is not None:
            return None if value is None else value.dtype
        found = self._values.get(value.name or "")
        return None if found is None else found.dtype

    def shape(self, value: ir.Value | None) -> ir.Shape | None:
        found = None if value is None else self._values.get(value.name or "", value)
        return None if found is None else found.shape

    @cached_property
    def _values(self) -> dict[str, ir.Value]:
        clone = self._model.clone()
        onnx_ir.passes.common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(clone)
        values = (*clone.graph.inputs, *(value for node in clone.graph for value in node.outputs))
        return {value.name: value for value in values if value.name}


def width(value: ir.Value | None, ir_version: int) -> int:
    """The last dimension of a value: a product with a constant, also with a bias added, or several side by side.

    0 where it is unknown.
    """
    node = None if value is None else value.producer()
    if value is not None and value.shape is not None and isinstance(last := value.shape[-1], int):
        return last
    if node is None:
        return 0
    if node.domain == functions.DOMAIN and node.op_type in functions.WITH_WEIGHTS:
        return node.attributes.get_int("N", 0)
    if node.domain == "" and node.op_type == "Concat":
        widths = [width(part, ir_version) for part in node.inputs]
        return sum(widths) if all(widths) else 0
    if node.domain != "" or node.op_type not in ("Add", "MatMul"):
        return 0
    widths = [0]
    for operand in node.inputs if node.op_type == "Add" else node.inputs[1:]:
        with contextlib.suppress(NotConstantError):
            widths += resolve(operand, ir_version).shape[-1:]
    return max(widths)
