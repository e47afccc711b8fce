"""Attention in single steps, as torch's exporters write it for decoders, becomes the standard's operator."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

HQ, HK, D, PAST, NEW = 4, 2, 16, 3, 5
HEAD = (
    "(T[b,s,64] q, T[b,s,32] k, T[b,s,32] v, T[b,2,p,16] pk, T[b,2,p,16] pv, bool[b,1,s,t] seen) "
    "=> (T[b,s,64] y, T[b,2,t,16] nk, T[b,2,t,16] nv) { "
)
SPLIT = (
    "sq = Constant<value_ints=[0,0,4,16]>() sk = Constant<value_ints=[0,0,2,16]>() "
    "q3 = Reshape(q, sq) k3 = Reshape(k, sk) v3 = Reshape(v, sk) q4 = Transpose<perm=[0,2,1,3]>(q3) "
    "k4 = Transpose<perm=[0,2,1,3]>(k3) v4 = Transpose<perm=[0,2,1,3]>(v3) "
    "nk = Concat<axis=-2>(pk, k4) nv = Concat<axis=2>(pv, v4) "
)
GROUP = (
    "two = Constant<value_ints=[2]>() apart = Constant<value_ints=[1,1,2,1,1]>() "
    "k5 = Unsqueeze(nk, two) kx = Expand(k5, apart) v5 = Unsqueeze(nv, two) vx = Expand(v5, apart) "
    "d = Shape(pk) at = Constant<value_ints=[0]>() batch = Gather(d, at) m1 = Constant<value_ints=[-1]>() "
    "size = Constant<value_ints=[16]>() heads = Constant<value_ints=[4]>() "
    "whole = Concat<axis=0>(batch, heads, m1, size) kk = Reshape(kx, whole) vv = Reshape(vx, whole) "
)
EXCHANGED = "kt = Transpose<perm=[0,1,3,2]>(kk) "
BY_RANK_3 = (
    "flat = Constant<value_ints=[-1,0,0]>() ks = Shape(kk) l = Constant<value_ints=[2]>() t0 = Gather(ks, l) "
    "f3 = Concat<axis=0>(m1, t0, size) kf = Reshape(kk, f3) kr = Transpose<perm=[0,2,1]>(kf) "
    "b4 = Concat<axis=0>(batch, heads, size, t0) kt = Reshape(kr, b4) "
)
SCALED = "root = Constant<value_float=0.5>() qs = Mul(q4, root) ks2 = Mul(kt, root) sc = MatMul(qs, ks2) "
MASK = (
    "zero = Constant<value_float=0.0>() low = Constant<value_float=-3.4028234663852886e+38>() "
    "bias = Where(seen, zero, low) z = Add(sc, bias) "
)
POSITIONS = (  # as T5 adds them: a bias before the mask
    "step = Constant<value_float=0.25>() axis = Constant<value_int=3>() n0 = Cast<to=1>(seen) "
    "n1 = CumSum(n0, axis) pos = Mul(n1, step) "
    "zero = Constant<value_float=0.0>() low = Constant<value_float=-3.4028234663852886e+38>() "
    "bias = Where(seen, zero, low) z0 = Add(sc, pos) z = Add(z0, bias) "
)
GUARDED = "w0 = Softmax<axis=-1>(z) bad = IsNaN(w0) w = Where(bad, zero, w0) "
PLAIN = "w = Softmax<axis=-1>(z) "
END = (
    "o = MatMul(w, vv) t = Transpose<perm=[0,2,1,3]>(o) wide = Constant<value_ints=[0,0,64]>() "
    "y = Reshape(t, wide) }"
)
FORMS = {
    "TorchScript": SPLIT + GROUP + EXCHANGED + SCALED + MASK + GUARDED,
    "dynamo": SPLIT + GROUP + BY_RANK_3 + SCALED + MASK + GUARDED,
    "eager": SPLIT
    + GROUP
    + EXCHANGED
    + "s0 = MatMul(q4, kt) root = Constant<value_float=4.0>() sc = Div(s0, root) "
    + MASK
    + PLAIN,
    "no mask": SPLIT
    + GROUP
    + EXCHANGED
    + SCALED
    + "zero = Constant<value_float=0.0>() w0 = Softmax<axis=-1>(sc) bad = IsNaN(w0) w = Where(bad, zero, w0) ",
    "bias of positions": SPLIT + GROUP + EXCHANGED + SCALED + POSITIONS + PLAIN,
    "softmax in float": SPLIT
    + GROUP
    + EXCHANGED
    + SCALED
    + MASK
    + "zc = Cast<to=1>(z) wc = Softmax<axis=-1>(zc) w = Cast<to=1>(wc) ",
}


def feeds(past=PAST, new=NEW, batch=2, dtype=np.float32):
    rng = np.random.default_rng(past)
    draw = lambda *shape: rng.standard_normal(shape).astype(dtype)  # noqa: E731
    seen = np.arange(past + new)[None] <= np.arange(new)[:, None] + past
    seen = seen[None, None] & (rng.random((batch, 1, 1, past + new)) < 0.8)
    seen[..., 0] = True
    return {
        "q": draw(batch, new, HQ * D),
        "k": draw(batch, new, HK * D),
        "v": draw(batch, new, HK * D),
        "pk": draw(batch, HK, past, D),
        "pv": draw(batch, HK, past, D),
        "seen": seen,
    }


def exact(given, masked=True, positions=False):
    """(y, present keys, present values) in double."""
    wide = {n: x.astype(np.float64) for n, x in given.items() if n != "seen"}
    batch, new = given["q"].shape[:2]
    split = lambda x, heads: x.reshape(batch, new, heads, D).transpose(0, 2, 1, 3)  # noqa: E731
    nk = np.concatenate([wide["pk"], split(wide["k"], HK)], 2)
    nv = np.concatenate([wide["pv"], split(wide["v"], HK)], 2)
    scores = split(wide["q"], HQ) @ nk.repeat(HQ // HK, 1).swapaxes(2, 3) / 4
    if positions:
        scores = scores + np.cumsum(given["seen"], -1) / 4
    if masked:
        scores = np.where(given["seen"], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    y = (weights @ nv.repeat(HQ // HK, 1)).transpose(0, 2, 1, 3).reshape(batch, new, HQ * D)
    return y, nk, nv


def bound(given, eps):
    """Of a score sums of 16 products to within 17 eps of their magnitudes, which exp makes relative; a softmax of t
    terms, and a sum of so many values."""
    scores = (
        16 * np.abs(given["q"]).max() * max(np.abs(given["k"]).max(), np.abs(given["pk"]).max(initial=0)) / 4
    )
    terms = given["seen"].shape[-1]
    values = max(np.abs(given["v"]).max(), np.abs(given["pv"]).max(initial=0))
    return float(2 * (17 * scores + terms + 8) * eps * values)


def build(tools, body, dtype="float", head=HEAD):
    if dtype == "float16":
        body = body.replace("<value_float=", "<value=float16 {").replace(">()", "}>()")
    return tools.make_model(head + body + END, {}, opset=20, dtype=dtype, ir_version=9)


@pytest.mark.parametrize(("past", "new", "batch"), [(3, 5, 2), (0, 5, 2), (7, 1, 3), (4, 3, 2)])
@pytest.mark.parametrize("form", FORMS)
def test_forms(fusing, tools, form, past, new, batch):
    given = feeds(past, new, batch)
    operators = fusing(build(tools, FORMS[form]), given)
    assert fusing.report == {"Attention": {"fused": 1}}
    assert not {"Softmax", "MatMul", "Concat", "Expand"} & set(operators)
    assert fusing.model.opset_import[0].version == 23
    wants = exact(given, "mask" not in form, "positions" in form)
    for y, want in zip(fusing.after, wants, strict=True):
        assert (np.abs(y - want) <= bound(given, 2.0**-24)).all()
    np.testing.assert_array_equal(fusing.after[1], wants[1])  # the caches are copies
    np.testing.assert_array_equal(fusing.after[2], wants[2])


def test_one_attribute_says_the_groups(fusing, tools):
    fusing(build(tools, FORMS["dynamo"]))
    (node,) = [n for n in fusing.model.graph.node if n.op_type == "Attention"]
    settings = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert settings == {"q_num_heads": 4, "kv_num_heads": 2, "scale": 0.25}


def changed(*changes):
    body = FORMS["eager"]
    for old, new in changes:
        assert old in body
        body = body.replace(old, new)
    return body


LEFT = {
    "its keys or values are repeated otherwise": changed(
        ("two = Constant<value_ints=[2]>()", "two = Constant<value_ints=[1]>()"),
        ("[1,1,2,1,1]", "[1,2,1,1,1]"),
    ),
    "its mask is not added after the scale": changed(
        ("sc = Div(s0, root)", "sc = Div(s0, root) two_ = Constant<value_float=2.0>()"),
        ("z = Add(sc, bias)", "z2 = Add(sc, bias) z = Mul(z2, two_)"),
    ),
    "its result is not transposed back": changed(),
    "it is not over the last dimension": changed(("axis=-1>(z)", "axis=2>(z)")),
    "its mask is computed from its cache": changed(
        (
            "bias = Where(seen, zero, low)",
            "ns = ReduceMax<keepdims=0>(nk) b0 = Mul(ns, zero) bias = Where(seen, b0, low)",
        )
    ),
}


@pytest.mark.parametrize(("reason", "body"), LEFT.items(), ids=LEFT)
def test_what_is_something_else_is_left(fusing, tools, reason, body):
    model = build(tools, body)
    if "transposed back" in reason:
        (last,) = [n for n in model.graph.node if n.op_type == "Transpose" and n.output[0] == "t"]
        last.attribute[0].ints[:] = [0, 2, 3, 1]
    before = sorted(node.op_type for node in model.graph.node)
    assert fusing(model) == before
    assert fusing.report == {"Attention": {"fused": 0, reason: 1}}
    assert fusing.model.opset_import[0].version == 20


def test_heads_that_no_kernel_of_a_gpu_takes_are_left(fusing, tools):
    body = FORMS["eager"].replace("[0,0,4,16]", "[0,0,16,4]").replace("[0,0,2,16]", "[0,0,8,4]")
    body = body.replace("size = Constant<value_ints=[16]>()", "size = Constant<value_ints=[4]>()")
    body = body.replace("heads = Constant<value_ints=[4]>()", "heads = Constant<value_ints=[16]>()")
    head = HEAD.replace("[b,2,p,16]", "[b,8,p,4]").replace("[b,2,t,16]", "[b,8,t,4]")
    fusing(build(tools, body, head=head))
    assert fusing.report == {
        "Attention": {"fused": 0, "its heads are not of a multiple of 8 numbers up to 256": 1}
    }
