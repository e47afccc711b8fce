"""Every graph pattern: the converted model computes what the original computes with the rounded weights."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx.helper
import onnx_ir as ir
import pytest
from onnx import numpy_helper

import mxort
from mxort.converters import rewrite
from mxort.converters.functions import ROTATIONS
from mxort.converters.metadata import conversions

X3 = "(T[b,s,k] x) => (T[b,s,n] y) "


def builder(tools, text, **settings):
    return lambda weights, dtype: tools.make_model(text, weights, dtype=dtype, **settings)


def normal(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize(("k", "n"), [(32, 48), (64, 1), (100, 33), (31, 64), (257, 5), (33, 2)])
def test_matmul(check, tools, rng, k, n, dtype):
    build = builder(tools, X3 + "{ y = MatMul(x, w) }")
    check(build, {"w": normal(rng, k, n)}, {"x": normal(rng, 2, 3, k)}, dtype=dtype)


@pytest.mark.parametrize("shape", [(64,), (5, 64), (2, 3, 4, 64), (0, 64)])
def test_rank_of_a(check, tools, rng, shape):
    outer = "".join(f"d{i}," for i in range(len(shape) - 1))
    text = f"(T[{outer}64] x) => (T[{outer}32] y) {{ y = MatMul(x, w) }}"
    check(builder(tools, text), {"w": normal(rng, 64, 32)}, {"x": normal(rng, *shape)})


def test_bfloat16(check, tools, rng):
    """onnxruntime's Python cannot be fed bfloat16, so casts stand around the product."""
    text = "(float[b,k] f) => (float[b,n] y) { x = Cast<to=16>(f) p = MatMul(x, w) y = Cast<to=1>(p) }"

    def build(weights, dtype):
        model = tools.make_model(text, weights, dtype=dtype)
        if dtype == "float":  # the oracle: no bfloat16 anywhere
            model.graph.node[0].attribute[0].i = onnx.TensorProto.FLOAT
        return model

    x = normal(rng, 3, 64).astype("bfloat16").astype(np.float32)
    check(build, {"w": normal(rng, 64, 40)}, {"f": x}, dtype="bfloat16", engines="reference onnxruntime")


@pytest.mark.parametrize("rotation", ROTATIONS[1:])
def test_rotation(check, tools, rng, rotation):
    build = builder(tools, X3 + "{ y = MatMul(x, w) }")
    model = check(build, {"w": normal(rng, 256, 24)}, {"x": normal(rng, 2, 3, 256)}, rotation=rotation)
    (node,) = [n for n in tools.nodes(model) if n.domain == "mxort"]
    assert {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} == {
        "K": 256,
        "N": 24,
        "rotation": rotation,
        "activation_format": b"none",
        "accuracy_level": 4,
    }


def test_rotation_of_a_padded_tail(check, tools, rng):
    """K = 40 is padded to 64; the rotated tail is not zero and must be kept."""
    build = builder(tools, X3 + "{ y = MatMul(x, w) }")
    check(build, {"w": normal(rng, 40, 24)}, {"x": normal(rng, 2, 3, 40)}, rotation=64)


def test_rotation_falls_back_to_what_fits(tools, rng):
    model = tools.make_model(X3 + "{ y = MatMul(x, w) }", {"w": normal(rng, 96, 64)})
    (row,) = mxort.convert(model, rotation=64).converted
    assert row.rotation == 32
    assert row.note == "rotation 32, as K = 96 does not fit 64"


@pytest.mark.parametrize("recipe", ["mi355x", "w4a8", "w4a4"])
def test_attributes_of_presets(tools, rng, recipe):
    model = tools.make_model(X3 + "{ y = MatMul(x, w) }", {"w": normal(rng, 64, 64)})
    converted = mxort.convert(model, recipe=recipe).model
    (node,) = [n for n in tools.nodes(converted) if n.domain == "mxort"]
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert values["activation_format"].decode() == mxort.PRESETS[recipe].activation_format != "none"


