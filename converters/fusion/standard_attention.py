"""Attention in single steps becomes the standard's operator of that name (opset 23), with its cache and its groups.

    q [batch, length, heads, size] --Transpose--> -------------------------------------> q k^T --scale, mask-->
    k --Transpose--> --Concat(past, .)--> present --Unsqueeze, Expand, Reshape (a group's copies)--Transpose--^
    --> Softmax --> (zeros for NaN) --> times v, as k --> --Transpose--> y [batch, length, heads, size]

Copies of keys and values, the transpositions and the appending become part of the operator. What encoder_attention
takes is not looked at again: it runs before.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from mxort.converters.attention import Fused
from mxort.converters.fusion.steps import (
    HEADS_FIRST,
    Builder,
    Other,
    heads_of_transposed,
    inner,
    kind,
    maker,
    next_node,
    numbers,
    permutation,
    scalar,
    take_over,
    users,
)
from mxort.converters.rewrite import drop_steps
from mxort.converters.shapes import Inferred

NAME = "Attention"

_SIZE_MULTIPLE, _LARGEST_SIZE = 8, 256
"""Of a head: what the GPU's kernel takes (docs/mi355x.md). The steps run there too, one by one."""


@dataclass(frozen=True)
class _Cached:
    """Keys or values: the new ones [batch, length, heads, size], and the node that appends them to a cache."""

    new: ir.Value
    heads: int
    size: int
    append: ir.Node | None

    @property
    def past(self) -> ir.Value | None:
        return None if self.append is None else self.append.inputs[0]


@dataclass(frozen=True)
class _Steps:
    query: ir.Value
    heads: int
    key: _Cached
    value: _Cached
    masks: tuple[ir.Value, ...]
    scale: float
    last: ir.Node


def find(model: ir.Model, _known: Inferred) -> tuple[list[_Steps], Fused]:
    """What can be replaced, and why the rest cannot."""
    found, result = [], Fused()
    for node in model.graph:
        if kind(node) != "Softmax" or not weighs(node):
            continue
        try:
            steps = _Reader(model.ir_version).steps(node)
            _check_order(steps)
        except Other as reason:
            result.left[str(reason)] += 1
        else:
            found.append(steps)
    return found, result


def replace(model: ir.Model, found: list[_Steps]) -> None:
    """In place."""
    sums: dict[tuple[ir.Value, ...], ir.Value] = {}
    for steps in found:
        _replace(model, steps, sums)


def weighs(softmax: ir.Node) -> bool:
    """Whether what a Softmax computes multiplies something, perhaps after a cast or with zeros for NaN."""
    pending = users(softmax.outputs[0])
    return any(
        kind(node) == "MatMul"
        or (kind(node) in ("Cast", "Where") and any(map(_is_product, users(node.outputs[0]))))
        for node in pending
    )


def _is_product(node: ir.Node) -> bool:
    return kind(node) == "MatMul"


