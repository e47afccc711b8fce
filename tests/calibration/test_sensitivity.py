"""What each layer loses: against onnxruntime running the model with that one weight replaced."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from branching import OPERANDS, K, branching, feeds
from mxort.calibration.sensitivity import Options, Probe
from mxort.calibration.site_losses import Sensitivity
from mxort.cli import app as cli
from mxort.conversion.recipe import Recipe
from mxort.errors import MxortError
from mxort.formats import WEIGHT_FORMATS
from mxort.quantize import ALGORITHMS, Settings, dequantize

D, VOCABULARY = 64, 80


def decoder(path, *, output="logits", shape=("batch", "tokens", VOCABULARY)):
    """Tokens -> table -> two layers, one beside the other, a third, a Gemm -> logits; some of them shared."""
    rng = np.random.default_rng(0)

    def tensor(name, *dims, scale=8.0):
        return numpy_helper.from_array(rng.standard_normal(dims, dtype=np.float32) / scale, name)

    constants = [tensor("table", VOCABULARY, D, scale=1), tensor("bias", D)]
    constants += [tensor(f"w{i}", D, D) for i in range(3)] + [tensor("head", D, VOCABULARY, scale=2.0)]
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "input_ids"], ["x"], name="embed"),
        node("MatMul", ["x", "w0"], ["a"], name="a"),
        node("MatMul", ["x", "w1"], ["b0"], name="b"),
        node("Add", ["b0", "bias"], ["b"]),
        node("Mul", ["a", "b"], ["ab"]),
        node("Add", ["ab", "x"], ["y"]),
        node("MatMul", ["y", "w2"], ["c"], name="c"),
        node("MatMul", ["c", "w0"], ["d"], name="d"),
        node("Tanh", ["d"], ["t"]),
        node("Add", ["t", "y"], ["z"]),
        node("MatMul", ["z", "head"], [output], name="head"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, list(shape))],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def model(tmp_path):
    return decoder(tmp_path / "model.onnx")


DATA = [np.random.default_rng(1).integers(0, VOCABULARY, 30 + i) for i in range(3)]


def outputs(path, changed, tokens):
    """The model's output in float64; ``changed`` replaces weights [K, N] at nodes."""
    proto = onnx.load(path)
    for name, weight in changed.items():
        (node,) = (n for n in proto.graph.node if n.name == name)
        node.input[1] = f"changed_{name}"
        proto.graph.initializer.append(numpy_helper.from_array(weight, f"changed_{name}"))
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input_ids": tokens[None]})[0].astype(np.float64)


def rounded(path, node, weight_format):
    """(the weight of a node after rounding, its squared error over its square)."""
    proto = onnx.load(path)
    (name,) = (n.input[1] for n in proto.graph.node if n.name == node)
    (w,) = (numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == name)
    q = ALGORITHMS["rtn"].quantize(
        np.ascontiguousarray(w.T), Settings(column_multiplier=True, weight_format=weight_format)
    )
    restored = (dequantize(q.codes, q.scales, q.element) * q.column_scale[:, None]).T
    return np.ascontiguousarray(restored), float(
        ((restored - w).astype(np.float64) ** 2).sum() / (w**2).sum()
    )


def divergence(p, q):
    log = [x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q)]
    return float((np.exp(log[0]) * (log[0] - log[1])).sum(-1).mean())


def noise(p, q):
    return float(((p - q) ** 2).sum() / (p**2).sum())


RECIPE = Recipe(convert_lm_head=True)


