"""Rotations of halves in single steps become RotaryEmbedding; what they compute stays."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.numpy_helper
import pytest

H, D = 3, 16
ANGLES = (
    "last = Constant<value_ints=[2]>() p = Unsqueeze(pos, last) pf = Cast<to=1>(p) f = Mul(pf, freq) "
    "ff = Concat<axis=-1>(f, f) c0 = Cos(ff) s0 = Sin(ff) CAST one = Constant<value_ints=[1]>() "
    "c = Unsqueeze(c3, one) s = Unsqueeze(s3, one) "
)
SPLIT = "shape = Constant<value_ints=[0,0,3,16]>() r = Reshape(x, shape) q = Transpose<perm=[0,2,1,3]>(r) "
BOUNDS = (
    "zero = Constant<value_ints=[0]>() half = Constant<value_ints=[8]>() axis = Constant<value_ints=[3]>() "
    "end = Constant<value_ints=[9223372036854775807]>() "
)
COMPUTED = (
    "zero = Constant<value_ints=[0]>() axis = Constant<value_ints=[3]>() sh = Shape(q) at = Constant<value_int=3>() "
    "size = Gather<axis=0>(sh, at) twoi = Constant<value_int=2>() h0 = Div(size, twoi) h1 = Cast<to=7>(h0) "
    "half = Unsqueeze(h1, zero) end = Constant<value_ints=[9223372036854775807]>() "
)
TURN = (
    "a = Slice(q, zero, half, axis) b = Slice(q, half, end, axis) n = Neg(b) t = Concat<axis=-1>(n, a) "
    "qc = Mul(q, c) ts = Mul(t, s) y = Add(qc, ts) "
)
HEAD = "(T[b,s,48] x, int64[B,s] pos) => (T[b,3,s,16] y) "
FREQUENCIES = (10000.0 ** -(np.arange(D // 2) / (D // 2))).astype(np.float32)


def build(tools, *, bounds=BOUNDS, turn=TURN, angles=ANGLES, batch="b", dtype="float", opset=20):
    cast = (
        "c3 = Identity(c0) s3 = Identity(s0)"
        if dtype == "float"
        else "c3 = Cast<to=10>(c0) s3 = Cast<to=10>(s0)"
    )
    text = HEAD.replace("B", batch) + "{ " + angles.replace("CAST", cast) + SPLIT + bounds + turn + "}"
    text = text.replace("Identity(c0)", "Cast<to=1>(c0)").replace("Identity(s0)", "Cast<to=1>(s0)")
    model = tools.make_model(text, {}, opset=opset, dtype=dtype, ir_version=9)
    model.graph.initializer.append(onnx.numpy_helper.from_array(FREQUENCIES, "freq"))
    return model


def feeds(batch=2, positions=2, dtype=np.float32):
    rng = np.random.default_rng(0)
    pos = np.stack([np.arange(7) + 5 * i for i in range(positions)]).astype(np.int64)
    return {"x": rng.standard_normal((batch, 7, H * D)).astype(dtype), "pos": pos}


def exact(given):
    angle = given["pos"][..., None] * FREQUENCIES.astype(np.float64)
    cos, sin = (np.tile(f(angle), 2)[:, None] for f in (np.cos, np.sin))
    q = given["x"].astype(np.float64).reshape(*given["x"].shape[:2], H, D).transpose(0, 2, 1, 3)
    return q * cos + np.concatenate([-q[..., 8:], q[..., :8]], -1) * sin


FORMS = {
    "dynamo": {},
    "TorchScript: bounds from the shape": {"bounds": COMPUTED, "opset": 17},
    "the sum turned round": {
        "turn": TURN.replace("Add(qc, ts)", "Add(ts, qc)").replace("Mul(t, s)", "Mul(s, t)")
    },
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forms(fusing, tools, form):
    given = feeds()
    operators = fusing(build(tools, **form), given)
    assert fusing.report == {"RotaryEmbedding": {"fused": 1}}
    assert not {"Neg", "Mul_q", "Add"} & set(operators)
    # An angle below 17 to within an ulp of it, cos and sin of that, two products and a sum.
    bound = 2 * (17 * 2.0**-23 + 4 * 2.0**-24) * 2 * np.abs(given["x"]).max()
    assert (np.abs(fusing.after[0] - exact(given)) <= bound).all()
    fusing.assert_near(4 * 2.0**-24 * 2 * np.abs(given["x"]).max())  # of the same angles


def test_one_row_of_positions_for_all_of_the_batch(fusing, tools):
    given = feeds(batch=3, positions=1)
    operators = fusing(build(tools, batch="1"), given)
    assert "RotaryEmbedding" in operators
    fusing.assert_near(4 * 2.0**-24 * 2 * np.abs(given["x"]).max())


def test_float16(fusing, tools):
    given = feeds(dtype=np.float16)
    assert "RotaryEmbedding" in fusing(build(tools, dtype="float16"), given)
    fusing.assert_near(4 * 2.0**-11 * 2 * np.abs(given["x"]).astype(np.float64).max())


def swap(text, old, new):
    assert old in text
    return text.replace(old, new)


LEFT = {
    "it rotates a part of each head": {"bounds": swap(BOUNDS, "ints=[8]", "ints=[4]")},
    "its halves are of another value than what is multiplied by cosines": {
        "turn": swap(TURN, "qc = Mul(q, c)", "o = Abs(q) qc = Mul(o, c)")
    },
    "its angles do not stand twice": {
        "angles": swap(ANGLES, "ff = Concat<axis=-1>(f, f)", "g = Neg(f) ff = Concat<axis=-1>(f, g)")
    },
    "its angles are not those of all heads": {
        "angles": swap(ANGLES, "c = Unsqueeze(c3, one)", "cu = Unsqueeze(c3, one) c = Abs(cu)")
    },
}


@pytest.mark.parametrize(("reason", "form"), LEFT.items(), ids=LEFT)
def test_what_is_something_else_is_left(fusing, tools, reason, form):
    model = build(tools, **form)
    before = sorted(node.op_type for node in model.graph.node)
    assert fusing(model) == before
    assert fusing.report == {"RotaryEmbedding": {"fused": 0, reason: 1}}
    assert fusing.model.opset_import[0].version == 20


def test_an_opset_that_cannot_be_raised_leaves_it(fusing, tools):
    model = build(tools, opset=17)
    grid = "gs = GridSample(im, gr)"
    text = "(float[1,1,4,4] im, float[1,2,2,2] gr) => (float[1,1,2,2] gs) { " + grid + " }"
    other = tools.make_model(text, {}, opset=17).graph
    model.graph.node.extend(other.node)
    model.graph.input.extend(other.input)
    model.graph.output.extend(other.output)
    fusing(model)
    reason = "the model cannot be raised to opset 23: GridSample changed in opset 20"
    assert fusing.report == {"RotaryEmbedding": {"fused": 0, reason: 1}}
    assert fusing.model.opset_import[0].version == 17
