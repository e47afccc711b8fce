"""LSTM and GRU as products: that of the whole input at once, and in a Scan over time that of the state.

onnxruntime's own operators multiply in float and from the start again for each position: a Scan of products in MXFP4
is faster from some hundred units on, and no slower below (measured on Zen 4, of 1 to 100 positions).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from mxort.converters.products.base import Body, Builder, Context, Left

_FORWARD, _BACKWARD = 0, 1

_DIRECTIONS: dict[str, tuple[int, ...]] = {
    "forward": (_FORWARD,),
    "reverse": (_BACKWARD,),
    "bidirectional": (_FORWARD, _BACKWARD),
}

_SUFFIXES = ("/forward", "/backward")


@dataclass(frozen=True)
class _Kind:
    """``states`` besides the sequence; ``gates`` of a unit; its activations; ``cell`` makes a step of the body."""

    states: int
    gates: int
    activations: tuple[str, ...]
    cell: Callable[[Body, _Cell], Sequence[ir.Value]]


@dataclass(frozen=True)
class _Cell:
    """What a step has: the gates' inputs [B, gates * H], the states, and, outside, R^T [H, gates * H] and its bias."""

    gates: ir.Value
    states: Sequence[ir.Value]
    recurrent: ir.Value
    bias: ir.Value | None
    size: int
    dtype: ir.DataType
    linear_before_reset: bool


def _lstm(body: Body, cell: _Cell) -> Sequence[ir.Value]:
    """Gates in the order input, output, forget, cell."""
    h, c = cell.states
    total = body.op("Add", [cell.gates, body.product(h, cell.recurrent)])
    i, o, f, new = body.split(total, [cell.size] * 4, 1)
    i, o, f = (body.op("Sigmoid", [gate]) for gate in (i, o, f))
    kept = body.op("Mul", [f, c])
    c = body.op("Add", [kept, body.op("Mul", [i, body.op("Tanh", [new])])])
    return body.op("Mul", [o, body.op("Tanh", [c])]), c


def _gru(body: Body, cell: _Cell) -> Sequence[ir.Value]:
    """Gates in the order update, reset, hidden."""
    (h,), size = cell.states, cell.size
    z_in, r_in, n_in = body.split(cell.gates, [size] * 3, 1)
    if cell.linear_before_reset:
        product = body.product(h, cell.recurrent)
        if cell.bias is not None:
            product = body.op("Add", [product, cell.bias])
        z_state, r_state, n_state = body.split(product, [size] * 3, 1)
    else:
        both, alone = (
            body.outside.op("Slice", [cell.recurrent, *map(body.outside.integers, ends)])
            for ends in (([0], [2 * size], [1]), ([2 * size], [3 * size], [1]))
        )
        z_state, r_state = body.split(body.product(h, both), [size] * 2, 1)
    z = body.op("Sigmoid", [body.op("Add", [z_in, z_state])])
    r = body.op("Sigmoid", [body.op("Add", [r_in, r_state])])
    if cell.linear_before_reset:
        state = body.op("Mul", [r, n_state])
    else:
        state = body.product(body.op("Mul", [r, h]), alone, "/hidden")
    n = body.op("Tanh", [body.op("Add", [n_in, state])])
    return (body.op("Add", [n, body.op("Mul", [z, body.op("Sub", [h, n])])]),)


_KINDS = {
    "LSTM": _Kind(2, 4, ("Sigmoid", "Tanh", "Tanh"), _lstm),
    "GRU": _Kind(1, 3, ("Sigmoid", "Tanh"), _gru),
}


def express(context: Context, node: ir.Node) -> None:
    """Raises Left."""
    kind = _KINDS[node.op_type]
    x, w, r, b, lengths, *states = (*node.inputs, *[None] * 8)[:8]
    weight, recurrent = context.constant(w), context.constant(r, "recurrent weight")
    peepholes = states[2] if node.op_type == "LSTM" else None
    directions = check(node, node.op_type, weight.shape, recurrent.shape, (lengths, peepholes))
    if b is not None and context.constant(b, "bias").shape != (len(directions), 2 * weight.shape[1]):
        raise Left(f"its bias does not fit a weight of shape {list(weight.shape)}")
    context.check(node, weight, weight.shape[2], weight.shape[1])
    build = Builder(context, node)
    size = recurrent.shape[2]
    runs = []
    for i, direction in enumerate(directions):
        suffix = _SUFFIXES[direction] if len(directions) > 1 else ""
        gates, bias = _gates(build, kind, node, (x, w, b), i, suffix, weight.shape)
        matrix = build.op("Transpose", [build.nth(r, i, recurrent.shape[1:])], perm=[1, 0])
        starts = [_start(build, x, state, i, size, weight.dtype) for state in states[: kind.states]]
        body = Body(build, f"{suffix}/recurrent")
        linear = bool(node.attributes.get_int("linear_before_reset", 0))
        names = [body.input(f"state{j}", weight.dtype, 2) for j in range(kind.states)]
        cell = _Cell(body.input("gates", weight.dtype, 2), names, matrix, bias, size, weight.dtype, linear)
        after = kind.cell(body, cell)
        outputs = [*after, body.op("Identity", [after[0]])]
        runs.append(body.scan([*starts, gates], outputs, direction))
    _put(build, node, kind, runs, size)


