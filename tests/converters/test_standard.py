"""What the operators become in ONNX's own words: types, bytes, and what onnx.reference makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import checkpoints
import moe_model
import moe_oracle
import mxort
from imported import packed_rows
from moe_oracle import random_experts
from mxort.converters import standard


def perceptron(opset: int, activation: str, k: int = 80) -> onnx.ModelProto:
    rng = np.random.default_rng(4)
    shapes = {"w1": (k, 96), "w2": (96, 64), "b": (96,)}
    constants = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h0"], name="first"),
        helper.make_node("Add", ["h0", "b"], ["h"], name="bias"),
        helper.make_node(activation, ["h"], ["r"], name="act"),
        helper.make_node("MatMul", ["r", "w2"], ["y"], name="second"),
    ]
    x, y = (
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", w]) for n, w in (("x", k), ("y", 64))
    )
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


@pytest.mark.parametrize("weight_format", standard.TYPES)
@pytest.mark.parametrize(("opset", "activation"), [(17, "Relu"), (20, "Gelu"), (20, "Relu"), (24, "Relu")])
def test_standard_onnx_computes_the_same(
    opset: int, activation: str, weight_format: str, tmp_path: Path
) -> None:
    """onnx's own reference implementation, of the converted file's functions and of the standard operators."""
    onnx.save(perceptron(opset, activation), tmp_path / "float.onnx")
    mxort.convert(tmp_path / "float.onnx", tmp_path / "mx.onnx", weight_format=weight_format)
    report = mxort.export(tmp_path / "mx.onnx", tmp_path / "standard.onnx")
    assert report.packed == 2
    before, after = onnx.load(tmp_path / "mx.onnx"), onnx.load(tmp_path / "standard.onnx")
    onnx.checker.check_model(after, full_check=True)
    assert {n.domain for n in after.graph.node} == {""}
    assert not after.functions
    types = {n.input[0]: n.op_type for n in after.graph.node if n.op_type == "DequantizeLinear"}
    kinds = {t.name: t.data_type for t in after.graph.initializer}
    wanted = onnx.TensorProto.DataType.Value(standard.TYPES[weight_format])
    assert {kinds[name] for name in types} == {wanted}
    x = np.random.default_rng(5).standard_normal((6, 80)).astype(np.float32)
    expected, got = (ReferenceEvaluator(model).run(None, {"x": x})[0] for model in (before, after))
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())
    codes = {t.name: t for t in before.graph.initializer if t.name.endswith(weight_format)}
    stored = sorted(t.raw_data for t in after.graph.initializer if t.data_type == wanted)
    assert stored == sorted(t.raw_data for t in codes.values())


def test_standard_onnx_of_an_imported_folder(tmp_path: Path) -> None:
    """Attention is onnxruntime's own operator; the file opens where there is a kernel for the rest."""
    tiny = checkpoints.make(tmp_path / "checkpoint", "llama", "quark")
    mxort.import_checkpoint(tiny.folder, tmp_path / "folder", library=False)
    report = mxort.export(tmp_path / "folder", tmp_path / "standard.onnx", "standard")
    model = onnx.load(tmp_path / "standard.onnx")
    assert {n.domain for n in model.graph.node} == {"", "com.microsoft"}
    dequantised = [n for n in model.graph.node if n.op_type == "DequantizeLinear"]
    assert len(dequantised) == report.packed == 2 * 5 + 2
    arrays = {t.name: t for t in model.graph.initializer}
    fp4 = [
        arrays[n.input[0]] for n in dequantised if arrays[n.input[0]].data_type == onnx.TensorProto.FLOAT4E2M1
    ]
    rows = {bytes(codes) for codes, _ in packed_rows(tmp_path / "folder").values()}
    assert {t.raw_data for t in fp4} == rows


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"rotation": 32}, "node 'first' has rotation 32, expected 1"),
        ({"activation_format": "mxfp8_e4m3"}, "node 'first' has activation_format mxfp8_e4m3, expected none"),
    ],
)
def test_what_standard_onnx_cannot_say(options: dict[str, Any], named: str, tmp_path: Path) -> None:
    onnx.save(perceptron(20, "Relu", 96), tmp_path / "float.onnx")
    mxort.convert(tmp_path / "float.onnx", tmp_path / "mx.onnx", **options)
    with pytest.raises(mxort.MxortError, match=named):
        mxort.export(tmp_path / "mx.onnx", tmp_path / "standard.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["float.onnx", "mx.onnx"]
    with pytest.raises(mxort.MxortError, match="is not converted"):
        mxort.export(tmp_path / "float.onnx", tmp_path / "standard.onnx")


def test_an_onnx_without_float6_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(perceptron(20, "Relu", 96), tmp_path / "float.onnx")
    mxort.convert(tmp_path / "float.onnx", tmp_path / "mx.onnx", weight_format="mxfp6_e3m2")
    monkeypatch.setattr(onnx.defs, "onnx_opset_version", lambda: 27)
    monkeypatch.setattr(onnx, "__version__", "1.22.0")
    named = r"'first' has weights in mxfp6_e3m2, which opset 28 has: onnx 1\.22\.0 knows 27"
    with pytest.raises(mxort.MxortError, match=named):
        mxort.export(tmp_path / "mx.onnx", tmp_path / "standard.onnx")


@pytest.mark.parametrize("opset", [18, 24])
@pytest.mark.parametrize("swiglu_fusion", [0, 1, 2])
def test_experts(swiglu_fusion: int, opset: int) -> None:
    """The stacks' bytes in ONNX's types, and double precision of what they mean."""
    rng = np.random.default_rng(swiglu_fusion)
    experts = random_experts(rng, accuracy_level=1, swiglu_fusion=swiglu_fusion, activation=moe_oracle.SILU)
    x = rng.standard_normal((7, 64)).astype(np.float32)
    logits = rng.standard_normal((7, 5)).astype(np.float32)
    model = ir.from_proto(moe_model.model(experts, opset=opset))
    assert standard.rewrite(model) == 2
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    assert {n.domain for n in proto.graph.node} == {""} and not proto.functions
    kept = {t.raw_data for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT4E2M1}
    assert kept == {experts.inputs[name].tobytes() for name in ("gate_up_B", "down_B")}
    assert not any(t.data_type == onnx.TensorProto.UINT8 for t in proto.graph.initializer)
    (y,) = ReferenceEvaluator(proto).run(None, {"X": x, "router": logits})
    moe_oracle.assert_close(experts, x, logits, y)


def test_an_imported_folder_with_experts(tmp_path: Path) -> None:
    tiny = checkpoints.make(tmp_path / "checkpoint", "gpt_oss", "gpt-oss")
    options: dict[str, Any] = {"library": False, "table_format": "float", "exclude": ("*",)}
    mxort.import_checkpoint(tiny.folder, tmp_path / "folder", **options)
    report = mxort.export(tmp_path / "folder", tmp_path / "standard.onnx", "standard")
    assert report.packed == 4
    model = onnx.load(tmp_path / "standard.onnx")
    assert {n.domain for n in model.graph.node} == {"", "com.microsoft"} and not model.functions
    stacks = {t.raw_data for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT4E2M1}
    assert stacks == {matrix.bytes.tobytes() for matrix in tiny.packed.values()}