@pytest.mark.parametrize("output", ["logits", "vectors"])
def test_losses_are_those_of_the_model(tmp_path, output):
    path = decoder(tmp_path / "model.onnx", output=output)
    loss = divergence if output == "logits" else noise
    found = Probe(path, DATA, RECIPE, Options(samples=2, threads=1)).sensitivity()
    assert (found.loss, found.samples) == ("KL" if output == "logits" else "noise", 2)
    assert {s.node: s.weight for s in found.sites} == {
        "a": "w0",
        "b": "w1",
        "c": "w2",
        "d": "w0",
        "head": "head",
    }
    assert [s.loss["mxfp4"] for s in found.sites] == sorted(
        (s.loss["mxfp4"] for s in found.sites), reverse=True
    )
    for site in found.sites:
        weight, base = rounded(path, site.node, "mxfp4")
        expected = np.mean(
            [loss(outputs(path, {}, t), outputs(path, {site.node: weight}, t)) for t in DATA[:2]]
        )
        assert site.loss["mxfp4"] == pytest.approx(expected, rel=2e-3, abs=1e-6)
        for name in WEIGHT_FORMATS:
            ratio = rounded(path, site.node, name)[1] / base
            assert site.loss[name] == pytest.approx(site.loss["mxfp4"] * ratio, rel=1e-4)


def test_the_loss_of_a_wider_format_is_about_what_was_said(model):
    """It is inferred from the weight's error: the real one is within half of it where that is not tiny."""
    found = Probe(model, DATA, RECIPE, Options(samples=3, threads=1)).sensitivity()
    for site in found.sites:
        weight, _ = rounded(model, site.node, "mxfp6_e3m2")
        real = np.mean(
            [divergence(outputs(model, {}, t), outputs(model, {site.node: weight}, t)) for t in DATA]
        )
        assert real == pytest.approx(site.loss["mxfp6_e3m2"], rel=0.5, abs=2e-6)


def test_loss_together(model):
    probe = Probe(model, DATA, RECIPE, Options(samples=1, threads=1))
    formats = {"a": "mxfp4", "b": "mxfp8_e4m3", "c": "mxfp6_e3m2", "d": "mxfp6_e2m3", "head": "mxfp4"}
    changed = {node: rounded(model, node, name)[0] for node, name in formats.items()}
    expected = divergence(outputs(model, {}, DATA[0]), outputs(model, changed, DATA[0]))
    assert probe.loss(formats) == pytest.approx(expected, rel=2e-3)


def test_a_cache_is_resumed(model, tmp_path, monkeypatch):
    """The second run measures only what the first has not: here the half line of a run that was stopped."""
    said = []
    options = Options(1, 1, tmp_path / "cache", lambda what, fraction: said.append((what, fraction)))
    first = Probe(model, DATA, RECIPE, options).sensitivity()
    assert [what for what, _ in said[1:]] == [f"measuring {name}" for name in ("a", "b", "c", "d", "head")]
    assert [fraction for _, fraction in said] == sorted(fraction for _, fraction in said)
    (file,) = (tmp_path / "cache").iterdir()
    lines = file.read_text().splitlines()
    assert len(lines) == 5
    file.write_text("\n".join(lines[:4]) + "\n" + lines[4][:20])
    said.clear()
    again = Probe(model, DATA, RECIPE, options).sensitivity()
    assert again == first
    written = file.read_text().splitlines()
    assert written[4:] == [lines[4][:20], lines[4]], "measured again, on a line of its own"
    Probe(model, DATA, RECIPE, options).sensitivity()
    assert file.read_text().splitlines() == written
    Probe(model, DATA[1:], RECIPE, options).sensitivity()
    assert len(list((tmp_path / "cache").iterdir())) == 2, "other data: nothing is known"


@pytest.mark.parametrize(
    "line",
    ["[1, 2]", "3", "null", '{"a": 3}', '{"a": {"mxfp4": 0.5}}', '{"a": {"mxfp4": "x"}}', "{}", "\xff\xfe"],
)
def test_lines_of_another_shape_are_ignored(model, tmp_path, line):
    options = Options(1, 1, tmp_path / "cache")
    first = Probe(model, DATA, RECIPE, options).sensitivity()
    (file,) = (tmp_path / "cache").iterdir()
    kept = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([line.encode("latin-1") + b"\n", *kept[1:]]))
    assert Probe(model, DATA, RECIPE, options).sensitivity() == first


