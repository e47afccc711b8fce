"""The output projection of a language model is recognised, however it hides."""

from __future__ import annotations

import numpy as np
import pytest

import mxort

VOCABULARY, HIDDEN = 160, 64
TABLE = np.random.default_rng(3).standard_normal((VOCABULARY, HIDDEN), dtype=np.float32)
LAYER = np.random.default_rng(4).standard_normal((HIDDEN, HIDDEN), dtype=np.float32)
START = "(int64[b,s] ids) => (T[b,s,v] {out}) {{ e = Gather(table, ids) h = MatMul(e, layer) "

TIED = {
    "same table, transposed": ("t = Transpose(table) {out} = MatMul(h, t) }}", {}),
    "same table, Gemm": (
        "s = Constant<value_ints=[-1,64]>() f = Reshape(h, s) {out} = Gemm<transB=1>(f, table) }}",
        {},
    ),
    "transposed copy": ("{out} = MatMul(h, head) }}", {"head": np.ascontiguousarray(TABLE.T)}),
    "plain copy behind a Transpose": (
        "t = Transpose<perm=[1,0]>(head) {out} = MatMul(h, t) }}",
        {"head": TABLE.copy()},
    ),
    "table behind a Transpose": ("{out} = MatMul(h, head) }}", {"head": np.ascontiguousarray(TABLE.T)}),
}


def build(tools, body, weights, out="scores"):
    text = (START + body).format(out=out)
    weights = {"table": TABLE, "layer": LAYER, **weights}
    if "Gemm" in body:
        text = text.replace(f"T[b,s,v] {out}", f"T[r,v] {out}")
    return tools.make_model(text, weights)


@pytest.mark.parametrize(("body", "weights"), TIED.values(), ids=TIED)
def test_tied_head_is_kept(tools, body, weights):
    model = build(tools, body, weights)
    report = mxort.convert(model, table_format="float")
    assert [s.weight for s in report.converted] == ["layer"]
    (head,) = [s for s in report.skipped if s.op_type != "Gather"]
    assert head.reason == "lm_head: shares its table with the embedding 'Gather_0' (table_format float)"

    for options, weight_format in (({"convert_lm_head": True}, "mxfp4"), ({}, "mxint8")):
        report = mxort.convert(model, **options)
        assert [s.weight_format for s in report.converted] == [weight_format, "mxfp4", weight_format]
        assert [s.converted_bytes > 0 for s in report.converted] == [True, True, False], "one table for both"
        assert {t.name for t in report.model.graph.initializer}.isdisjoint({"table", "head"})


def test_head_that_shares_a_transposed_table(tools):
    """The initializer is W, and the embedding reads it through a Transpose."""
    text = (
        "(int64[b,s] ids) => (T[b,s,v] scores) { t = Transpose(w) e = Gather(t, ids) scores = MatMul(e, w) }"
    )
    report = mxort.convert(tools.make_model(text, {"w": np.ascontiguousarray(TABLE.T)}), table_format="float")
    assert report.converted == ()


@pytest.mark.parametrize("tail", ["", "Add", "Cast", "soft cap"])
def test_head_that_feeds_logits_is_kept(tools, tail):
    tails = {
        "": "logits = MatMul(h, head) }}",
        "Add": "p = MatMul(h, head) logits = Add(p, c) }}",
        "Cast": "p = MatMul(h, head) logits = Cast<to=1>(p) }}",
        "soft cap": "p = MatMul(h, head) q = Div(p, c) r = Tanh(q) logits = Mul(r, c) }}",
    }
    weights = {"head": np.ascontiguousarray(TABLE.T) + 1, "c": np.ones(VOCABULARY, np.float32)}
    report = mxort.convert(build(tools, tails[tail], weights, out="logits"), table_format="float")
    assert [s.weight for s in report.converted] == ["layer"]
    (head,) = [s for s in report.skipped if s.weight == "head"]
    assert head.reason == "lm_head: feeds the output 'logits' (table_format float)"


def test_untied_projection_to_the_vocabulary_is_kept_whatever_its_output_is_called(tools):
    """As torch's exporter names it: linear_14."""
    weights = {"head": np.ascontiguousarray(TABLE.T) * np.float32(1.0001)}
    model = build(tools, "{out} = MatMul(h, head) }}", weights, out="linear_14")
    report = mxort.convert(model, table_format="float")
    assert [s.weight for s in report.converted] == ["layer"]
    (head,) = [s for s in report.skipped if s.weight == "head"]
    assert head.reason == "lm_head: from the embedding's size to the output 'linear_14' (table_format float)"


def test_projection_to_something_else_is_converted(tools):
    weights = {"head": np.ascontiguousarray(TABLE[:-32].T) * np.float32(1.0001)}
    report = mxort.convert(build(tools, "{out} = MatMul(h, head) }}", weights))
    assert [s.weight for s in report.converted] == ["layer", "head"]


def test_a_small_table_is_no_vocabulary(tools):
    """A model has tables of positions and of token types too: what counts is the largest."""
    text = (
        "(int64[b,s] ids, int64[b,s] positions) => (T[b,s,v] out) "
        "{ e = Gather(table, ids) p = Gather(small, positions) x = Add(e, p) out = MatMul(x, square) }"
    )
    weights = {"table": TABLE, "small": TABLE[:HIDDEN], "square": LAYER}
    report = mxort.convert(tools.make_model(text, weights), table_format="float")
    assert [s.weight for s in report.converted] == ["square"]


def test_layer_before_a_nonlinearity_is_no_head(tools):
    """Softmax, attention or another product between a layer and the logits makes it an ordinary layer."""
    body = "r = Relu(h) logits = MatMul(r, head) }}"
    model = build(tools, body, {"head": np.ascontiguousarray(TABLE.T) + 1}, out="logits")
    report = mxort.convert(model, table_format="float")
    assert [s.weight for s in report.converted] == ["layer"]
