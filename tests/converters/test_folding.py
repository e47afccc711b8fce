"""Folding a division of a site's operand into the graph: where it can be, and without effect on the float model."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from mxort.converters import folding, sites

K, N = 64, 48
LAYER = "(T[b,s,64] x) => (T[b,s,n] y) "
FOLDABLE = {
    "layer norm": "{ a = LayerNormalization<axis=-1>(x, g, c) y = MatMul(a, w) }",
    "layer norm without a bias": "{ a = LayerNormalization<axis=-1>(x, g) y = MatMul(a, w) }",
    "root mean square norm, as nodes": "{ q = Mul(x, x) m = ReduceMean<axes=[-1]>(q) r = Sqrt(m) d = Div(x, r) "
    "a = Mul(g, d) y = MatMul(a, w) }",
    "simplified layer norm": "{ a = SimplifiedLayerNormalization<axis=-1>(x, g) y = MatMul(a, w) }",
    "with a residual": "{ a, , , s = com.microsoft.SkipSimplifiedLayerNormalization(x, x, g) p = MatMul(a, w) "
    "q = MatMul(s, w) y = Add(p, q) }",
    "scale and shift as nodes": "{ m = Mul(x, g) a = Add(m, c) y = MatMul(a, w) }",
    "through an activation": "{ m = Mul(x, g) r = Relu(m) a = Identity(r) y = MatMul(a, w) }",
    "one side of a product": "{ e = Exp(x) m = Mul(x, g) a = Mul(e, m) y = MatMul(a, w) }",
    "two layers": "{ a = Mul(x, g) p = MatMul(a, w) q = MatMul(a, w) y = Add(p, q) }",
}
NOT = {
    "has other uses": "{ a = LayerNormalization<axis=-1>(x, g) p = MatMul(a, w) s = ReduceMax<axes=[-1]>(a) "
    "y = Add(p, s) }",
    "is an input": "{ y = MatMul(x, w) }",
    "is computed by Softmax": "{ a = Softmax(x) y = MatMul(a, w) }",
    "is computed by Add": "{ n = Neg(x) a = Add(n, x) y = MatMul(a, w) }",
    "depends on a value with other uses": "{ m = Mul(x, g) r = Relu(m) n = Mul(r, m) y = MatMul(n, w) }",
    "is scaled by what LayerNormalization is given at run time": "{ f = ReduceMax<axes=[0,1], keepdims=0>(x) "
    "a = LayerNormalization<axis=-1>(x, f) y = MatMul(a, w) }",
}
"""A scale that is one number for all channels is no place: ONNX Runtime recognises Gelu by its 0.5."""


@pytest.fixture
def weights(rng):
    values = {"g": 1 + rng.random(K), "c": rng.standard_normal(K), "w": rng.standard_normal((K, N)) / 8}
    return {name: value.astype(np.float32) for name, value in values.items()}


def build(tools, body, weights, dtype="float"):
    used = {name: value for name, value in weights.items() if f"{name})" in body or f"{name}," in body}
    return tools.make_model(LAYER + body, used, dtype=dtype)


def found_in(proto):
    """(model, the sites by node)"""
    model = ir.from_proto(proto)
    return model, {site.node: site for site in sites.find(model, sites.Selection()) if not site.skip}


def run(proto, x):
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0].astype(np.float64)


@pytest.mark.parametrize(("dtype", "epsilon"), [("float", 2.0**-24), ("float16", 2.0**-11)])
@pytest.mark.parametrize("body", FOLDABLE.values(), ids=FOLDABLE)
def test_nothing_changes(tools, rng, weights, body, dtype, epsilon):
    """The norm divided by s, the weight multiplied by it: what roundings differ by, in both models."""
    proto = build(tools, body, weights, dtype)
    x = (
        rng.standard_normal((2, 3, K))
        .astype(np.float32)
        .astype(np.float16 if dtype == "float16" else np.float32)
    )
    before = run(proto, x)
    model, found = found_in(proto)
    group = [site for site in found.values() if site.node.inputs[0].name in ("a", "n")]
    divisor = np.exp2(rng.uniform(-2, 2, K)).astype(np.float32)
    folding.divide(model, folding.fold_of(model, group, {}), divisor)
    for site in group:
        tensor = site.weight.numpy().T * divisor[:, None]
        name = f"{site.name}_scaled"
        value = ir.Value(
            name=name, const_value=ir.tensor(tensor.astype(site.weight.dtype.numpy()), name=name)
        )
        model.graph.register_initializer(value)
        site.node.replace_input_with(1, value)
    folded = ir.to_proto(model)
    assert {t.name for t in folded.graph.initializer}.isdisjoint({"g", "c"}), (
        "the old constants are still there"
    )
    after = run(folded, x)
    # Of the products of either model every factor is rounded a handful of times, and 64 of them are added.
    scale = np.abs(weights["w"]).sum(axis=0).max() * 8 * np.abs(x).max()
    assert np.abs(after - before).max() <= (K + 16) * epsilon * scale
    assert np.abs(after).max() > 0


@pytest.mark.parametrize("reason", NOT)
def test_not_foldable(tools, weights, reason):
    model, found = found_in(build(tools, NOT[reason], weights))
    with pytest.raises(folding.NotFoldableError, match=f"^{reason}$"):
        folding.fold_of(model, list(found.values()), {})


def test_a_graph_output_is_another_use(tools, weights):
    text = "(T[b,64] x) => (T[b,n] y, T[b,64] a) { a = Mul(x, g) y = MatMul(a, w) }"
    model, found = found_in(tools.make_model(text, {n: weights[n] for n in "gw"}))
    with pytest.raises(folding.NotFoldableError, match="has other uses"):
        folding.fold_of(model, list(found.values()), {})


def test_the_layer_before(tools, rng):
    """Only where it is converted, and whichever side of the gate it is on; its bias comes along."""
    text = """(T[b,64] x) => (T[b,64] y) {
        gate = MatMul(x, wg) s = Sigmoid(gate) up = MatMul(x, wu) shifted = Add(up, c) m = Mul(s, shifted)
        y = MatMul(m, wd) }"""
    arrays = {name: rng.standard_normal((K, K), dtype=np.float32) for name in ("wg", "wu", "wd")}
    arrays["c"] = rng.standard_normal(K, dtype=np.float32)
    model, found = found_in(tools.make_model(text, arrays))
    by_weight = {site.weight.name: site for site in found.values()}
    group, before = [by_weight["wd"]], by_weight["wu"]
    fold = folding.fold_of(model, group, {before.node: before})
    assert fold.site is before and fold.constants == ()
    with pytest.raises(folding.NotFoldableError):
        folding.fold_of(model, group, {by_weight["wg"].node: by_weight["wg"]})
    # Not converted, its Add's constant alone cannot be divided.
    with pytest.raises(folding.NotFoldableError):
        folding.fold_of(model, group, {})


def test_a_constant_that_others_use_keeps_its_value(tools, rng, weights):
    text = "(T[b,64] x) => (T[b,n] y, T[b,64] z) { a = Mul(x, g) y = MatMul(a, w) z = Add(x, g) }"
    proto = tools.make_model(text, {n: weights[n] for n in "gw"})
    model, found = found_in(proto)
    folding.divide(model, folding.fold_of(model, list(found.values()), {}), np.full(K, 2, np.float32))
    kept = {t.name: onnx.numpy_helper.to_array(t) for t in ir.to_proto(model).graph.initializer}
    np.testing.assert_array_equal(kept["g"], weights["g"])
    np.testing.assert_array_equal(kept["g_smoothed"], weights["g"] / 2)