class _Reader:
    def __init__(self, ir_version: int) -> None:
        self.ir_version = ir_version
        self.scale = 1.0

    def steps(self, softmax: ir.Node) -> _Steps:
        if softmax.attributes.get_int("axis", -1) not in (-1, 3):
            raise Other("it is not over the last dimension")
        scores, masks = self._scores(softmax.inputs[0])
        query, heads, size = self._query(self._unscaled(scores.inputs[0]))
        key = self._cached(self._key(self._unscaled(scores.inputs[1])))
        product = self._product(softmax)
        value = self._cached(product.inputs[1])
        if size != key.size or key.heads != value.heads or heads % key.heads:
            raise Other("its queries and keys have not the same heads")
        if any(s % _SIZE_MULTIPLE or s > _LARGEST_SIZE for s in (size, value.size)):
            raise Other(f"its heads are not of a multiple of {_SIZE_MULTIPLE} numbers up to {_LARGEST_SIZE}")
        if (key.append is None) != (value.append is None):
            raise Other("one of its keys and values has no cache")
        last = next_node(product.outputs[0], "Transpose", "Reshape")
        if last is not None and kind(last) == "Reshape":
            last = next_node(last.outputs[0], "Transpose")
        if last is None or permutation(last) != HEADS_FIRST:
            raise Other("its result is not transposed back")
        return _Steps(query, heads, key, value, masks, self.scale, last)

    def _scores(self, value: ir.Value | None) -> tuple[ir.Node, tuple[ir.Value, ...]]:
        """(the product of queries and keys, what is added to it: a mask, a bias of positions)."""
        masks: tuple[ir.Value, ...] = ()
        while True:
            node = inner(value, "MatMul", "Add", "Mul", "Div", "Cast")
            if node is None:
                raise Other("it has no product of queries and keys that nothing else reads")
            if kind(node) == "MatMul":
                return node, masks
            if kind(node) == "Add":
                at = next((i for i in (0, 1) if self._leads_to_product(node.inputs[i])), None)
                mask = None if at is None else node.inputs[1 - at]
                if at is None or mask is None or self.scale != 1:
                    raise Other("its mask is not added after the scale")
                masks, value = (mask, *masks), node.inputs[at]
            elif kind(node) == "Cast":
                if masks:
                    raise Other("its scores are cast before the mask")
                value = node.inputs[0]
            else:
                value = self._factor(node)

    def _leads_to_product(self, value: ir.Value | None) -> bool:
        node = inner(value, "MatMul", "Add", "Mul", "Div", "Cast")
        if node is None or kind(node) == "MatMul":
            return node is not None
        return any(self._leads_to_product(operand) for operand in node.inputs)

    def _factor(self, node: ir.Node) -> ir.Value | None:
        """What a Mul or Div by one number has as its other operand; the scale takes the number up."""
        for at in (1, 0) if kind(node) == "Mul" else (1,):
            factor = scalar(node.inputs[at], self.ir_version)
            if factor:
                self.scale = self.scale / factor if kind(node) == "Div" else self.scale * factor
                return node.inputs[1 - at]
        raise Other("it has a step that is not known")

    def _unscaled(self, value: ir.Value | None) -> ir.Value | None:
        node = inner(value, "Mul", "Div")
        while node is not None and any(
            scalar(v, self.ir_version) for v in node.inputs[kind(node) == "Div" :]
        ):
            value = self._factor(node)
            node = inner(value, "Mul", "Div")
        return value

    def _query(self, value: ir.Value | None) -> tuple[ir.Value, int, int]:
        node = maker(value)
        if value is None or permutation(node) != HEADS_FIRST or node is None or node.inputs[0] is None:
            raise Other("its queries are not split into heads and transposed")
        return (node.inputs[0], *self._heads(value))

    def _heads(self, value: ir.Value) -> tuple[int, int]:
        try:
            return heads_of_transposed(value, self.ir_version)
        except ValueError:
            raise Other("the number or size of its heads is computed") from None

    def _key(self, value: ir.Value | None) -> ir.Value:
        """Keys [batch, heads, length, size] whose last two dimensions are exchanged before the product."""
        node = maker(value)
        perm = permutation(node)
        if node is not None and perm == [0, 1, 3, 2]:
            source = node.inputs[0]
        elif node is not None and perm == [0, 2, 3, 1]:
            return value if value is not None else node.outputs[0]
        else:
            source = self._exchanged_by_rank_3(node)
        source = self._unscaled(source)
        if source is None:
            raise Other("its keys are not transposed")
        return source

    def _exchanged_by_rank_3(self, node: ir.Node | None) -> ir.Value | None:
        """Behind Reshape [batch * heads, length, size], Transpose, Reshape: torch's exporter without known ranks."""
        turned = inner(node.inputs[0], "Transpose") if node is not None and kind(node) == "Reshape" else None
        flat = inner(turned.inputs[0], "Reshape") if turned is not None else None
        if turned is None or flat is None or permutation(turned) != [0, 2, 1]:
            raise Other("its keys are not transposed")
        return flat.inputs[0]

    def _product(self, softmax: ir.Node) -> ir.Node:
        """The product with the values, behind a cast and behind zeros for what is not a number."""
        value = softmax.outputs[0]
        cast = next_node(value, "Cast")
        value = cast.outputs[0] if cast is not None else value
        readers = users(value)
        guard = next((node for node in readers if kind(node) == "Where"), None)
        if guard is not None and len(readers) == 2 and not value.is_graph_output():
            test = inner(guard.inputs[0], "IsNaN")
            if test is None or test.inputs[0] is not value or scalar(guard.inputs[1], self.ir_version) != 0:
                raise Other("it has a step that is not known")
            value = guard.outputs[0]
        product = next_node(value, "MatMul")
        if product is None or product.inputs[0] is not value:
            raise Other("its weights do not go into one product")
        return product

    def _cached(self, value: ir.Value | None) -> _Cached:
        grouped = self._group(value)
        node = maker(grouped)
        append = node if kind(node) == "Concat" else None
        new = grouped if append is None else self._appended(append)
        before = maker(new)
        if new is None or before is None:
            raise Other("its keys or values are an input")
        if permutation(before) in (HEADS_FIRST, [0, 2, 3, 1]):
            source = before.inputs[0]
            assert source is not None
            heads, size = self._heads(source)
            return _Cached(source, heads, size, append)
        raise Other("its keys or values are not split into heads and transposed")

    def _appended(self, append: ir.Node) -> ir.Value | None:
        if len(append.inputs) != 2 or append.attributes.get_int("axis") not in (-2, 2):
            raise Other("its cache is not appended to along the positions")
        return append.inputs[1]

    def _group(self, value: ir.Value | None) -> ir.Value | None:
        """What is repeated for the queries of a group: each of the heads n times, side by side."""
        node = inner(value, "Reshape")
        expand = inner(node.inputs[0], "Expand") if node is not None else None
        apart = inner(expand.inputs[0], "Unsqueeze") if expand is not None else None
        if apart is None:
            return value
        if numbers(apart.inputs[1], self.ir_version) != [2]:
            raise Other("its keys or values are repeated otherwise")
        return apart.inputs[0]