@pytest.mark.parametrize(
    "body",
    [
        "{ t = Transpose<perm=[1,0]>(v) y = MatMul(x, t) }",
        "{ t = Transpose(v) i = Identity(t) y = MatMul(x, i) }",
        "{ i = Identity(v) t = Transpose(i) u = Transpose(t) r = Transpose(u) y = MatMul(x, r) }",
        "{ c = Constant<value_ints=[16,2,40]>() r = Reshape(v, c) d = Constant<value_ints=[-1,40]>() "
        "s = Reshape(r, d) t = Transpose(v) y = MatMul(x, t) z = Identity(s) }",
    ],
)
def test_weight_behind_other_nodes(check, tools, rng, body):
    def build(weights, dtype):
        transposed = {"v": np.ascontiguousarray(weights["w"].T)}
        return tools.make_model("(T[b,k] x) => (T[b,n] y) " + body, transposed, dtype=dtype)

    check(build, {"w": normal(rng, 40, 32)}, {"x": normal(rng, 3, 40)})


def test_weight_behind_reshape(check, tools, rng):
    def build(weights, dtype):
        flat = {"v": weights["w"].reshape(-1)}
        return tools.make_model(
            "(T[b,k] x) => (T[b,n] y) { c = Constant<value_ints=[40,-1]>() w = Reshape(v, c) "
            "y = MatMul(x, w) }",
            flat,
            dtype=dtype,
        )

    model = check(build, {"w": normal(rng, 40, 32)}, {"x": normal(rng, 3, 40)})
    assert [n.op_type for n in model.graph.node] == ["MatMulMXFP4"], "dead constants stay"
    assert "v" not in {i.name for i in model.graph.initializer}


BEHIND_STEPS = {
    "squeeze": (lambda w: {"v": w[None]}, "a = Constant<value_ints=[0]>() w = Squeeze(v, a)"),
    "unsqueeze and squeeze": (
        lambda w: {"v": w},
        "a = Constant<value_ints=[1]>() u = Unsqueeze(v, a) w = Squeeze(u, a)",
    ),
    "flatten": (lambda w: {"v": w.reshape(40, 4, 8)}, "w = Flatten(v)"),
    "slice": (
        lambda w: {"v": np.concatenate([w, w + 1])},
        "b = Constant<value_ints=[0]>() e = Constant<value_ints=[40]>() w = Slice(v, b, e, b)",
    ),
    "split": (lambda w: {"v": np.concatenate([w + 1, w], axis=1)}, "p, w = Split<axis=1>(v)"),
    "gather": (lambda w: {"v": np.stack([w + 1, w])}, "i = Constant<value_int=1>() w = Gather(v, i)"),
    "concat": (lambda w: {"v": w[:, :20], "u": w[:, 20:]}, "w = Concat<axis=1>(v, u)"),
    "scaled": (lambda w: {"v": w / 2, "u": np.full(32, 2, w.dtype)}, "w = Mul(v, u)"),
    "expand": (lambda w: {"v": w}, "e = Constant<value_ints=[1, 32]>() w = Expand(v, e)"),
    "a chain": (
        lambda w: {"v": np.stack([w.T / 4, w.T]), "u": np.full((1, 1), 4, w.dtype)},
        "p, q = Split<axis=0>(v) a = Constant<value_ints=[0]>() s = Squeeze(p, a) m = Mul(s, u) w = Transpose(m)",
    ),
}


@pytest.mark.parametrize(("stored", "steps"), BEHIND_STEPS.values(), ids=BEHIND_STEPS)
def test_weight_behind_constant_steps(check, tools, rng, stored, steps):
    """The same numbers as of a weight that is stored as it is used; nothing of the way there stays."""

    def build(weights, dtype):
        body = f"(T[b,k] x) => (T[b,n] y) {{ {steps} y = MatMul(x, w) }}"
        return tools.make_model(body, stored(weights["w"]), dtype=dtype)

    model = check(build, {"w": normal(rng, 40, 32)}, {"x": normal(rng, 3, 40)})
    assert [n.op_type for n in model.graph.node] == ["MatMulMXFP4"]
    assert not {"u", "v"} & {i.name for i in model.graph.initializer}


def test_parts_of_one_tensor_are_converted_each(check, tools, rng):
    """q, k and v in one tensor: three products, and the tensor goes with the last of them."""

    def build(weights, dtype):
        parts = {"v": np.concatenate([weights["w"], weights["u"]], axis=1)}
        body = (
            "(T[b,k] x) => (T[b,n] y, T[b,m] z) { w, u = Split<axis=1>(v) y = MatMul(x, w) z = MatMul(x, u) }"
        )
        return tools.make_model(body, parts, dtype=dtype)

    weights = {"w": normal(rng, 40, 32), "u": normal(rng, 40, 32)}
    model = check(build, weights, {"x": normal(rng, 3, 40)}, converted=2)
    assert [n.op_type for n in model.graph.node] == ["MatMulMXFP4"] * 2
    assert "v" not in {i.name for i in model.graph.initializer}