def test_what_is_kept_is_believed(model, tmp_path):
    """So the tests around this one compare with something."""
    options = Options(1, 1, tmp_path / "cache")
    Probe(model, DATA, RECIPE, options).sensitivity()
    (file,) = (tmp_path / "cache").iterdir()
    other = dict.fromkeys(WEIGHT_FORMATS, 0.125)
    file.write_text(json.dumps({"a": other}) + "\n")
    (site,) = (s for s in Probe(model, DATA, RECIPE, options).sensitivity().sites if s.node == "a")
    assert site.loss == other


def test_a_cache_that_cannot_be_written_is_one_warning(model, tmp_path):
    plain = Probe(model, DATA, RECIPE, Options(1, 1)).sensitivity()
    (tmp_path / "file").write_text("no folder")
    with pytest.warns(RuntimeWarning, match="finished sites are not kept") as said:
        assert Probe(model, DATA, RECIPE, Options(1, 1, tmp_path / "file")).sensitivity() == plain
    assert len(said) == 1
    probe = Probe(model, DATA, RECIPE, Options(1, 1, tmp_path / "gone"))
    (tmp_path / "gone").rmdir()
    with pytest.warns(RuntimeWarning, match="finished sites are not kept") as said:
        assert probe.sensitivity() == plain
    assert len(said) == 1


def test_nodes_of_one_name_have_losses_of_their_own(model):
    """The second's weight is one that MXFP4 holds: it loses nothing, whatever the first of its name does."""
    proto = onnx.load(model)
    for node in proto.graph.node:
        if node.name in ("a", "b"):
            node.name = "MatMul"
    (weight,) = (t for t in proto.graph.initializer if t.name == "w1")
    weight.CopyFrom(numpy_helper.from_array(np.ones((D, D), np.float32) * 6, "w1"))
    onnx.save(proto, model)
    found = Probe(model, DATA, RECIPE, Options(1, 1)).sensitivity()
    loss = {
        site.weight: site.loss["mxfp4"]
        for site in found.sites
        if site.weight == "w1" or site.node == "MatMul"
    }
    assert loss["w1"] == 0 < loss["w0"]
    assert len({site.node for site in found.sites}) == len(found.sites) == 5


def test_what_is_not_reached_is_said(tmp_path):
    path = decoder(tmp_path / "model.onnx")
    proto = onnx.load(path)
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["z", "w1"], ["inside"], name="inner")],
        "then",
        [],
        [helper.make_tensor_value_info("inside", TensorProto.FLOAT, None)],
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    proto.graph.node[-1].input[0] = "chosen"
    proto.graph.node.insert(
        len(proto.graph.node) - 1,
        helper.make_node("If", ["yes"], ["chosen"], then_branch=inner, else_branch=inner),
    )
    onnx.save(proto, path)
    found = Probe(path, DATA, RECIPE, Options(samples=1, threads=1)).sensitivity()
    assert list(found.skipped.values()) == ["inside a subgraph: not calibrated"] * 2, "one in each branch"


def test_json(model, tmp_path, capsys):
    np.save(tmp_path / "data.npy", DATA[0])
    common = ["--threads", "1", "--samples", "1", "--convert-lm-head"]
    assert cli.main(["sensitivity", str(model), "--data", str(tmp_path / "data.npy"), "--json", *common]) == 0
    text = capsys.readouterr().out
    found = Sensitivity.from_dict(json.loads(text))
    assert found == Probe(model, DATA, RECIPE, Options(samples=1, threads=1)).sensitivity()
    assert cli.main(["sensitivity", str(model), "--data", str(tmp_path / "data.npy"), *common]) == 0
    assert "sum of KL" in capsys.readouterr().out
    (tmp_path / "s.json").write_text(text)
    arguments = ["convert", str(model), "-o", str(tmp_path / "out.onnx"), "--convert-lm-head", "--json"]
    given = ["--budget-bits", "4.8", "--sensitivity", str(tmp_path / "s.json")]
    assert cli.main([*arguments, *given]) == 0
    report = json.loads(capsys.readouterr().out)
    stored = [s for s in report["sites"] if s["converted_bytes"] and s["op_type"] == "MatMul"]
    bits = 8 * sum(s["converted_bytes"] for s in stored) / sum(s["K"] * s["N"] for s in stored)
    assert 4.25 < bits <= 4.8
    assert {s["weight_format"] for s in stored} == {"mxfp4", "mxfp6_e2m3"}
    calibrated = ["--target-kl", "0.02", "--calibration", str(tmp_path / "data.npy"), "--threads", "1"]
    assert cli.main([*arguments, *calibrated]) == 0
    assert "mxfp6_e2m3" in capsys.readouterr().out


