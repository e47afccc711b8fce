"""Attention in single steps becomes one operator, however an exporter writes it; other forms are left as they are."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import mxort
from mxort.conversion import tables
from mxort.converters import encoder_attention
from op_model import session

B, S, H, D = 2, 9, 3, 32
SPLIT = (
    "shape = Constant<value_ints=[0,0,3,32]>() "
    "q3 = Reshape(q, shape) k3 = Reshape(k, shape) v3 = Reshape(v, shape) v4 = Transpose<perm=[0,2,1,3]>(v3) "
)
HEADS = "q4 = Transpose<perm=[0,2,1,3]>(q3) kt = Transpose<perm=[0,2,3,1]>(k3) "
TWICE = "q4 = Transpose<perm=[0,2,1,3]>(q3) k4 = Transpose<perm=[0,2,1,3]>(k3) kt = Transpose<perm=[0,1,3,2]>(k4) "
END = (
    "p = Softmax<axis=-1>(z) o = MatMul(p, v4) t = Transpose<perm=[0,2,1,3]>(o) "
    "wide = Constant<value_ints=[0,0,96]>() y = Reshape(t, wide) "
)
HEAD = "(T[b,s,n] q, T[b,s,n] k, T[b,s,n] v, T[b,1,1,s] mask) => (T[b,s,n] y) "

FORMS = {
    "BERT, TorchScript": HEADS + "s0 = MatMul(q4, kt) c = Div(s0, root) z = Add(c, mask) ",
    "mask on the left": HEADS + "s0 = MatMul(q4, kt) c = Mul(root, s0) z = Add(mask, c) ",
    "no mask": HEADS + "s0 = MatMul(q4, kt) z = Div(s0, root) ",
    "scaled operands": TWICE + "qs = Mul(q4, root) ks = Mul(kt, root) s0 = MatMul(qs, ks) z = Add(s0, mask) ",
    "scaled before the second transposition": (
        HEADS.split(" kt")[0]
        + " k4 = Transpose<perm=[0,2,1,3]>(k3) ks = Div(k4, root) kt = Transpose<perm=[0,1,3,2]>(ks) "
        "s0 = MatMul(q4, kt) z = Add(s0, mask) "
    ),
    "scaled_dot_product_attention, TorchScript": (
        HEADS
        + "d = Shape(q4) first = Constant<value_ints=[-1]>() end = Constant<value_ints=[9223372036854775807]>() "
        "size = Slice(d, first, end) f = Cast<to=1>(size) r = Sqrt(f) one = Constant<value_floats=[1.0]>() "
        "i = Div(one, r) i32 = Cast<to=1>(i) sq = Sqrt(i32) qs = Mul(q4, sq) sk = Sqrt(i32) ks = Mul(kt, sk) "
        "s0 = MatMul(qs, ks) z = Add(s0, mask) "
    ),
    "a mask that is computed": (
        HEADS + "s0 = MatMul(q4, kt) c = Div(s0, root) one = Constant<value_float=1.0>() "
        "i = Sub(one, mask) m = Mul(i, low) z = Add(c, m) "
    ),
}
WEIGHTS = {"root": np.float32([2.5]), "low": np.float32([-3.0])}


def build(tools, body, *, end=END, dtype="float", weights=WEIGHTS):
    return tools.make_model(HEAD + "{ " + SPLIT + body + end + "}", weights, dtype=dtype)


def feeds(seed=0):
    rng = np.random.default_rng(seed)
    f = {name: rng.standard_normal((B, S, H * D), dtype=np.float32) for name in "qkv"}
    return f | {"mask": np.where(rng.random((B, 1, 1, S)) < 0.3, -50, 0).astype(np.float32)}


def fused(proto):
    model = ir.serde.deserialize_model(proto)
    found = encoder_attention.fuse(model)
    return ir.serde.serialize_model(model), found


@pytest.mark.parametrize("body", FORMS.values(), ids=FORMS)
def test_forms(tools, body):
    proto = build(tools, body)
    made, found = fused(proto)
    assert (found.count, dict(found.left)) == (1, {})
    ops = [node.op_type for node in made.graph.node]
    assert "MultiHeadAttention" in ops and not {"Softmax", "MatMul", "Transpose"} & set(ops)
    f = feeds()
    f = {name: x for name, x in f.items() if name in {i.name for i in made.graph.input}}
    (want,) = session(proto, library=False).run(None, f)
    for library in (True, False):
        (got,) = session(made, library=library).run(None, f)
        np.testing.assert_allclose(
            got, want, rtol=0, atol=2e-5
        )  # both within test_encoder_attention's bound of y


REFUSED = {
    "the weights are an output of the model too": (
        FORMS["no mask"],
        END.replace("o = MatMul(p, v4)", "r = Relu(p) o0 = MatMul(p, v4) o1 = MatMul(r, v4) o = Add(o0, o1)"),
        "its result does not go into one MatMul",
    ),
    "scores are read twice": (
        HEADS + "s0 = MatMul(q4, kt) c = Div(s0, root) d = Relu(s0) z = Add(c, d) ",
        END,
        "something else reads a step between",
    ),
    "the mask is scaled too": (
        HEADS + "s0 = MatMul(q4, kt) c = Add(s0, mask) z = Div(c, root) ",
        END,
        "it has a step that is not known",
    ),
    "another axis": (
        FORMS["no mask"],
        END.replace("axis=-1", "axis=-2"),
        "it is not over the last dimension",
    ),
    "not transposed back": (
        FORMS["no mask"],
        END.replace("t = Transpose<perm=[0,2,1,3]>(o)", "t = Identity(o)"),
        "its result does not go into one Transpose",
    ),
    "a scale that follows from something else": (
        HEADS + "d = Shape(q) last = Constant<value_ints=[-1]>() size = Gather(d, last) f = Cast<to=1>(size) "
        "s0 = MatMul(q4, kt) z = Div(s0, f) ",
        END,
        "it has a step that is not known",
    ),
    "no constant that tells the type": (
        HEADS + "s0 = MatMul(q4, kt) z = Add(s0, mask) ",
        END,
        "it is not float, or of unknown type",
    ),
    "a cap": (
        HEADS + "s0 = MatMul(q4, kt) c = Div(s0, root) z = Tanh(c) ",
        END,
        "it has a step that is not known",
    ),
}


@pytest.mark.parametrize(("body", "end", "reason"), REFUSED.values(), ids=REFUSED)
def test_other_forms_are_left_alone(tools, body, end, reason):
    proto = build(tools, body, end=end)
    made, found = fused(proto)
    assert (found.count, dict(found.left)) == (0, {reason: 1})
    assert [n.op_type for n in made.graph.node] == [n.op_type for n in proto.graph.node]
    assert not made.functions


def test_float16_is_left_alone(tools):
    made, found = fused(build(tools, FORMS["BERT, TorchScript"], dtype="float16"))
    assert found.count == 0 and "Softmax" in {n.op_type for n in made.graph.node}


@pytest.mark.parametrize("size", [24, 20])
def test_heads_of_other_sizes_are_left_alone(tools, size):
    body = SPLIT + FORMS["no mask"] + END
    body = body.replace("0,0,3,32", f"0,0,3,{size}").replace("0,0,96", f"0,0,{3 * size}")
    text = HEAD + "{ " + body + "}"
    proto = tools.make_model(text, WEIGHTS)
    _, found = fused(proto)
    assert dict(found.left) == {"its heads are not of one size that is a multiple of 16": 1}


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ("0,0,1,32", "its operands have not the same heads"),  # keys and values that all heads share
        ("0,0,-1,32", "the number or size of its heads is computed"),
    ],
)
def test_keys_of_other_heads_are_left_alone(tools, shape, reason):
    """A product broadcasts them; the operator would refuse them when it runs."""
    own = "own = Constant<value_ints=[" + shape + "]>() "
    split = SPLIT.replace(
        "k3 = Reshape(k, shape) v3 = Reshape(v, shape)", f"{own}k3 = Reshape(k, own) v3 = Reshape(v, own)"
    )
    head = HEAD.replace("T[b,s,n] k, T[b,s,n] v", "T[b,s,m] k, T[b,s,m] v")
    proto = tools.make_model(head + "{ " + split + FORMS["no mask"] + END + "}", WEIGHTS)
    made, found = fused(proto)
    assert dict(found.left) == {reason: 1}
    f = {name: x for name, x in feeds().items() if name != "mask"}
    f |= {name: f[name][..., :32] for name in "kv"}
    f |= {"mask": feeds()["mask"]} if "mask" in {i.name for i in made.graph.input} else {}
    assert session(made).run(None, f)[0].shape == (B, S, H * D)


@pytest.mark.parametrize("convert", [True, False], ids=["converted", "as it was"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_heads_that_follow_from_the_width_of_a_product(tools, bias, convert):
    """transformers since 4.48 writes view(*shape, -1, head size)."""
    rng = np.random.default_rng(1)
    product = "{x}0 = MatMul({x}, w{x}) {x}1 = Add(b{x}, {x}0) " if bias else "{x}1 = MatMul({x}, w{x}) "
    projected = "".join(product.format(x=x) for x in "qkv")
    split = SPLIT.replace("0,0,3,32", "0,0,-1,32")
    for x in "qkv":
        split = split.replace(f"Reshape({x},", f"Reshape({x}1,")
    proto = tools.make_model(
        HEAD + "{ " + projected + split + FORMS["BERT, TorchScript"] + END + "}",
        WEIGHTS
        | {f"w{x}": rng.standard_normal((96, 96), dtype=np.float32) / 10 for x in "qkv"}
        | ({f"b{x}": rng.standard_normal(96, dtype=np.float32) for x in "qkv"} if bias else {}),
    )
    made, found = (mxort.convert(proto, accuracy_level=1), None) if convert else fused(proto)
    counts = made.fused["MultiHeadAttention"] if convert else found.counts()
    assert counts == {"fused": 1}
    model = made.model if convert else made
    want = session(model, library=False).run(None, feeds())[0]
    np.testing.assert_allclose(session(model).run(None, feeds())[0], want, rtol=0, atol=1e-4)


def test_a_conversion_fuses_and_no_fuse_does_not(tools):
    weights = WEIGHTS | {"w": np.random.default_rng(1).standard_normal((96, 96), dtype=np.float32)}
    body = (
        "q0 = MatMul(q, w) " + (SPLIT + FORMS["BERT, TorchScript"]).replace("Reshape(q,", "Reshape(q0,") + END
    )
    proto = tools.make_model(HEAD + "{ " + body + "}", weights)
    for fuse in (True, False):
        report = mxort.convert(proto, fuse=fuse)
        assert [row.op_type for row in report.converted] == ["MatMul"]
        assert ("MultiHeadAttention" in {n.op_type for n in report.model.graph.node}) == fuse


def test_the_report_says_what_was_fused_and_why_other_nodes_were_not(tools):
    weights = WEIGHTS | {"w": np.random.default_rng(1).standard_normal((96, 96), dtype=np.float32)}
    body = "q0 = MatMul(q, w) " + (SPLIT + FORMS["no mask"]).replace("Reshape(q,", "Reshape(q0,")
    other = (
        "r = Reshape(t, wide) rt = Transpose<perm=[0,2,1]>(r) c = MatMul(r, rt) d = Tanh(c) x = Softmax<axis=-1>(d) "
        "e = MatMul(x, r) y = Softmax<axis=-1>(e)"
    )
    end = END.replace("y = Reshape(t, wide)", other)
    report = mxort.convert(tools.make_model(HEAD + "{ " + body + end + "}", weights))
    counts = {"fused": 1, "it has a step that is not known": 1}  # the last Softmax weighs nothing
    assert report.fused == {"MultiHeadAttention": counts}
    assert mxort.Report.from_json(report.to_json()).fused == report.fused
    (line,) = tables.fused(report.fused)
    assert line == "1 x MultiHeadAttention on this library's kernel; 1 left: it has a step that is not known"