def test_half_weight_cast_to_float(check, tools, rng):
    def build(weights, dtype):
        return tools.make_model(
            "(float[b,k] x) => (float[b,n] y) { w = Cast<to=1>(h) y = MatMul(x, w) }",
            {"h": weights["w"].astype(np.float16)},
        )

    w = normal(rng, 64, 32).astype(np.float16).astype(np.float32)
    # The oracle's weights are stored as half too, which holds E2M1 values, but not their multiples.
    check(build, {"w": w}, {"x": normal(rng, 3, 64)}, column_multiplier=False)


def test_float_weight_cast_to_half_is_rounded_first(check, tools, rng):
    def build(weights, dtype):
        if dtype == "float":
            return tools.make_model("(float[b,k] x) => (float[b,n] y) { y = MatMul(x, w) }", weights)
        model = tools.make_model(
            "(float16[b,k] x) => (float16[b,n] y) { h = Cast<to=10>(w) y = MatMul(x, h) }", {}
        )
        model.graph.initializer.append(numpy_helper.from_array(weights["w"], "w"))
        return model

    check(build, {"w": normal(rng, 64, 32)}, {"x": normal(rng, 3, 64)}, dtype="float16")


def test_constant_node(check, tools, rng):
    def build(weights, dtype):
        model = tools.make_model("(T[b,k] x) => (T[b,n] y) { y = MatMul(x, w) }", {}, dtype=dtype)
        tensor = numpy_helper.from_array(weights["w"], "any name")
        model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], value=tensor))
        return model

    model = check(build, {"w": normal(rng, 64, 32)}, {"x": normal(rng, 3, 64)})
    assert [n.op_type for n in model.graph.node] == ["MatMulMXFP4"]


@pytest.mark.parametrize("unit", ["1,", "1,1,"])
def test_unit_batch_dimensions(check, tools, rng, unit):
    def build(weights, dtype):
        shape = [1] * unit.count(",") + list(weights["w"].shape)
        return tools.make_model(
            "(T[a,b,s,k] x) => (T[a,b,s,n] y) { y = MatMul(x, w) }",
            {"w": weights["w"].reshape(shape)},
            dtype=dtype,
        )

    check(build, {"w": normal(rng, 64, 32)}, {"x": normal(rng, 2, 3, 4, 64)})


def test_unit_batch_dimension_with_inferred_rank(check, tools, rng):
    def build(weights, dtype):
        return tools.make_model(
            "(T[b,s,k] x) => (T[b,s,n] y) { r = Relu(x) y = MatMul(r, w) }",
            {"w": weights["w"][None]},
            dtype=dtype,
        )

    check(build, {"w": normal(rng, 64, 32)}, {"x": normal(rng, 2, 3, 64)})


BIASES = {
    "row": (48,),
    "row of rank 2": (1, 48),
    "row of rank 3": (1, 1, 48),
    "scalar": (),
    "one": (1,),
}


@pytest.mark.parametrize("order", ["y = Add(p, c)", "y = Add(c, p)"])
@pytest.mark.parametrize("shape", BIASES.values(), ids=BIASES)
def test_following_add_is_folded(check, tools, rng, shape, order):
    build = builder(tools, X3 + "{ p = MatMul(x, w) " + order + " }")
    others = {"c": normal(rng, *shape) if shape else np.float32(0.75) * np.ones((), np.float32)}
    model = check(build, {"w": normal(rng, 64, 48)}, {"x": normal(rng, 2, 3, 64)}, others)
    assert [n.op_type for n in model.graph.node] == ["MatMulMXFP4"]
    assert "c" not in {i.name for i in model.graph.initializer}


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        (X3 + "{ p = MatMul(x, w) y = Add(p, c) }", (2, 1, 48)),
        (X3 + "{ p = MatMul(x, w) y = Add(p, c) }", (1, 1, 1, 48)),
        (X3 + "{ p = MatMul(x, w) q = Add(p, c) y = Mul(q, p) }", (48,)),
        ("(T[b,s,k] x) => (T[b,s,n] y, T[b,s,n] p) { p = MatMul(x, w) y = Add(p, c) }", (48,)),
        (X3 + "{ p = MatMul(x, w) y = Add(p, p) z = Identity(c) }", (48,)),
        (X3 + "{ p = MatMul(x, w) y = Sub(c, p) }", (48,)),
    ],
    ids=["batch", "adds a dimension", "two uses", "graph output", "p + p", "no Add"],
)
def test_other_adds_stay(check, tools, rng, text, shape):
    if shape == (1, 1, 1, 48):
        text = text.replace("T[b,s,n] y", "T[a,b,s,n] y")
    feeds = {"x": normal(rng, 2, 3, 64)}
    check(builder(tools, text), {"w": normal(rng, 64, 48)}, feeds, {"c": normal(rng, *shape)}, roundings=4096)
    assert check.last.converted[0].note == ""


