"""What follows a product becomes part of it, however an exporter writes it; other steps are left as they are."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import mxort
from mxort.conversion.inspection import inspect
from mxort.converters import functions
from op_model import session

N, K = 48, 64
W = {name: np.random.default_rng(i).standard_normal((K, N), dtype=np.float32) for i, name in enumerate("gu")}
NUMBERS = {
    "one": 1.0, "half": 0.5, "root2": 2**0.5, "cube": 0.044715, "slope": (2 / np.pi) ** 0.5, "three": 3.0,
    "inverse": 2**-0.5, "quick": 1.702,
}  # fmt: skip
PRODUCT = "g = MatMul(x, wg) "

ACTIVATIONS = {
    "relu": (functions.RELU, "y = Relu(g)"),
    "silu": (functions.SILU, "s = Sigmoid(g) y = Mul(g, s)"),
    "silu, the factors swapped": (functions.SILU, "s = Sigmoid(g) y = Mul(s, g)"),
    "gelu, TorchScript": (
        functions.GELU,
        "a = Div(g, root2) b = Erf(a) c = Add(b, one) d = Mul(g, c) y = Mul(d, half)",
    ),
    "gelu, dynamo": (
        functions.GELU,
        "a = Mul(g, inverse) b = Erf(a) c = Add(one, b) d = Mul(half, c) y = Mul(g, d)",
    ),
    "gelu, half first": (
        functions.GELU,
        "h = Mul(half, g) a = Div(g, root2) b = Erf(a) c = Add(b, one) y = Mul(h, c)",
    ),
    "gelu by tanh, with a power": (
        functions.GELU_TANH,
        "p = Pow(g, three) q = Mul(p, cube) r = Add(g, q) s = Mul(r, slope) t = Tanh(s) u = Add(t, one) "
        "h = Mul(g, half) y = Mul(h, u)",
    ),
    "gelu by tanh, with products": (
        functions.GELU_TANH,
        "p = Mul(g, g) p3 = Mul(p, g) q = Mul(cube, p3) r = Add(g, q) s = Mul(slope, r) t = Tanh(s) u = Add(one, t) "
        "h = Mul(half, g) y = Mul(h, u)",
    ),
}
LATER = {
    "Gelu of opset 20": (20, functions.GELU, "y = Gelu(g)"),
    "its approximation": (20, functions.GELU_TANH, 'y = Gelu<approximate="tanh">(g)'),
}

OTHERS = {
    "QuickGelu of CLIP": "a = Mul(g, quick) s = Sigmoid(a) y = Mul(g, s)",
    "a sigmoid": "y = Sigmoid(g)",
    "tanh": "y = Tanh(g)",
    "something that is no constant": "s = Sigmoid(x2) y = Mul(g, s)",
}


def build(tools, body, *, opset=17, dtype="float"):
    text = f"({dtype}[b,64] x, {dtype}[b,48] x2) => ({dtype}[b,48] y) {{ {body} }}"
    numbers = {name: np.float32(number) for name, number in NUMBERS.items() if name in body}
    weights = {f"w{name}": w for name, w in W.items() if f"w{name}" in body}
    return tools.make_model(text, weights | numbers, opset=opset)


def converted(proto, **options):
    report = mxort.convert(proto, accuracy_level=1, **options)
    return report, [node.op_type for node in report.model.graph.node if node.op_type != "Constant"]


def assert_same(proto, made):
    """With the library, without it, and not fused: the same but for rounding."""
    names = {i.name for i in made.graph.input}
    rng = np.random.default_rng(5)
    f = {
        "x": rng.standard_normal((7, K), dtype=np.float32),
        "x2": rng.standard_normal((7, N), dtype=np.float32),
    }
    f = {name: value for name, value in f.items() if name in names}
    plain = mxort.convert(proto, accuracy_level=1, fuse=False).model
    (want,) = session(plain, library=False).run(None, f)
    for library in (True, False):
        (got,) = session(made, library=library).run(None, f)
        np.testing.assert_allclose(got, want, rtol=0, atol=3e-6 * np.abs(want).max())


@pytest.mark.parametrize(("number", "steps"), ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_activations(tools, number, steps):
    proto = build(tools, PRODUCT + steps)
    report, ops = converted(proto)
    assert ops == ["FusedMatMulMXFP4"] and report.fused == {"FusedMatMul": {"fused": 1}}
    (node,) = (n for n in report.model.graph.node if n.domain == "mxort")
    assert {a.name: a.i for a in node.attribute}["activation"] == number
    assert_same(proto, report.model)


@pytest.mark.parametrize(("opset", "number", "steps"), LATER.values(), ids=LATER)
def test_activations_that_are_operators(tools, opset, number, steps):
    proto = build(tools, PRODUCT + steps, opset=opset)
    report, ops = converted(proto)
    assert ops == ["FusedMatMulMXFP4"]
    assert_same(proto, report.model)


@pytest.mark.parametrize(("number", "steps"), ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("order", ["a, u", "u, a"])
def test_gates(tools, number, steps, order):
    body = PRODUCT + "u = MatMul(x, wu) " + steps.replace(" u = Add", " v = Add").replace("h, u", "h, v")
    body = body.replace("y = ", "act = ") + f" y = Mul({order.replace('a', 'act')})"
    proto = build(tools, body)
    report, ops = converted(proto)
    assert ops == ["GatedMatMulMXFP4"] and report.fused == {"GatedMatMul": {"fused": 1}}
    assert len(report.converted) == 2
    assert_same(proto, report.model)


@pytest.mark.parametrize("steps", OTHERS.values(), ids=OTHERS)
def test_other_steps_are_left_alone(tools, steps):
    proto = build(tools, PRODUCT + steps)
    report, ops = converted(proto)
    assert "MatMulMXFP4" in ops and not report.fused
    assert_same(proto, report.model)


GATE = "s = Sigmoid(g) a = Mul(g, s) "
APART = {
    "of another input": ("z = Relu(x) u = MatMul(z, wu) " + GATE + "y = Mul(a, u)", 1),
    "read twice": ("u = MatMul(x, wu) " + GATE + "m = Mul(a, u) y = Add(m, u)", 1),
    "the activation read twice": ("u = MatMul(x, wu) " + GATE + "m = Mul(a, u) y = Add(m, a)", 1),
    "its square": (GATE + "y = Mul(a, a)", 1),
    "the product read again behind it": ("u = MatMul(x, wu) " + GATE + "m = Mul(a, u) y = Add(m, g)", 0),
}


@pytest.mark.parametrize(("steps", "fused"), APART.values(), ids=APART)
def test_products_that_do_not_become_one(tools, steps, fused):
    proto = build(tools, PRODUCT + steps)
    report, ops = converted(proto)
    assert not any(op.startswith("Gated") for op in ops)
    assert report.fused == ({"FusedMatMul": {"fused": 1}} if fused else {})
    assert_same(proto, report.model)


def test_weights_of_different_formats_are_not_one_operator(tools):
    proto = build(tools, PRODUCT + "u = MatMul(x, wu) " + GATE + "y = Mul(a, u)")
    for node, name in zip(
        (n for n in proto.graph.node if n.op_type == "MatMul"), ["gate", "up"], strict=True
    ):
        node.name = name
    _, ops = converted(proto, layer_formats=["up=mxfp8_e4m3"])
    assert sorted(op for op in ops if "MatMul" in op) == ["FusedMatMulMXFP4", "MatMulMXFP8"]


def test_a_bias_belongs_to_the_product(tools):
    bias = np.random.default_rng(9).standard_normal(N, dtype=np.float32)
    text = "(float[b,64] x) => (float[b,48] y) { p = MatMul(x, wg) g = Add(p, bias) y = Relu(g) }"
    proto = tools.make_model(text, {"wg": W["g"], "bias": bias})
    report, ops = converted(proto)
    assert ops == ["FusedMatMulMXFP4"]
    assert_same(proto, report.model)


def test_inspect_has_a_row_for_each_weight(tools, tmp_path):
    proto = build(tools, PRODUCT + "u = MatMul(x, wu) " + GATE + "y = Mul(a, u)")
    for node, name in zip(
        (n for n in proto.graph.node if n.op_type == "MatMul"), ["gate", "up"], strict=True
    ):
        node.name = name
    report = mxort.convert(proto)
    onnx.save(report.model, tmp_path / "m.onnx")
    rows = [row for row in inspect(tmp_path / "m.onnx").sites if row.weight_format]
    assert [(row.node, row.weight, row.K, row.N) for row in rows] == [
        ("gate", "wg_mxfp4", K, N),
        ("up", "wu_mxfp4", K, N),
    ]
    assert [row.converted_bytes for row in rows] == [row.converted_bytes for row in report.converted]


BODY = "({dtype}[b,64] x, {dtype}[b,48] x2, bool c) => ({dtype}[b,48] y) "
BRANCHES = {
    "the activation": "g = MatMul(x, wg) y = If(c) <then_branch = a () => (float[b,48] t) { t = Relu(g) }, "
    "else_branch = b () => (float[b,48] e) { e = Identity(x2) }>",
    "the other factor": "g = MatMul(x, wg) r = Relu(g) y = If(c) <then_branch = a () => (float[b,48] t) "
    "{ u = MatMul(x, wu) t = Mul(r, u) }, else_branch = b () => (float[b,48] e) { e = Identity(x2) }>",
}


@pytest.mark.parametrize("body", BRANCHES.values(), ids=BRANCHES)
def test_what_stands_in_a_branch_is_not_taken_out_of_it(tools, body):
    weights = {f"w{name}": w for name, w in W.items() if f"w{name}" in body}
    proto = tools.make_model(BODY.replace("{dtype}", "float") + "{ " + body + " }", weights)
    model = mxort.convert(proto, accuracy_level=1).model
    plain = mxort.convert(proto, accuracy_level=1, fuse=False).model
    rng = np.random.default_rng(5)
    f = {
        "x": rng.standard_normal((7, K), dtype=np.float32),
        "x2": rng.standard_normal((7, N), dtype=np.float32),
    }
    for c in (True, False):
        feeds = f | {"c": np.array(c)}
        (got,), (want,) = session(model).run(None, feeds), session(plain, library=False).run(None, feeds)
        np.testing.assert_allclose(got, want, rtol=0, atol=3e-6 * np.abs(want).max())