def test_a_sensitivity_of_another_model_is_refused(model, tmp_path, capsys):
    found = Probe(model, DATA, RECIPE, Options(samples=1, threads=1)).sensitivity()
    (tmp_path / "s.json").write_text(json.dumps(found.to_dict()))
    other = decoder(tmp_path / "other.onnx", output="vectors")
    given = ["--budget-bits", "5", "--sensitivity", str(tmp_path / "s.json")]
    assert cli.main(["convert", str(other), "-o", str(tmp_path / "out.onnx"), *given]) == 2
    assert "measured on another model" in capsys.readouterr().err
    assert not (tmp_path / "out.onnx").exists()


def test_gemm_transposed_operands_and_sites_side_by_side(tmp_path):
    """The model that tries calibration, its two outputs weighing the same."""
    path = branching(tmp_path / "model.onnx")
    data = [{"x": x["x"] / 4} for x in feeds(2, rows=K)]
    found = Probe(path, data, Recipe(), Options(samples=2, threads=1)).sensitivity()
    assert {s.node for s in found.sites} == set(OPERANDS)
    assert set(found.skipped) == {"inside"}
    before = [ort.InferenceSession(path).run(None, d) for d in data]
    for site in found.sites:
        changed = onnx.load(path)
        (node,) = (n for n in changed.graph.node if n.name == site.node)
        (tensor,) = (t for t in changed.graph.initializer if t.name == node.input[1])
        weight = numpy_helper.to_array(tensor)
        rows = weight if node.op_type == "Gemm" else weight.T  # transB
        q = ALGORITHMS["rtn"].quantize(np.ascontiguousarray(rows), Settings(column_multiplier=True))
        restored = dequantize(q.codes, q.scales) * q.column_scale[:, None]
        tensor.CopyFrom(
            numpy_helper.from_array(
                np.ascontiguousarray(restored if node.op_type == "Gemm" else restored.T), tensor.name
            )
        )
        session = ort.InferenceSession(changed.SerializeToString())
        after = [session.run(None, d) for d in data]
        expected = np.mean(
            [
                np.mean([noise(p.astype(np.float64), q) for p, q in zip(*pair, strict=True)])
                for pair in zip(before, after, strict=True)
            ]
        )
        assert site.loss["mxfp4"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget-bits", "5"], "expected --calibration, or --sensitivity"),
        (["--sensitivity", "nowhere.json"], "expected --budget-bits or --target-kl too"),
        (["--budget-bits", "5", "--sensitivity", "nowhere.json"], "nowhere.json: cannot be read"),
        (["--budget-bits", "5", "--sensitivity", "{bad}"], "bad.json: not a sensitivity of mxort"),
        (["--budget-bits", "5", "--sensitivity", "{empty}"], "not a sensitivity of mxort"),
        (["--budget-bits", "0"], "expected a number above 0"),
        (["--budget-bits", "5", "--target-kl", "1"], "not allowed with"),
        (["--layer-formats", "a"], "expected PATTERN=FORMAT"),
        (["--layer-formats", "a=fp4"], "expected PATTERN=FORMAT"),
        (["--weight-format", "fp4"], "unknown weight_format"),
    ],
)
def test_bad_arguments(model, tmp_path, capsys, arguments, message):
    (tmp_path / "bad.json").write_text('{"sites": 3}')
    (tmp_path / "empty.json").write_text("[]")
    places = {"bad": str(tmp_path / "bad.json"), "empty": str(tmp_path / "empty.json")}
    line = ["convert", str(model), "-o", str(tmp_path / "out.onnx"), *(a.format(**places) for a in arguments)]
    try:
        status = cli.main(line)
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert (status, len(error.splitlines())) == (2, 1)
    assert message in error
    assert not (tmp_path / "out.onnx").exists()