def test_bias_of_a_single_column_does_not_widen_the_result(check, tools, rng):
    """[.., 1] + [5] is [.., 5]: no bias, an expansion."""
    build = builder(tools, X3 + "{ p = MatMul(x, w) y = Add(p, c) }")
    model = check(build, {"w": normal(rng, 64, 1)}, {"x": normal(rng, 2, 3, 64)}, {"c": normal(rng, 5)})
    assert [n.op_type for n in model.graph.node] == ["MatMulMXFP4", "Add"]


@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize(("alpha", "beta"), [(1, 1), (0.5, 1), (-1.75, 0.25), (1, 0), (0, 1)])
def test_gemm(check, tools, rng, trans_a, trans_b, alpha, beta, dtype):
    def build(weights, dtype):
        text = (
            f"(T[p,q] x) => (T[m,n] y) {{ y = Gemm<transA={trans_a}, transB={trans_b}, alpha={float(alpha)}, "
            f"beta={float(beta)}>(x, w, c) }}"
        )
        w = np.ascontiguousarray(weights["w"].T) if trans_b else weights["w"]
        return tools.make_model(text, {"w": w, "c": weights["c"]}, dtype=dtype)

    x = normal(rng, *((40, 5) if trans_a else (5, 40)))
    model = check(
        build, {"w": normal(rng, 40, 24)}, {"x": x}, {"c": normal(rng, 24)}, dtype=dtype, roundings=4
    )
    assert [n.op_type for n in model.graph.node] == ["Transpose"] * trans_a + ["MatMulMXFP4"]


@pytest.mark.parametrize("shape", [None, (24,), (1, 24), (), (1,), (5, 24), (5, 1), (1, 1)])
def test_gemm_c(check, tools, rng, shape):
    text = "(T[m,k] x) => (T[m,n] y) { y = Gemm(x, w, c) }"
    if shape is None:
        text = text.replace("w, c", "w")
    others = {} if shape is None else {"c": np.asarray(normal(rng, *shape), np.float32)}
    model = check(builder(tools, text), {"w": normal(rng, 40, 24)}, {"x": normal(rng, 5, 40)}, others)
    folded = shape not in ((5, 24), (5, 1))
    assert [n.op_type for n in model.graph.node] == ["MatMulMXFP4"] + ["Add"] * (not folded)


def test_gemm_with_computed_c(check, tools, rng):
    build = builder(tools, "(T[m,k] x, T[m,n] c) => (T[m,n] y) { y = Gemm<alpha=0.5>(x, w, c) }")
    feeds = {"x": normal(rng, 5, 40), "c": normal(rng, 5, 24)}
    check(build, {"w": normal(rng, 40, 24)}, feeds)


def test_gemm_followed_by_add(check, tools, rng):
    build = builder(tools, "(T[m,k] x) => (T[m,n] y) { p = Gemm(x, w) y = Add(p, c) }")
    model = check(build, {"w": normal(rng, 40, 24)}, {"x": normal(rng, 5, 40)}, {"c": normal(rng, 1, 24)})
    assert [n.op_type for n in model.graph.node] == ["MatMulMXFP4"]


IF_TEXT = """(T[b,k] x, bool which) => (T[b,n] y) {
  y = If (which) <
    then_branch = yes () => (T[b,n] a) { a = MatMul(x, w) },
    else_branch = no () => (T[b,n] c) { d = MatMul(x, v) c = Neg(d) }>
}"""