def _check_order(steps: _Steps) -> None:
    """The operator makes mask and cache meet: neither may need what the other gives."""
    appends = {node for node in (steps.key.append, steps.value.append) if node is not None}
    inputs = (*steps.masks, steps.query, steps.key.new, steps.value.new, steps.key.past, steps.value.past)
    pending = [value for value in inputs if value is not None]
    seen = set(pending)
    while pending and appends:
        node = maker(pending.pop())
        if node in appends:
            raise Other("its mask is computed from its cache")
        for value in () if node is None else node.inputs:
            if value is not None and value not in seen:
                seen.add(value)
                pending.append(value)


def _mask(
    build: Builder, masks: tuple[ir.Value, ...], sums: dict[tuple[ir.Value, ...], ir.Value]
) -> ir.Value | None:
    """One mask; what is added in several steps is added up once for all layers."""
    if len(masks) < 2:
        return masks[0] if masks else None
    if masks not in sums:
        first = _mask(build, masks[:-1], sums)
        sums[masks] = build.add("Add", [first, masks[-1]], like=first).outputs[0]
    return sums[masks]


def _replace(model: ir.Model, steps: _Steps, sums: dict[tuple[ir.Value, ...], ir.Value]) -> None:
    last = steps.last
    build = Builder(model, last)

    def flat(value: ir.Value) -> ir.Value:
        return build.add("Reshape", [value, build.ints(0, 0, -1)], like=value).outputs[0]

    inputs = [flat(steps.query), flat(steps.key.new), flat(steps.value.new), _mask(build, steps.masks, sums)]
    appends = [cached.append for cached in (steps.key, steps.value) if cached.append is not None]
    inputs += [append.inputs[0] for append in appends]
    while inputs[-1] is None:
        inputs.pop()
    attributes = {"q_num_heads": steps.heads, "kv_num_heads": steps.key.heads, "scale": steps.scale}
    node = build.add(NAME, inputs, attributes, like=steps.query, outputs=1 + len(appends))
    shape = build.ints(0, 0, steps.heads, steps.value.size)
    split = build.add("Reshape", [node.outputs[0], shape], like=steps.query)
    old = last.outputs[0]
    take_over(old, split.outputs[0])
    drop_steps([old])
    for append, present in zip(appends, node.outputs[1:], strict=True):
        before = append.outputs[0]
        take_over(before, present)
        drop_steps([before])