def test_no_float_output(tmp_path):
    path = decoder(tmp_path / "model.onnx")
    proto = onnx.load(path)
    proto.graph.node.append(helper.make_node("ArgMax", ["logits"], ["best"], axis=-1, keepdims=0))
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("best", TensorProto.INT64, ["batch", "tokens"]))
    onnx.save(proto, path)
    with pytest.raises(MxortError, match="no float output"):
        Probe(path, DATA, RECIPE, Options(samples=1, threads=1)).sensitivity()


def product(path, weight, bias=None, output="y"):
    """One MatMul, and an Add of ``bias``."""
    k, n = weight.shape
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.zeros(n, np.float32), "b")]
    if bias is not None:
        constants[1] = numpy_helper.from_array(bias, "b")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="fc"),
        helper.make_node("Add", ["h", "b"], [output]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", d])
        for name, d in (("x", k), (output, n))
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_outputs_that_overflow_are_an_error_that_names_the_node(tmp_path):
    """3.4e38 is finite; the nearest MXFP4 number, 4 * 2^126, is 2^128, which float32 has not."""
    weight = np.ones((32, 40), np.float32)
    weight[3, 2] = 3.4e38
    path, recipe = product(tmp_path / "m.onnx", weight), Recipe(column_multiplier=False)
    probe = Probe(path, [{"x": np.full((3, 32), 1e-30, np.float32)}], recipe, Options(threads=1))
    with pytest.raises(MxortError, match="node 'fc': with its weight in mxfp4 the outputs are not finite"):
        probe.sensitivity()
    with pytest.raises(MxortError, match="with all weights quantised the outputs are not finite"):
        probe.loss({"fc": "mxfp4"})


def test_a_masked_vocabulary(tmp_path):
    """Classes of -inf lose nothing, and what the others lose is what is lost without them."""
    weight = np.random.default_rng(0).standard_normal((64, 40)).astype(np.float32) / 4
    data = [{"x": np.random.default_rng(1).standard_normal((20, 64)).astype(np.float32)}]
    mask = np.where(np.arange(40) < 30, 0, -np.inf).astype(np.float32)
    path = product(tmp_path / "m.onnx", weight, mask, "logits")
    (site,) = Probe(path, data, RECIPE, Options(threads=1)).sensitivity().sites
    restored, _ = rounded(path, "fc", "mxfp4")
    exact = [data[0]["x"].astype(np.float64) @ w[:, :30] for w in (weight, restored)]
    # Logits below 16 in float32, products of 64 terms and sums of 30.
    assert site.loss["mxfp4"] == pytest.approx(divergence(*exact), abs=16 * 94 * 2.0**-24)
    assert site.loss["mxfp4"] > 1e-3


def test_positions_of_padding_are_left_out_and_counted(tmp_path):
    weight = np.random.default_rng(0).standard_normal((64, 40)).astype(np.float32) / 4
    x = np.random.default_rng(1).standard_normal((20, 64)).astype(np.float32)
    path = product(tmp_path / "m.onnx", weight)
    plain, padded = (
        Probe(path, [{"x": rows}], Recipe(), Options(threads=1)).sensitivity()
        for rows in (x, np.concatenate([np.full((2, 64), np.nan, np.float32), x]))
    )
    assert (plain.left_out, padded.left_out) == (0, 2)
    assert padded.sites[0].loss["mxfp4"] == pytest.approx(plain.sites[0].loss["mxfp4"], rel=64 * 2.0**-24)
