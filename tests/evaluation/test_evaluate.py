"""Evaluation against figures computed the long way, on models whose outputs are known."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import mxort
from mxort.errors import MxortError
from mxort.evaluation.evaluate import evaluate, rank_agreement

VOCABULARY = 50


def lookup(path, seed, output="logits", noise=0.0, pool=False, width=VOCABULARY):
    """input_ids -> a row of a table for each token; noise as much as a conversion might add."""
    table = np.random.default_rng(0).standard_normal((VOCABULARY, width), dtype=np.float32)
    table += noise * np.random.default_rng(seed).standard_normal(table.shape, dtype=np.float32)
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["rows" if pool else output])]
    if pool:
        nodes.append(helper.make_node("ReduceMean", ["rows"], [output], axes=[1], keepdims=0))
    value = helper.make_tensor_value_info
    inputs = [value(name, TensorProto.INT64, ["b", "s"]) for name in ("input_ids", "attention_mask")]
    # Models export by-products before what they are for: integers are passed over.
    nodes.append(helper.make_node("Identity", ["input_ids"], ["by-product"]))
    outputs = [value("by-product", TensorProto.INT64, ["b", "s"]), value(output, TensorProto.FLOAT, None)]
    # The mask is an input that nothing reads: onnxruntime keeps it in the interface.
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(table, "table")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return table.astype(np.float64)


def softmax(x):
    e = np.exp(x)
    return e / e.sum(axis=-1, keepdims=True)


@pytest.fixture
def data():
    rng = np.random.default_rng(5)
    return [rng.integers(0, VOCABULARY, n) for n in (7, 300, 40)]


def test_decoder(tmp_path, data):
    tables = [lookup(tmp_path / "a.onnx", 1), lookup(tmp_path / "b.onnx", 1, noise=0.5)]
    result = evaluate(tmp_path / "a.onnx", tmp_path / "b.onnx", data, threads=1)
    assert (result.kind, result.samples, result.predictions) == ("decoder", 3, 7 + 300 + 40 - 3)
    losses, divergences, same = ([], []), [], []
    for tokens in data:
        p, q = (softmax(table[tokens]) for table in tables)
        for kept, x in zip(losses, (p, q), strict=True):
            kept += [-np.log(x[i, tokens[i + 1]]) for i in range(len(tokens) - 1)]
        divergences += [(p[i] * np.log(p[i] / q[i])).sum() for i in range(len(tokens))]
        same += [p[i].argmax() == q[i].argmax() for i in range(len(tokens))]
    expected = {
        "perplexity_reference": np.exp(np.mean(losses[0])),
        "perplexity": np.exp(np.mean(losses[1])),
        "kl": np.mean(divergences),
        "top1": np.mean(same),
    }
    assert result.metrics == pytest.approx(expected, rel=1e-5)
    assert 0.2 < result.metrics["top1"] < 1


def test_a_model_against_itself(tmp_path, data):
    lookup(tmp_path / "a.onnx", 1)
    metrics = evaluate(tmp_path / "a.onnx", tmp_path / "a.onnx", data).metrics
    assert (metrics["kl"], metrics["top1"]) == (0, 1)
    assert metrics["perplexity"] == metrics["perplexity_reference"]


def test_padding_does_not_count(tmp_path, data):
    lookup(tmp_path / "a.onnx", 1)
    lookup(tmp_path / "b.onnx", 1, noise=0.5)
    padded = []
    for tokens in data:
        mask = np.ones((1, len(tokens) + 9), np.int64)
        mask[:, len(tokens) :] = 0
        padded.append({"input_ids": np.pad(tokens, (0, 9))[None], "attention_mask": mask})
    plain, with_padding = (evaluate(tmp_path / "a.onnx", tmp_path / "b.onnx", d) for d in (data, padded))
    assert with_padding.metrics == pytest.approx(plain.metrics, rel=1e-12)
    assert with_padding.predictions == plain.predictions


def test_classifier(tmp_path, data):
    for name, noise in (("a", 0.0), ("b", 1.0)):
        lookup(tmp_path / f"{name}.onnx", 1, noise=noise, pool=True, width=4)
    result = evaluate(tmp_path / "a.onnx", tmp_path / "b.onnx", data)
    assert (result.kind, result.predictions, set(result.metrics)) == ("classifier", 3, {"kl", "top1"})
    assert result.metrics["kl"] > 0


def test_embedding(tmp_path, data):
    tables = [
        lookup(tmp_path / "a.onnx", 1, "y", width=16),
        lookup(tmp_path / "b.onnx", 1, "y", 0.3, width=16),
    ]
    many = [tokens[:5] + i for i in range(4) for tokens in ((data[1] - 4).clip(0), (data[2] - 4).clip(0))]
    result = evaluate(tmp_path / "a.onnx", tmp_path / "b.onnx", many)
    pair = [np.stack([table[tokens].mean(axis=0) for tokens in many]) for table in tables]
    pair = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in pair]
    assert (result.kind, result.predictions) == ("embedding", 8)
    assert result.metrics["cosine"] == pytest.approx((pair[0] * pair[1]).sum(axis=1).mean(), rel=1e-6)
    assert result.metrics["rank_agreement"] == pytest.approx(rank_agreement(*pair), rel=1e-6)
    assert 0.3 < result.metrics["rank_agreement"] < 1


def test_rank_agreement():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 8))
    assert rank_agreement(x, x) == pytest.approx(1)
    assert rank_agreement(x, 3 * x) == pytest.approx(1), "only the order counts"
    assert abs(rank_agreement(x, rng.standard_normal((30, 8)))) < 0.2


def test_models_that_do_not_match(tmp_path, data):
    lookup(tmp_path / "a.onnx", 1)
    lookup(tmp_path / "b.onnx", 1, width=4)
    with pytest.raises(MxortError, match=r"b.onnx: output logits is \(1, 7, 4\), expected \(1, 7, 50\)"):
        evaluate(tmp_path / "a.onnx", tmp_path / "b.onnx", data)
    lookup(tmp_path / "c.onnx", 1, "other")
    with pytest.raises(mxort.MxortError, match=r"c.onnx: fails to run"):
        evaluate(tmp_path / "a.onnx", tmp_path / "c.onnx", data)


def logits_model(path, table):
    """input_ids -> the row of the table for each token."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["logits"])],
        "g",
        [value("input_ids", TensorProto.INT64, ["b", "s"])],
        [value("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.float32(table), "table")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_masked_vocabulary(tmp_path):
    """-inf in both: as if the classes were not there. Where only the reference excludes one, q's part of it is lost."""
    p = np.array([[1.0, 2.0, -np.inf, 0.0], [0.0, 1.0, -np.inf, 3.0]])
    q = np.array([[1.5, 2.0, -np.inf, 0.5], [0.0, 1.0, 2.0, 3.0]])
    a, b = logits_model(tmp_path / "a.onnx", p), logits_model(tmp_path / "b.onnx", q)
    result = evaluate(a, b, [np.array([0, 1, 0, 1])])
    pairs = [(softmax(first), softmax(second)) for first, second in zip(p, q, strict=True)]
    kl = [sum(x * np.log(x / y) for x, y in zip(*pair, strict=True) if x > 0) for pair in pairs]
    tokens = [0, 1, 0, 1]
    loss = -np.mean([np.log(softmax(q[tokens[i]])[tokens[i + 1]]) for i in range(3)])
    assert result.metrics["kl"] == pytest.approx(np.mean([kl[t] for t in tokens]), rel=1e-6)
    assert result.metrics["perplexity"] == pytest.approx(np.exp(loss), rel=1e-6)
    assert "left_out" not in result.metrics


def test_rows_that_are_no_distribution(tmp_path):
    """The reference's are left out and counted; the converted model's alone make the figures infinite."""
    fine = np.array([[1.0, 2.0, 3.0], [3.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    bad = fine.copy()
    bad[1, 1], bad[2] = np.nan, -np.inf
    a, b = logits_model(tmp_path / "a.onnx", fine), logits_model(tmp_path / "b.onnx", bad)
    data = [np.array([0, 1, 2, 0, 1])]
    metrics = evaluate(b, a, data).metrics
    assert metrics["left_out"] == 3
    assert metrics["kl"] == 0
    assert metrics["perplexity"] == pytest.approx(metrics["perplexity_reference"])
    broken = evaluate(a, b, data)
    assert broken.metrics["kl"] == broken.metrics["perplexity"] == np.inf
    assert "left_out" not in broken.metrics


def test_a_token_beyond_the_vocabulary(tmp_path):
    a = logits_model(tmp_path / "a.onnx", np.zeros((9, 7)))
    with pytest.raises(MxortError, match="a token is 8, expected at most 6"):
        evaluate(a, a, [np.array([0, 8])])


@pytest.mark.parametrize("classes", [VOCABULARY, 5000])
def test_logits_in_small_pieces(tmp_path, data, monkeypatch, classes):
    tables = [np.random.default_rng(i).standard_normal((VOCABULARY, classes)) for i in range(2)]
    a, b = (logits_model(tmp_path / f"{i}.onnx", table) for i, table in enumerate(tables))
    whole = evaluate(a, b, data)
    monkeypatch.setattr("mxort.evaluation.evaluate._LOGITS_AT_ONCE", 10)
    assert evaluate(a, b, data).metrics == pytest.approx(whole.metrics, rel=1e-12)


def test_it_says_how_far_it_is(tmp_path, data):
    said = []
    for name, noise in (("a", 0.0), ("b", 0.5)):
        lookup(tmp_path / f"{name}.onnx", 1, noise=noise)
    result = evaluate(
        tmp_path / "a.onnx", tmp_path / "b.onnx", data, progress=lambda what, _: said.append(what)
    )
    assert len(said) == 3
    assert said[-1] == "3 samples: " + ", ".join(f"{k} {v:.4f}" for k, v in result.metrics.items())
