"""Where a model is cut: tests/test_calibrate.py runs the stages; here is what is in them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from mxort.converters import sites, stages


@pytest.fixture
def model(tools, rng):
    """p and q side by side, r behind p, and a tail that no site needs."""
    text = """(float[b,32] x) => (float[b,32] y, float[b,32] tail) {
        half = Mul(scale, scale)
        a = Mul(x, half)
        p = MatMul(a, wp)
        q = MatMul(a, wq)
        t = Tanh(p)
        u = Mul(t, half)
        r = MatMul(u, wr)
        s = Add(r, q)
        y = Add(s, x)
        tail = Exp(y)
    }"""
    weights = {name: rng.standard_normal((32, 32), np.float32) for name in ("wp", "wq", "wr")}
    return ir.from_proto(tools.make_model(text, {**weights, "scale": np.full(32, 0.5, np.float32)}))


def plan(model):
    found = sites.find(model, sites.Selection())
    return stages.plan(model, [s for s in found if not s.skip])


def outputs(nodes):
    return [node.outputs[0].name for node in nodes]


def test_stages(model):
    first, second = plan(model)
    assert outputs(s.node for s in first.sites) == ["p", "q"]
    assert outputs(s.node for s in second.sites) == ["r"]
    assert outputs(first.nodes) == ["half", "a"]
    assert outputs(second.nodes) == ["half", "t", "u"], "a constant is computed wherever it is needed"
    assert (first.inputs, first.outputs) == (("x",), ("a",))
    assert (second.inputs, second.outputs) == (("p",), ("u",))
    assert set(first.dead) == {"x", "a"}, "nothing behind the last site counts as a use"
    assert set(second.dead) == {"p", "u"}


def test_no_stage_holds_a_weight(model):
    for stage in plan(model):
        assert [value.name for value in stage.constants] == ["scale"]


def test_protos_run(model):
    first, _ = plan(model)
    proto = first.proto(model, {"x": helper.make_tensor_type_proto(TensorProto.FLOAT, None)})
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.ones((3, 32), np.float32)
    np.testing.assert_array_equal(session.run(["a"], {"x": x})[0], x / 4)


def test_tables_stay_in_their_file(tools, rng, tmp_path):
    """A stage finds a constant with external data where it lies, beside constants of its own."""
    text = """(int64[n] i) => (float[n,64] y) {
        rows = Gather(table, i)
        a = Mul(rows, scale)
        y = MatMul(a, w)
    }"""
    table = rng.standard_normal((500, 64), np.float32)
    constants = {"table": table, "scale": np.float32([2]), "w": rng.standard_normal((64, 64), np.float32)}
    file = tmp_path / "model.onnx"
    proto = tools.make_model(text, constants)
    onnx.save(proto, file, save_as_external_data=True, location="data.bin", size_threshold=100)
    (stage,) = plan(ir.load(file))
    proto = stage.proto(ir.load(file), {"i": helper.make_tensor_type_proto(TensorProto.INT64, None)})
    assert proto.ByteSize() < 2000
    options = ort.SessionOptions()
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", stage.data_folder
    )
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    i = np.array([499, 3])
    np.testing.assert_array_equal(session.run(["a"], {"i": i})[0], 2 * table[i])


def test_no_sites(model):
    assert stages.plan(model, []) == []


def test_refusals(tools, rng):
    text = """(float[b,32] x, float[b,32] c) => (float[b,32] y, float[b,32] z) {
        y = Gemm(x, w, c)
        h = Cast<to=16>(x)
        p = MatMul(h, v)
        z = Cast<to=1>(p)
    }"""
    w = rng.standard_normal((32, 32), np.float32)
    weights = {"w": w, "v": w.astype("bfloat16")}
    model = ir.from_proto(tools.make_model(text, weights))
    found = sites.find(model, sites.Selection())
    assert [stages.refusal(model, s) for s in found] == [
        "C is no constant: not calibrated",
        "bfloat16: not calibrated",
    ]
