"""Embedding tables become GatherMX..., and one packed table serves a tied output projection too."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import mxort
from mxort import cli
from mxort.conversion.inspection import inspect
from mxort.converters import functions
from mxort.formats import WEIGHT_FORMATS

V, K = 160, 72
EMBED = "(int64[b,s] ids) => (T[b,s,k] y) { y = Gather(table, ids) }"
TIED = {
    "the same table, transposed": ("t = Transpose(table) y = MatMul(e, t)", False),
    "the same table, Gemm": (
        "s = Constant<value_ints=[-1,72]>() f = Reshape(e, s) y = Gemm<transB=1>(f, table)",
        False,
    ),
    "a transposed copy": ("y = MatMul(e, head)", True),
}
OPTIONS = {"convert_embedding": True, "table_format": "mxfp4", "min_elements": 0}


@pytest.fixture
def table(rng):
    return rng.standard_normal((V, K), dtype=np.float32)


@pytest.fixture
def ids(rng):
    return rng.integers(-V, V, (2, 5))


def rounded(tools, table):
    """The table that MXFP4 makes of it: W^T of a matrix product with as many columns as it has rows."""
    return np.ascontiguousarray(tools.fake_quantize(np.ascontiguousarray(table.T)).T)


def ours(model):
    return [node for node in model.graph.node if node.domain == functions.DOMAIN]


def tied(tools, body, copy, table, dtype="float"):
    rank = "T[r,v] y" if "Gemm" in body else "T[b,s,v] y"
    text = f"(int64[b,s] ids) => ({rank}) {{ e = Gather(table, ids) {body} }}"
    weights = {"table": table} | ({"head": np.ascontiguousarray(table.T)} if copy else {})
    return tools.make_model(text, weights, dtype=dtype)


def assert_runs_as(tools, model, original, feeds, **tolerance):
    onnx.checker.check_model(model, full_check=True)
    (want,) = tools.run_reference(original, feeds)
    for run in (tools.run_reference, tools.run_onnxruntime):
        (got,) = run(model, feeds)
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, **tolerance)


@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_a_table(tools, table, ids, dtype):
    """Rows are looked up, not computed with: the very numbers of the rounded table."""
    typed = table.astype(np.float16).astype(np.float32) if dtype == "float16" else table
    report = mxort.convert(tools.make_model(EMBED, {"table": typed}, dtype=dtype), **OPTIONS)
    expected = tools.make_model(EMBED, {"table": rounded(tools, typed)}, dtype=dtype)
    assert_runs_as(tools, report.model, expected, {"ids": ids}, rtol=0, atol=0)
    (row,) = report.converted
    assert (row.op_type, row.K, row.N, row.algorithm, row.rotation) == ("Gather", K, V, "rtn", 1)
    assert [f.name for f in report.model.functions] == ["GatherMXFP4"]
    assert "table" not in {t.name for t in report.model.graph.initializer}
    assert ("Cast" in {n.op_type for n in report.model.graph.node}) == (dtype == "float16")


def test_indices_of_32_bits(tools, table, ids):
    text = EMBED.replace("int64", "int32")
    report = mxort.convert(tools.make_model(text, {"table": table}), **OPTIONS)
    expected = tools.make_model(text, {"table": rounded(tools, table)})
    assert_runs_as(tools, report.model, expected, {"ids": ids.astype(np.int32)}, rtol=0, atol=0)


@pytest.mark.parametrize("recipe", [{}, {"rotation": 32, "algorithm": "rtn"}], ids=["default", "rotation"])
@pytest.mark.parametrize(("body", "copy"), TIED.values(), ids=TIED)
def test_a_tied_table_is_packed_once(tools, table, ids, body, copy, recipe):
    report = mxort.convert(tied(tools, body, copy, table), **OPTIONS, **recipe)
    gather, matmul = ours(report.model)
    assert list(gather.input[1:3]) == list(matmul.input[1:3]), "two tables"
    assert {t.name for t in report.model.graph.initializer}.isdisjoint({"table", "head"})
    assert [row.converted_bytes > 0 for row in report.converted] == [True, False]
    want = tied(tools, body, copy, rounded(tools, table))
    # The sums of 72 products are added in different orders: 2 K eps |a| |w|, the rows' norms being below 15.
    assert_runs_as(tools, report.model, want, {"ids": ids}, rtol=0, atol=2 * K * 2.0**-24 * 15**2)


def test_a_table_that_a_float_head_reads_is_left_alone(tools, table):
    body, copy = TIED["the same table, transposed"]
    report = mxort.convert(tied(tools, body, copy, table), table_format="float", min_elements=0)
    reasons = {row.op_type: row.reason for row in report.skipped}
    assert reasons["Gather"] == "shares its table with 'MatMul_2', which is left alone"
    assert reasons["MatMul"].startswith("lm_head: ")
    assert report.converted == ()


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        (EMBED, {"convert_embedding": False}, "an embedding table (convert_embedding)"),
        (EMBED, {"exclude": ("Gather*",)}, "excluded by pattern 'Gather*'"),
        (
            EMBED,
            {"min_elements": V * K + 1},
            f"weight has {V * K} elements, fewer than min_elements = {V * K + 1}",
        ),
        (EMBED.replace("Gather(", "Gather<axis=1>("), {}, "an embedding table (convert_embedding)"),
    ],
)
def test_left_alone(tools, table, text, options, reason):
    report = mxort.convert(tools.make_model(text, {"table": table}), **OPTIONS | options)
    assert report.converted == ()
    assert [row.reason for row in report.skipped] in ([reason], [])


def test_shapes_are_no_tables(tools, table):
    """The Gathers that exporters make of shapes have computed data; they are not even mentioned."""
    text = "(T[b,s] x) => (int64 y) { i = Constant<value_int=1>() s = Shape(x) y = Gather(s, i) }"
    assert mxort.convert(tools.make_model(text, {}), **OPTIONS).sites == ()


def test_two_tables_share_an_initializer(tools, table, ids):
    text = "(int64[b,s] ids) => (T[b,s,k] y) { a = Gather(table, ids) b = Gather<axis=-2>(table, ids) y = Add(a, b) }"
    report = mxort.convert(tools.make_model(text, {"table": table}), **OPTIONS)
    assert len(report.converted) == 2
    first, second = ours(report.model)
    assert first.input[1:] == second.input[1:]


def test_calibration_of_a_tied_table(tools, table, ids):
    """It is calibrated for the projection, not rotated, and still one table."""
    pytest.importorskip("torch")
    model = tied(tools, "m = MatMul(e, layer) t = Transpose(table) y = MatMul(m, t)", False, table)
    layer = np.random.default_rng(5).standard_normal((K, K), dtype=np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(layer, "layer"))
    report = mxort.convert(model, calibration=[{"ids": ids} for _ in range(4)], **OPTIONS)
    rows = [(row.op_type, row.algorithm, row.rotation) for row in report.converted]
    assert rows == [("Gather", "mr-gptq", 1), ("MatMul", "mr-gptq", 32), ("MatMul", "mr-gptq", 1)]
    gather, _, head = ours(report.model)
    assert list(gather.input[1:3]) == list(head.input[1:3])


def test_an_embedding_alone_is_not_calibrated(tools, table, ids, rng):
    pytest.importorskip("torch")
    text = "(int64[b,s] ids) => (T[b,s,k] y) { e = Gather(table, ids) y = MatMul(e, w) }"
    model = tools.make_model(text, {"table": table, "w": rng.standard_normal((K, K), dtype=np.float32)})
    report = mxort.convert(model, calibration=[{"ids": ids} for _ in range(4)], **OPTIONS)
    rows = [(row.op_type, row.algorithm, row.note) for row in report.converted]
    note = "an embedding has no operand to calibrate on"
    assert rows == [("Gather", "rtn", note), ("MatMul", "mr-gptq", rows[1][2])]


def test_inspection_of_the_converted(tools, table, tmp_path):
    path, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(tools.make_model(EMBED, {"table": table}), path)
    mxort.convert(path, out, **OPTIONS)
    (row,) = inspect(out).sites
    assert (row.op_type, row.K, row.N) == ("GatherMXFP4", K, V)


@pytest.mark.parametrize("copy", [False, True], ids=["tied", "untied"])
def test_a_language_model_by_default(tools, table, ids, copy):
    """Output projection and embedding in MXINT8, in one table where it was one; the layers in MXFP4."""
    model = language_model(tools, table, copy)
    report = mxort.convert(model)
    rows = [(row.op_type, row.weight_format, row.converted_bytes > 0) for row in report.converted]
    assert rows == [("Gather", "mxint8", True), ("MatMul", "mxfp4", True), ("MatMul", "mxint8", copy)]
    assert [f.name for f in report.model.functions] == ["GatherMXINT8", "MatMulMXFP4", "MatMulMXINT8"]
    assert min(row.sqnr_db for row in report.converted) > 18
    assert {row.weight_format: row.sqnr_db > 38 for row in report.converted} == {
        "mxint8": True,
        "mxfp4": False,
    }
    (want,) = tools.run_reference(report.model, {"ids": ids})
    (got,) = tools.run_onnxruntime(report.model, {"ids": ids})
    assert np.linalg.norm(got - want) < 1e-5 * np.linalg.norm(want), "the function does not round activations"
    onnx.checker.check_model(report.model, full_check=True)


def language_model(tools, table, copy):
    head = "MatMul(m, head)" if copy else "MatMul(m, t)"
    body = f"e = Gather(table, ids) m = MatMul(e, layer) t = Transpose(table) y = {head}"
    text = f"(int64[b,s] ids) => (T[b,s,v] y) {{ {body} }}"
    layer = np.random.default_rng(5).standard_normal((K, K), dtype=np.float32)
    weights = {"table": table, "layer": layer}
    if copy:
        text = text.replace("t = Transpose(table) ", "")
        weights["head"] = np.random.default_rng(6).standard_normal((K, V), dtype=np.float32)
    return tools.make_model(text, weights)


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({}, ["mxint8", "mxfp4", "mxint8"]),
        ({"table_format": "float"}, ["mxfp4"]),
        ({"table_format": "mxfp6_e2m3"}, ["mxfp6_e2m3", "mxfp4", "mxfp6_e2m3"]),
        ({"convert_lm_head": True}, ["mxfp4"] * 3),
        ({"weight_format": "mxfp8_e4m3"}, ["mxint8", "mxfp8_e4m3", "mxint8"]),
        ({"layer_formats": ("Gather*=mxfp8_e4m3",)}, ["mxfp8_e4m3", "mxfp4", "mxfp8_e4m3"]),
        ({"layer_formats": ("MatMul_3=mxfp4", "Gather*=mxfp8_e4m3")}, ["mxfp4"] * 3),
        ({"exclude": ("MatMul_3",)}, ["mxfp4"]),
        ({"exclude": ("Gather*",)}, ["mxfp4", "mxint8"]),
        ({"op_types": ("Gemm",)}, []),
    ],
)
def test_formats_of_a_tied_table(tools, table, options, want):
    report = mxort.convert(language_model(tools, table, False), **options)
    assert [row.weight_format for row in report.converted] == want


def test_a_wide_table_is_rounded_plainly_whatever_the_layers_get(tools, table, ids):
    pytest.importorskip("torch")
    model = language_model(tools, table, False)
    options = {"activation_format": "mxfp4", "calibration": [{"ids": ids} for _ in range(4)]}
    report = mxort.convert(model, **options)
    rows = [(r.algorithm, r.rotation, r.activation_format, r.accuracy_level) for r in report.converted]
    assert rows == [("rtn", 1, "none", 4), ("mr-gptq", 32, "mxfp4", 0), ("rtn", 1, "none", 4)]


def test_an_encoder_keeps_its_table(tools, table):
    """There is no output projection: its table is taken where it is asked for, in the wide format."""
    text = "(int64[b,s] ids) => (T[b,s,k] y) { e = Gather(table, ids) y = MatMul(e, layer) }"
    model = tools.make_model(text, {"table": table, "layer": np.eye(K, dtype=np.float32) / 3})
    assert [row.op_type for row in mxort.convert(model).converted] == ["MatMul"]
    both = mxort.convert(model, convert_embedding=True).converted
    assert [(row.op_type, row.weight_format) for row in both] == [("Gather", "mxint8"), ("MatMul", "mxfp4")]


LEAST_DB = {4: 17, 6: 25, 8: 30}
"""SQNR of normal numbers that a format of so many bits surpasses, by its spacing (docs/format.md)."""


@pytest.mark.parametrize("table_format", WEIGHT_FORMATS)
def test_one_table_for_both_in_every_format(tools, table, ids, table_format, tmp_path, capsys):
    """From the command line: one packed table, read alike with the library and by the functions in the file."""
    source, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(language_model(tools, table, False), source)
    flags = ["--table-format", table_format, "--accuracy-level", "1", "--json"]
    assert cli.main(["convert", str(source), "-o", str(out), *flags]) == 0
    rows = {row["op_type"]: row for row in json.loads(capsys.readouterr().out)["sites"]}
    assert rows["Gather"]["weight_format"] == table_format
    assert rows["Gather"]["sqnr_db"] > LEAST_DB[WEIGHT_FORMATS[table_format].bits]
    model = onnx.load(out)
    gather, _, head = ours(model)
    assert list(gather.input[1:3]) == list(head.input[1:3])
    (want,) = tools.run_reference(model, {"ids": ids})
    options = ort.SessionOptions()
    mxort.register(options)
    session = ort.InferenceSession(str(out), options, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"ids": ids})
    assert np.linalg.norm(got - want) < 1e-5 * np.linalg.norm(want)