@pytest.mark.parametrize("which", [True, False])
@pytest.mark.parametrize("place", ["outer scope", "branch", "constant node", "same in both"])
def test_if_branches(check, tools, rng, place, which):
    def build(weights, dtype):
        text = IF_TEXT.replace("MatMul(x, v)", "MatMul(x, w)") if place == "same in both" else IF_TEXT
        model = tools.make_model(text, weights, dtype=dtype)
        branches = [a.g for a in model.graph.node[0].attribute]
        assert [b.name for b in branches] == ["yes", "no"]
        if place in ("branch", "constant node"):
            tensors = {t.name: t for t in model.graph.initializer}
            del model.graph.initializer[:]
            for branch, name in zip(branches, "wv", strict=True):
                if place == "branch":
                    branch.initializer.append(tensors[name])
                else:
                    node = onnx.helper.make_node("Constant", [], [name], value=tensors[name])
                    branch.node.insert(0, node)
        return model

    names = "w" if place == "same in both" else "wv"
    weights = {name: normal(rng, 64, 32) for name in names}
    feeds = {"x": normal(rng, 3, 64), "which": np.array(which)}
    model = check(build, weights, feeds, converted=2)
    branches = [a.g for a in model.graph.node[0].attribute]
    inside = [len([t for t in b.initializer if t.data_type == onnx.TensorProto.UINT8]) for b in branches]
    assert inside == ([0, 0] if place == "same in both" else [2, 2]), "a weight lives where it is used"


@pytest.mark.parametrize("which", [True, False])
def test_add_in_a_branch_is_not_folded(check, tools, rng, which):
    """The product has a single use, but one that is not always reached."""
    text = """(T[b,k] x, bool which) => (T[b,n] y) {
      p = MatMul(x, w)
      y = If (which) <
        then_branch = yes () => (T[b,n] a) { a = Add(p, bias) },
        else_branch = no () => (T[b,n] c) { c = Constant<value = float[1,1] {5.0}>() }>
    }"""
    feeds = {"x": normal(rng, 1, 64), "which": np.array(which)}
    others = {"bias": normal(rng, 1)}
    check(builder(tools, text), {"w": normal(rng, 64, 1)}, feeds, others)
    assert check.last.converted[0].note == ""


def test_weight_that_is_a_graph_output_stays(check, tools, rng):
    text = "(T[b,k] x) => (T[b,n] y, T[k,n] w) { y = MatMul(x, w) }"
    model = tools.make_model(text, {"w": normal(rng, 64, 32)})
    converted = mxort.convert(model).model
    onnx.checker.check_model(converted, full_check=True)
    x = normal(rng, 2, 64)
    _, w = tools.run_onnxruntime(converted, {"x": x})
    np.testing.assert_array_equal(w, numpy_helper.to_array(model.graph.initializer[0]))


def test_loop_body(check, tools, rng):
    text = """(T[b,k] x) => (T[b,k] y) {
      count = Constant<value_int=2>() go = Constant<value=bool {1}>()
      y = Loop (count, go, x) <
        body = step (int64 i, bool c, T[b,k] h) => (bool d, T[b,k] g) {
          p = MatMul(h, w) q = Add(p, bias) g = Tanh(q) d = Identity(c) }>
    }"""
    others = {"bias": normal(rng, 64)}
    check(
        builder(tools, text), {"w": normal(rng, 64, 64) / 8}, {"x": normal(rng, 3, 64)}, others, roundings=64
    )


def test_scan_body(check, tools, rng):
    text = """(T[s,k] x) => (T[s,n] y) {
      y = Scan <num_scan_inputs=1, body = step (T[k] row) => (T[n] out) { out = MatMul(row, w) }> (x)
    }"""
    check(builder(tools, text), {"w": normal(rng, 64, 32)}, {"x": normal(rng, 5, 64)})


def test_shared_weight_is_stored_once(check, tools, rng):
    text = "(T[b,k] x) => (T[b,n] y) { a = MatMul(x, w) r = Relu(x) b = MatMul(r, w) y = Sub(a, b) }"
    model = check(builder(tools, text), {"w": normal(rng, 64, 32)}, {"x": normal(rng, 3, 64)}, converted=2)
    assert len([t for t in model.graph.initializer if t.data_type == onnx.TensorProto.UINT8]) == 2
    assert [s.note for s in check.last.converted] == ["", "weight shared"]
    assert check.last.converted[1].converted_bytes == 0


