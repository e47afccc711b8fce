"""Constants behind shape and type changes are read as the graph would compute them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from mxort.converters.constants import NotConstantError, padded_rows
from mxort.converters.resolving import resolve


def constant_of(tools, body, weights, name="out", ir_version=8):
    """The constant behind the output of ``body``, and what onnx.reference makes of it."""
    model = tools.make_model(f"() => (T[] {name}) {{ {body} }}", weights)
    (output,) = ir.from_proto(model).graph.outputs
    return resolve(output, ir_version), tools.run_reference(model, {})[0]


W = np.random.default_rng(11).standard_normal((4, 6, 10)).astype(np.float32) * 1000
CHAINS = {
    "initializer": "out = Identity(w)",
    "all axes": "out = Transpose(w)",
    "permutation": "out = Transpose<perm=[1, 2, 0]>(w)",
    "other permutation": "out = Transpose<perm=[2, 0, 1]>(w)",
    "no permutation": "out = Transpose<perm=[0, 1, 2]>(w)",
    "reshape": "s = Constant<value_ints=[24, 10]>() out = Reshape(w, s)",
    "reshape, inferred": "s = Constant<value_ints=[0, -1]>() out = Reshape(w, s)",
    "transpose, reshape, transpose": "t = Transpose<perm=[0, 2, 1]>(w) s = Constant<value_ints=[40, 6]>() "
    "r = Reshape(t, s) out = Transpose(r)",
    "half": "out = Cast<to=10>(w)",
    "through half": "h = Cast<to=10>(w) out = Cast<to=1>(h)",
    "through bfloat16": "h = Cast<to=16>(w) out = Cast<to=1>(h)",
    "squeeze": "f = Constant<value_ints=[4, 1, 6, 1, 10]>() r = Reshape(w, f) a = Constant<value_ints=[1, -2]>() "
    "out = Squeeze(r, a)",
    "squeeze, all": "f = Constant<value_ints=[1, 24, 10]>() r = Reshape(w, f) out = Squeeze(r)",
    "unsqueeze": "a = Constant<value_ints=[0, -2]>() out = Unsqueeze(w, a)",
    "flatten": "out = Flatten<axis=2>(w)",
    "flatten from the end": "out = Flatten<axis=-1>(w)",
    "slice": "b = Constant<value_ints=[1, 0]>() e = Constant<value_ints=[3, 100]>() a = Constant<value_ints=[1, 2]>() "
    "s = Constant<value_ints=[1, 2]>() out = Slice(w, b, e, a, s)",
    "slice backwards": "b = Constant<value_ints=[-1]>() e = Constant<value_ints=[-100]>() "
    "a = Constant<value_ints=[2]>() s = Constant<value_ints=[-3]>() t = Transpose(w) out = Slice(t, b, e, a, s)",
    "split, second part": "s = Constant<value_ints=[1, 2, 3]>() p, out, q = Split<axis=1>(w, s)",
    "split in equal parts": "p, out = Split<axis=-1>(w)",
    "gather one": "i = Constant<value_int=-2>() out = Gather<axis=1>(w, i)",
    "gather several": "i = Constant<value_ints=[3, 0, 0]>() out = Gather(w, i)",
    "expand": "e = Constant<value_ints=[1, 4, 1, 10]>() out = Expand(w, e)",
    "concat": "t = Transpose<perm=[0, 1, 2]>(w) out = Concat<axis=1>(w, t, w)",
    "multiplied by a column": "c = Constant<value_floats=[0.5, 2.0, 3.0, 4.0, 5.0, 6.0]>() "
    "a = Constant<value_ints=[1]>() u = Unsqueeze(c, a) out = Mul(w, u)",
    "added to itself": "out = Add(w, w)",
    "a difference, in half": "h = Cast<to=10>(w) t = Div(h, h) out = Sub(h, t)",
    "half in between": "t = Transpose(w) h = Cast<to=10>(t) s = Constant<value_ints=[60, 4]>() r = Reshape(h, s) "
    "out = Cast<to=1>(r)",
}


@pytest.mark.parametrize("body", CHAINS.values(), ids=CHAINS)
def test_chains(tools, body):
    constant, expected = constant_of(tools, body, {"w": W})
    assert constant.shape == expected.shape
    assert constant.source.roots[0].root.name == "w"
    np.testing.assert_array_equal(constant.numpy(), expected)
    assert constant.numpy().dtype == expected.dtype == constant.dtype.numpy()


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # in onnx.reference
def test_beyond_half_is_infinite(tools):
    constant, _ = constant_of(tools, "h = Cast<to=10>(w) out = Cast<to=1>(h)", {"w": W * 1000})
    assert np.isinf(constant.numpy()).any()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("out = Constant<value_float=2.5>()", 2.5),
        ("out = Constant<value_floats=[1.5, 2.5]>()", [1.5, 2.5]),
        ("out = Constant<value_int=3>()", 3),
        ("out = Constant<value = float[2,1] {1.0, 2.0}>()", [[1.0], [2.0]]),
    ],
)
def test_constant_nodes(tools, body, expected):
    constant, reference = constant_of(tools, body, {})
    np.testing.assert_array_equal(constant.numpy(), np.asarray(expected))
    np.testing.assert_array_equal(constant.numpy(), reference)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('out = Constant<value_string="text">()', "is a Constant of type string"),
        ("out = Relu(w)", r"is computed from constants by Relu \(fold constants first"),
        ("t = Relu(w) out = Transpose(t)", r"is computed from constants by Relu \(fold constants first"),
        (
            "a = Constant<value_ints=[0]>() u = Unsqueeze(w, a) out = Relu(u)",
            r"by Relu \(fold constants first",
        ),
        ("s = Constant<value_ints=[1, 2]>() out = Squeeze(w, s)", "is squeezed from .* does not fit"),
        ("s = Constant<value_ints=[3, 4]>() out = Split(w, s)", "split into .* does not fit"),
        ("i = Constant<value_int=4>() out = Gather(w, i)", "is gathered at indices beyond 4"),
        ("s = Constant<value_ints=[3]>() out = Add(w, s)", "is computed from FLOAT by Add"),
        ("e = Constant<value_ints=[2, 4, 6, 10]>() out = Expand(w, e)", "is expanded from"),
        ("out = Concat<axis=7>(w, w)", "has 3 axes, not one of number 7"),
        ("out = Cast<to=7>(w)", "is cast from FLOAT to INT64"),
        ("s = Constant<value_ints=[7, -1]>() out = Reshape(w, s)", "is reshaped from .* which does not fit"),
        ("out = Transpose<perm=[0, 0, 1]>(w)", "which is no permutation of 3 axes"),
    ],
)
def test_not_constant(tools, body, reason):
    model = tools.make_model(f"() => (T[] out) {{ {body} }}", {"w": W})
    with pytest.raises(NotConstantError, match=reason):
        resolve(ir.from_proto(model).graph.outputs[0], 8)


def test_identity_sees_through_transpositions_that_undo_each_other(tools):
    body = "t = Transpose<perm=[1, 0]>(w) u = Transpose<perm=[1, 0]>(t) out = Identity(u)"
    model = tools.make_model(f"() => (T[] out) {{ {body} }}", {"w": W[0]})
    graph = ir.from_proto(model).graph
    twice, direct = resolve(graph.outputs[0], 8), resolve(graph.initializers["w"], 8)
    assert twice.identity == direct.identity
    assert direct.transposed().identity != direct.identity
    assert direct.transposed().transposed().identity == direct.identity


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("column_major", [False, True])
@pytest.mark.parametrize("columns", [1, 16, 33, 64])
def test_padded_rows(columns, column_major, dtype):
    matrix = np.random.default_rng(12).standard_normal((20, columns)).astype(dtype)
    stored = np.ascontiguousarray(matrix.T) if column_major else matrix
    value = ir.Value(name="w", const_value=ir.tensor(stored))
    ir.Graph([], [], nodes=[], initializers=[value])
    constant = resolve(value, 8)
    constant = constant.transposed() if column_major else constant
    rows = padded_rows(constant, constant.array(), 3, 17, 64)
    assert rows.dtype == np.float32 and rows.flags.c_contiguous
    np.testing.assert_array_equal(rows[:, :columns], matrix[3:17].astype(np.float32))
    assert not rows[:, columns:].any()
