"""RMS norms in single steps, as torch's exporters write them, become one operator; others are left as they are."""

from __future__ import annotations

import numpy as np
import pytest

K = 24
HEAD = "(T[b,s,24] x) => (T[b,s,24] y) "
DYNAMO = (
    "{ two = Constant<value_float=2.0>() p = Pow(x, two) axes = Constant<value_ints=[-1]>() m = ReduceMean(p, axes) "
    "e = Constant<value_float=0.00001>() a = Add(m, e) r = Sqrt(a) i = Reciprocal(r) n = Mul(x, i) y = Mul(w, n) }"
)
SCRIPT = (
    "{ c = Cast<to=1>(x) two = Constant<value_float=2.0>() p = Pow(c, two) m = ReduceMean<axes=[-1]>(p) "
    "e = Constant<value_float=0.00001>() a = Add(m, e) r = Sqrt(a) one = Constant<value_float=1.0>() i = Div(one, r) "
    "n = Mul(c, i) k = Cast<to=1>(n) y = Mul(w, k) }"
)
FORMS = {
    "dynamo": (DYNAMO, 20),
    "TorchScript, casts that change nothing": (SCRIPT, 17),
    "squared by itself": (
        DYNAMO.replace("two = Constant<value_float=2.0>() p = Pow(x, two)", "p = Mul(x, x)"),
        20,
    ),
    "divided": (DYNAMO.replace("i = Reciprocal(r) n = Mul(x, i)", "n = Div(x, r)"), 20),
    "axis by number": (DYNAMO.replace("ints=[-1]", "ints=[2]"), 20),
    "other order of operands": (
        DYNAMO.replace("Add(m, e)", "Add(e, m)").replace("Mul(w, n)", "Mul(n, w)"),
        20,
    ),
}
WEIGHT = np.random.default_rng(1).standard_normal(K).astype(np.float32)


def x(dtype=np.float32):
    values = np.random.default_rng(0).standard_normal((2, 5, K)) * 3
    values[0, 0] = 0  # where the result is what epsilon makes of it
    return values.astype(dtype)


def exact(values):
    wide = values.astype(np.float64)
    return wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * WEIGHT


@pytest.mark.parametrize(("body", "opset"), FORMS.values(), ids=FORMS)
def test_forms(fusing, tools, body, opset):
    model = tools.make_model(HEAD + body, {"w": WEIGHT}, opset=opset)
    operators = fusing(model, {"x": x()})
    assert set(operators) - {"Cast"} == {"RMSNormalization"}
    assert fusing.report == {"RMSNormalization": {"fused": 1}}
    # A sum of K squares (its error counts half, under the root), a root, a quotient, two products.
    bound = (K / 2 + 5) * 2.0**-24 * np.abs(exact(x())) + 1e-30
    assert (np.abs(fusing.after[0] - exact(x())) <= bound).all()
    fusing.assert_near(2 * bound)


def test_float16_is_computed_in_float(fusing, tools):
    body = SCRIPT.replace("k = Cast<to=1>(n)", "k = Cast<to=10>(n)")
    model = tools.make_model(HEAD + body, {"w": WEIGHT}, opset=17, dtype="float16")
    operators = fusing(model, {"x": x(np.float16)})
    assert operators == ["RMSNormalization"]
    # Rounded once, or before the weight too; and the weight's own rounding.
    want = exact(x(np.float16).astype(np.float32))
    assert (np.abs(fusing.after[0] - want) <= 2.1 * 2.0**-11 * np.abs(want) + 2.0**-24).all()


LEFT = {
    "its mean is not over the last dimension": DYNAMO.replace("ints=[-1]", "ints=[1]"),
    "it takes no root of a mean and a constant": DYNAMO.replace("Add(m, e)", "Add(m, m)"),
    "something else is divided by its root": DYNAMO.replace("n = Mul(x, i)", "z = Neg(x) n = Mul(z, i)"),
    "its result is not multiplied by a weight of one dimension": DYNAMO.replace("Mul(w, n)", "Mul(x, n)"),
    "its root is not divided by": DYNAMO.replace("i = Reciprocal(r)", "i = Neg(r)"),
}


@pytest.mark.parametrize(("reason", "body"), LEFT.items(), ids=LEFT)
def test_what_is_something_else_is_left(fusing, tools, reason, body):
    model = tools.make_model(HEAD + body, {"w": WEIGHT}, opset=20)
    before = sorted(node.op_type for node in model.graph.node)
    assert fusing(model) == before
    assert fusing.report == {"RMSNormalization": {"fused": 0, reason: 1}}


def test_a_step_that_something_else_reads_stays(fusing, tools):
    text = HEAD.replace("y)", "y, T[b,s,24] n)") + DYNAMO
    model = tools.make_model(text, {"w": WEIGHT}, opset=20)
    assert "RMSNormalization" not in fusing(model)