def test_transposed_duplicate_is_stored_once(check, tools, rng):
    """One Linear written as two initializers, W and W^T, as exporters do."""

    def build(weights, dtype):
        text = (
            "(T[b,k] x) => (T[b,n] y) { a = MatMul(x, w) r = Relu(x) b = Gemm<transB=1>(r, v) y = Sub(a, b) }"
        )
        copy = {"v": np.ascontiguousarray(weights["w"].T)}
        return tools.make_model(text, {**weights, **copy}, dtype=dtype)

    model = check(build, {"w": normal(rng, 64, 32)}, {"x": normal(rng, 3, 64)}, converted=2)
    assert len([t for t in model.graph.initializer if t.data_type == onnx.TensorProto.UINT8]) == 2


def test_ones_and_zeros_are_stored_once_per_width(tools, rng):
    text = "(T[b,k] x) => (T[b,n] y, T[b,n] z) { y = MatMul(x, v) z = MatMul(x, w) }"
    weights = {"v": normal(rng, 64, 32), "w": normal(rng, 64, 32)}
    model = mxort.convert(tools.make_model(text, weights), column_multiplier=False).model
    floats = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert [list(t.dims) for t in floats] == [[32], [32]]


def test_column_multiplier_reaches_the_operator(tools, rng):
    model = tools.make_model(X3 + "{ y = MatMul(x, w) }", {"w": normal(rng, 64, 64)})
    plain, tuned = (mxort.convert(model, column_multiplier=value) for value in (False, True))
    assert tuned.converted[0].sqnr_db > plain.converted[0].sqnr_db + 0.1
    x = normal(rng, 2, 3, 64)
    exact = tools.run_reference(model, {"x": x})[0]
    errors = [np.square(tools.run_reference(r.model, {"x": x})[0] - exact).sum() for r in (plain, tuned)]
    assert errors[1] < errors[0]


def test_sqnr_is_that_of_the_stored_weight(tools, rng):
    w = normal(rng, 100, 48)
    (row,) = mxort.convert(tools.make_model(X3 + "{ y = MatMul(x, w) }", {"w": w})).converted
    error = w.astype(np.float64) - tools.fake_quantize(w)
    assert row.sqnr_db == pytest.approx(
        10 * np.log10((w.astype(np.float64) ** 2).sum() / (error**2).sum()), abs=1e-3
    )


def test_everything_else_is_kept(tools, rng):
    text = "(T[b,k] x) => (T[b,n] y) { p = MatMul(x, w) q = local.twice(p) y = Identity(q) }"
    model = tools.make_model(text, {"w": normal(rng, 64, 32), "unused": normal(rng, 3)})
    model.doc_string, model.producer_name, model.domain, model.model_version = "doc", "me", "org.example", 7
    model.metadata_props.add(key="author", value="somebody")
    model.graph.doc_string = "graph doc"
    matmul = model.graph.node[0]
    matmul.doc_string = "node doc"
    matmul.metadata_props.add(key="namespace", value="encoder/layer.0")
    info = onnx.helper.make_tensor_value_info("p", onnx.TensorProto.FLOAT, ["b", "n"])
    info.doc_string = "value doc"
    model.graph.value_info.append(info)
    for name in "pq":
        annotation = model.graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="unused")
    function = onnx.helper.make_function(
        "local",
        "twice",
        ["a"],
        ["b"],
        [onnx.helper.make_node("Add", ["a", "a"], ["b"])],
        [onnx.helper.make_opsetid("", 17)],
    )
    model.functions.append(function)
    model.opset_import.append(onnx.helper.make_opsetid("local", 1))

    for node in model.graph.node:
        if not node.domain:
            node.ClearField("domain")  # the text parser writes the empty domain out

    converted = mxort.convert(model, column_multiplier=False).model
    for name in ("doc_string", "producer_name", "domain", "model_version"):
        assert getattr(converted, name) == getattr(model, name)
    assert converted.graph.doc_string == "graph doc"
    assert converted.graph.input == model.graph.input
    assert converted.graph.output == model.graph.output
    assert converted.graph.node[1:] == model.graph.node[1:]
    assert converted.graph.quantization_annotation == model.graph.quantization_annotation
    assert function in converted.functions
    ours = converted.graph.node[0]
    assert (ours.name, ours.doc_string, ours.metadata_props) == (
        matmul.name,
        "node doc",
        matmul.metadata_props,
    )
    assert ours.output == matmul.output
    assert info in converted.graph.value_info
    assert "unused" in {t.name for t in converted.graph.initializer}, (
        "what was dead before is not ours to remove"
    )
    assert "w" not in {t.name for t in converted.graph.initializer}


