"""Einsum of a value and a constant that is a product: axes moved and joined around a MatMul."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from mxort.converters.products.base import Builder, Context, Left

_ELLIPSIS = "..."
_STAND_INS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class _Terms:
    """The axes of the value, of the constant and of the result, a letter each."""

    x: str
    w: str
    y: str

    @property
    def summed(self) -> str:
        return "".join(a for a in self.w if a in self.x)

    @property
    def rows(self) -> str:
        return "".join(a for a in self.x if a not in self.w)

    @property
    def columns(self) -> str:
        return "".join(a for a in self.w if a not in self.x)


def express(context: Context, node: ir.Node) -> None:
    """Raises Left."""
    if len(node.inputs) != 2 or "equation" not in node.attributes:
        raise Left(f"an Einsum of {len(node.inputs)} operands is not converted")
    at = next((i for i in (1, 0) if context.is_constant(node.inputs[i])), None)
    if at is None:
        raise Left("no operand is constant")
    weight, x = context.constant(node.inputs[at]), node.inputs[1 - at]
    terms = _terms(context, node, at, len(weight.shape))
    size = dict(zip(terms.w, weight.shape, strict=True))
    k, n = (math.prod(size[a] for a in axes) for axes in (terms.summed, terms.columns))
    context.check(node, weight, k, n)
    build = Builder(context, node)
    x = _moved(build, x, terms.x, terms.rows + terms.summed)
    if len(terms.summed) != 1:
        x = build.op("Reshape", [x, build.integers([*[0] * len(terms.rows), k])])
    matrix = _moved(build, node.inputs[at], terms.w, terms.summed + terms.columns)
    y = build.product(x, build.op("Reshape", [matrix, build.integers([k, n])]))
    if len(terms.columns) != 1:
        columns = [size[a] for a in terms.columns]
        y = build.op("Reshape", [y, build.integers([*[0] * len(terms.rows), *columns])])
    result = _moved(build, y, terms.rows + terms.columns, terms.y)
    assert result is not None
    build.replace([result])


def _moved(build: Builder, value: ir.Value | None, axes: str, wanted: str) -> ir.Value | None:
    return value if axes == wanted else build.op("Transpose", [value], perm=[axes.index(a) for a in wanted])


def _terms(context: Context, node: ir.Node, at: int, rank: int) -> _Terms:
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    left, arrow, result = equation.partition("->")
    operands = left.split(",")
    if len(operands) != 2:
        raise Left(f"Einsum {equation!r} does not have two operands")
    if not arrow:  # the letters that occur once, in alphabetical order
        letters = left.replace(",", "").replace(".", "")
        result = _ELLIPSIS * (_ELLIPSIS in left) + "".join(
            sorted(a for a in letters if letters.count(a) == 1)
        )
    x, w = operands[1 - at], operands[at]
    if _ELLIPSIS in equation:
        known = context.ranks.of(node.inputs[1 - at])
        if known is None or _ELLIPSIS in w:
            raise Left(f"Einsum {equation!r}: what its ellipsis stands for is unknown")
        free = [a for a in _STAND_INS if a not in equation]
        stand_in = "".join(free[: max(0, known - len(x) + len(_ELLIPSIS))])
        x, result = x.replace(_ELLIPSIS, stand_in), result.replace(_ELLIPSIS, stand_in)
    terms = _Terms(x, w, result)
    if any(len(set(part)) != len(part) for part in (x, w, result)) or len(w) != rank:
        raise Left(f"Einsum {equation!r} takes a diagonal, which no product does")
    if any(a in result for a in terms.summed):
        raise Left(f"Einsum {equation!r} is a batch of products")
    if sorted(result) != sorted(terms.rows + terms.columns) or not terms.summed or not terms.columns:
        raise Left(f"Einsum {equation!r} is no product")
    return terms