def check(
    node: ir.Node,
    op_type: str,
    w: tuple[int, ...],
    r: tuple[int, ...],
    refused: tuple[ir.Value | None, ir.Value | None],
) -> tuple[int, ...]:
    """The directions. Raises Left for what no rule here computes; ``refused``: lengths of sequences, and peepholes."""
    if any(value is not None for value in refused):
        raise Left("sequences of several lengths and peepholes are not converted")
    kind = _KINDS[op_type]
    direction = node.attributes.get_string("direction", "forward")
    directions = _DIRECTIONS.get(direction or "forward", ())
    count = len(directions)
    if len(w) != 3 or len(r) != 3 or w[:2] != r[:2] or w[0] != count or w[1] != kind.gates * r[2]:
        raise Left(f"weights of shapes {list(w)} and {list(r)} do not fit each other")
    given = node.attributes.get("activations")
    names = [] if given is None else [name.lower() for name in given.as_strings()]
    if names and names != [name.lower() for name in kind.activations] * count:
        raise Left(f"a {op_type} with the activations {', '.join(names)} is not converted")
    for name in ("clip", "input_forget", "layout"):
        if name in node.attributes and node.attributes[name].value:
            raise Left(f"a {op_type} with {name} is not converted")
    return directions


def _gates(
    build: Builder,
    kind: _Kind,
    node: ir.Node,
    values: tuple[ir.Value | None, ir.Value | None, ir.Value | None],
    i: int,
    suffix: str,
    shape: Sequence[int],
) -> tuple[ir.Value, ir.Value | None]:
    """(the product of the whole input with its bias [T, B, gates * H], the bias that belongs to the state's)."""
    x, w, b = values
    matrix = build.op("Transpose", [build.nth(w, i, shape[1:])], perm=[1, 0])
    gates = build.product(x, matrix, suffix)
    if b is None:
        return gates, None
    half = shape[1]
    row = build.nth(b, i, [2 * half])
    first, second = (
        build.op("Slice", [row, *map(build.integers, ([at], [at + half], [0]))]) for at in (0, half)
    )
    if kind.states == 1 and node.attributes.get_int("linear_before_reset", 0) != 0:
        return build.op("Add", [gates, first]), second
    return build.op("Add", [gates, build.op("Add", [first, second])]), None


def _start(
    build: Builder, x: ir.Value | None, state: ir.Value | None, i: int, size: int, dtype: ir.DataType
) -> ir.Value:
    """The state before the first position, [B, H]: zeros where none is given."""
    if state is not None:
        return build.nth(state, i, [-1, size])
    batch = build.op("Slice", [build.op("Shape", [x]), build.integers([1]), build.integers([2])])
    shape = build.op("Concat", [batch, build.integers([size])], axis=0)
    return build.op("ConstantOfShape", [shape], value=build.zero(dtype))


def _put(build: Builder, node: ir.Node, kind: _Kind, runs: Sequence[Sequence[ir.Value]], size: int) -> None:
    """Y [T, D, B, H], then the last states [D, B, H], those of them that the node has."""
    results, outputs = [], []
    for k, output in enumerate(node.outputs[: 1 + kind.states]):
        if not output.name or not (output.uses() or output.is_graph_output()):
            continue
        at = kind.states if k == 0 else k - 1
        shape = build.integers([0, 1, -1, size] if k == 0 else [1, -1, size])
        parts = [build.op("Reshape", [run[at], shape]) for run in runs]
        results.append(build.op("Concat", parts, axis=1 if k == 0 else 0) if len(parts) > 1 else parts[0])
        outputs.append(output)
    build.replace(results, outputs)