def test_marks(tools, rng):
    model = tools.make_model(X3 + "{ y = MatMul(x, w) }", {"w": normal(rng, 64, 64)})
    converted = mxort.convert(model, recipe="w4a8").model
    (made,) = conversions({p.key: p.value for p in converted.metadata_props})
    assert mxort.Recipe.from_json(made.recipe) == mxort.PRESETS["w4a8"]
    assert json.loads(made.recipe)["activation_format"] == "mxfp8_e4m3"
    assert made.version
    assert {o.domain: o.version for o in converted.opset_import}["mxort"] == 1
    assert [(f.domain, f.name) for f in converted.functions] == [("mxort", "MatMulMXFP4")]
    with pytest.raises(mxort.MxortError, match="is converted already"):
        mxort.convert(converted)


def test_names_stay_unique(tools, rng):
    text = "(T[b,k] x) => (T[b,n] y) { w_mxfp4 = Relu(x) y = MatMul(w_mxfp4, w) }"
    model = mxort.convert(tools.make_model(text, {"w": normal(rng, 64, 64)})).model
    onnx.checker.check_model(model, full_check=True)
    assert {t.name for t in model.graph.initializer} >= {"w_mxfp4_2", "w_mxfp4_scale"}


@pytest.mark.parametrize(
    ("options", "level"),
    [
        ({}, 4),
        ({"weight_format": "mxint8"}, 4),
        ({"accuracy_level": 3}, 3),
        ({"accuracy_level": 1}, 1),
        ({"activation_format": "mxfp8_e4m3"}, 0),
    ],
    ids=["default", "mxint8", "3", "1", "activations in a format"],
)
def test_the_accuracy_level_is_written_as_it_was_resolved(tools, rng, options, level):
    model = tools.make_model(X3 + "{ y = MatMul(x, w) }", {"w": normal(rng, 64, 64)})
    (node,) = [n for n in tools.nodes(mxort.convert(model, **options).model) if n.domain == "mxort"]
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert values["accuracy_level"] == level


@pytest.mark.parametrize(
    ("largest", "level"), [(0, 3), (2.0**-9, 3), (2.0**-7, 4)], ids=["exact", "nearly", "rounded"]
)
def test_activations_are_rounded_where_weights_are(tools, rng, largest, level):
    """Weights that are held exactly, or nearly (54 dB), would lose by level 4; others (42 dB) have lost more before."""
    exact = rng.choice(np.float32([-2, -1.5, 1, 3, 6]), (64, 64))
    w = exact * (1 + largest * rng.uniform(-(3**0.5), 3**0.5, (64, 64))).astype(np.float32)
    report = mxort.convert(tools.make_model(X3 + "{ y = MatMul(x, w) }", {"w": w}))
    (node,) = [n for n in tools.nodes(report.model) if n.domain == "mxort"]
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert (values["accuracy_level"], report.converted[0].accuracy_level) == (level, level)


def test_equal_arrays_are_stored_once():
    """Those that differ anywhere are not taken for each other, however alike; nor are other types and shapes."""
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, (300, 4096), dtype=np.uint8)
    others = [array.copy() for _ in range(20)]
    for other, at in zip(others, rng.integers(0, array.size, 20), strict=True):
        other.reshape(-1)[at] ^= 1
    pool = rewrite.TensorPool(ir.Tensor)
    first, new = pool.put(array)
    assert new
    stored = [pool.put(other) for other in others]
    assert all(new for _, new in stored)
    assert pool.put(array.copy()) == (first, False)
    for other, (tensor, _) in zip(others, stored, strict=True):
        assert pool.put(np.asfortranarray(other)) == (tensor, False)
    assert pool.put(array.view(np.int8))[1] and pool.put(array.reshape(600, 2048))[1]
    assert pool.put(np.zeros(0, np.uint8))[1] and not pool.put(np.zeros(0, np.uint8))[1]
