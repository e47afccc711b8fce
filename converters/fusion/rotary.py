"""x cos + rotate_half(x) sin in single steps becomes RotaryEmbedding (ONNX, opset 23), before x is split into heads.

    x [batch, length, heads, size] --Transpose--> --Mul, Slice, Neg, Concat, Mul, Add-->      ->
    x --Reshape--> [batch, length, heads * size] --RotaryEmbedding--> --Reshape--> --Transpose-->

Reshapes copy nothing. The operator is given an angle for each position, the first half of what the steps use.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from mxort.converters.attention import Fused
from mxort.converters.fusion.steps import (
    HEADS_FIRST,
    Builder,
    Other,
    heads_and_size,
    inner,
    kind,
    maker,
    numbers,
    other_operand,
    permutation,
    scalar,
    take_over,
)
from mxort.converters.rewrite import drop_steps
from mxort.converters.shapes import Inferred

NAME = "RotaryEmbedding"


@dataclass(frozen=True)
class _Rotation:
    """``last`` adds what ``split`` [batch, length, heads, size] becomes, transposed, times ``cos`` and ``sin``."""

    last: ir.Node
    split: ir.Value
    heads: int
    size: int
    cos: ir.Value
    sin: ir.Value


def find(model: ir.Model, _known: Inferred) -> tuple[list[_Rotation], Fused]:
    """What can be replaced, and why the rest cannot."""
    found, result = [], Fused()
    for node in model.graph:
        if kind(node) != "Add" or (products := _rotation(node)) is None:
            continue
        try:
            found.append(_read(node, *products, model.ir_version))
        except Other as reason:
            result.left[str(reason)] += 1
    return found, result


def replace(model: ir.Model, found: list[_Rotation]) -> None:
    """In place."""
    angles: dict[ir.Value, ir.Value] = {}
    for rotation in found:
        _replace(model, rotation, angles)


def _rotation(node: ir.Node) -> tuple[ir.Node, ir.Node, ir.Node] | None:
    """(the product with cosines, that with sines, the Concat of the halves) of an Add that joins them."""
    products = [inner(value, "Mul") for value in node.inputs]
    for plain, turned in (products, products[::-1]):
        if plain is None or turned is None:
            continue
        for value in turned.inputs:
            half = inner(value, "Concat")
            if half is not None and len(half.inputs) == 2 and inner(half.inputs[0], "Neg") is not None:
                return plain, turned, half
    return None


def _read(add: ir.Node, plain: ir.Node, turned: ir.Node, half: ir.Node, ir_version: int) -> _Rotation:
    x = _source(half)
    if x not in tuple(plain.inputs):
        raise Other("its halves are of another value than what is multiplied by cosines")
    before = maker(x)
    if permutation(before) != HEADS_FIRST or before is None or before.inputs[0] is None:
        raise Other("it is not of heads that were transposed to the front")
    split = before.inputs[0]
    try:
        heads, size = heads_and_size(split, ir_version)
    except ValueError:
        raise Other("the number or size of its heads is computed") from None
    _check_halves(half, size, ir_version)
    cos = _angles(other_operand(plain, x), "Cos", ir_version)
    sin = _angles(other_operand(turned, half.outputs[0]), "Sin", ir_version)
    return _Rotation(add, split, heads, size, cos, sin)


def _source(half: ir.Node) -> ir.Value:
    """What both halves are slices of."""
    negated = inner(half.inputs[0], "Neg")
    second = None if negated is None else inner(negated.inputs[0], "Slice")
    first = inner(half.inputs[1], "Slice")
    if second is None or first is None or second.inputs[0] is not first.inputs[0]:
        raise Other("it does not turn the halves of one value")
    assert first.inputs[0] is not None
    return first.inputs[0]


def _check_halves(half: ir.Node, size: int, ir_version: int) -> None:
    if half.attributes.get_int("axis") not in (-1, 3):
        raise Other("its halves are not of the last dimension")
    negated = maker(half.inputs[0])
    assert negated is not None
    for value, start, stop in ((half.inputs[1], 0, size // 2), (negated.inputs[0], size // 2, size)):
        node = maker(value)
        assert node is not None
        begin, end, axis, *step = (scalar(v, ir_version) for v in (*node.inputs[1:], None, None)[:4])
        if begin is None or end is None or axis not in (-1, 3) or step not in ([None], [1]):
            raise Other("the bounds of its halves are computed")
        if (begin, min(end, size)) != (start, stop):
            raise Other("it rotates a part of each head")


def _angles(value: ir.Value | None, function: str, ir_version: int) -> ir.Value:
    """[batch, length, size]: what [batch, 1, length, size] is made of, where its halves are the same."""
    node = maker(value)
    if node is None or kind(node) != "Unsqueeze" or numbers(node.inputs[1], ir_version) != [1]:
        raise Other("its angles are not those of all heads")
    whole = node.inputs[0]
    assert whole is not None
    node = maker(whole)
    while node is not None and kind(node) in ("Cast", "Mul", function):  # a factor: that of long contexts
        at = 0
        if kind(node) == "Mul":
            at = next((1 - i for i in (0, 1) if scalar(node.inputs[i], ir_version) is not None), -1)
            if at < 0:
                break
        node = maker(node.inputs[at])
    if (
        node is None
        or kind(node) != "Concat"
        or len(node.inputs) != 2
        or node.inputs[0] is not node.inputs[1]
    ):
        raise Other("its angles do not stand twice")
    return whole


def _replace(model: ir.Model, found: _Rotation, angles: dict[ir.Value, ir.Value]) -> None:
    build, split, old = Builder(model, found.last), found.split, found.last.outputs[0]
    for whole in (found.cos, found.sin):
        if whole not in angles:
            angles[whole] = _first_half(build, whole, split, found.size)
    flat = build.add("Reshape", [split, build.ints(0, 0, -1)], like=split).outputs[0]
    inputs = [flat, angles[found.cos], angles[found.sin]]
    rotated = build.add(NAME, inputs, {"num_heads": found.heads}, like=split).outputs[0]
    again = build.add("Reshape", [rotated, build.ints(0, 0, found.heads, found.size)], like=split).outputs[0]
    again.shape = split.shape
    result = build.add("Transpose", [again], {"perm": HEADS_FIRST})
    take_over(old, result.outputs[0])
    drop_steps([old])


def _first_half(build: Builder, whole: ir.Value, split: ir.Value, size: int) -> ir.Value:
    """[batch, length, size / 2], for each of the batch even where the angles are the same for all."""
    first = build.add(
        "Slice", [whole, build.ints(0), build.ints(size // 2), build.ints(-1)], like=whole
    ).outputs[0]
    batch = None if whole.shape is None else whole.shape[0]
    if (
        isinstance(batch, ir.SymbolicDim)
        and split.shape is not None
        and batch.value
        and batch == split.shape[0]
    ):
        return first
    rows = build.add("Shape", [split], {"start": 0, "end": 1}).outputs[0]
    target = build.add("Concat", [rows, build.ints(1), build.ints(1)], {"axis": 0}).outputs[0]
    return build.add("Expand", [first, target], like=whole).outputs[0]
