"""Values between two stages, whatever their type: what arrives behind them is what the whole model computes."""

from __future__ import annotations

import errno
import warnings

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from mxort.calibration import calibrate, executor
from mxort.calibration.executor import Store
from mxort.calibration.operator import Operator
from mxort.converters import model_io, sites

K = 64
UP = [
    helper.make_node("MatMul", ["x", "w"], ["t"], name="one"),
    helper.make_node("Relu", ["t"], ["r"]),
    helper.make_node("MatMul", ["r", "v"], ["u"], name="two"),
]
DOWN = helper.make_node("MatMul", ["c", "z"], ["y"], name="three")


def cast(source, result, kind):
    return helper.make_node("Cast", [source], [result], to=kind)


def narrow(kind):
    """Values of a type that numpy lacks, alive at both cuts."""
    return [
        cast("x", "xb", kind),
        *UP,
        cast("u", "ub", kind),
        cast("xb", "xf", TensorProto.FLOAT),
        cast("ub", "uf", TensorProto.FLOAT),
        helper.make_node("Concat", ["xf", "uf"], ["c"], axis=1),
    ]


def optional(empty):
    """An optional made before the sites and asked behind them."""
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    made = (
        helper.make_node("Optional", [], ["o"], type=element)
        if empty
        else helper.make_node("Optional", ["x"], ["o"])
    )
    return [
        made,
        *UP,
        helper.make_node("OptionalHasElement", ["o"], ["has"]),
        cast("has", "factor", TensorProto.FLOAT),
        helper.make_node("Add", ["u", "factor"], ["u1"]),
        helper.make_node("Concat", ["x", "u1"], ["c"], axis=1),
    ]


SEQUENCE = [
    helper.make_node("SequenceConstruct", ["x"], ["s"]),
    *UP,
    helper.make_node("SequenceInsert", ["s", "u"], ["s2"]),
    helper.make_node("ConcatFromSequence", ["s2"], ["c"], axis=1),
]
STRINGS = [
    helper.make_node("ArgMax", ["x"], ["i"], axis=-1, keepdims=0),
    helper.make_node("Gather", ["names", "i"], ["label"]),
    *UP,
    helper.make_node("ArgMax", ["u"], ["j"], axis=-1, keepdims=0),
    helper.make_node("Gather", ["names", "j"], ["other"]),
    helper.make_node("Equal", ["label", "other"], ["same"]),
    cast("same", "f", TensorProto.FLOAT),
    helper.make_node("Unsqueeze", ["f", "axis"], ["f1"]),
    helper.make_node("Add", ["u", "f1"], ["u1"]),
    helper.make_node("Concat", ["x", "u1"], ["c"], axis=1),
]
MODELS = {
    "sequence": SEQUENCE,
    "strings": STRINGS,
    "bfloat16": narrow(TensorProto.BFLOAT16),
    "float8": narrow(TensorProto.FLOAT8E4M3FN),
    "optional": optional(False),
    "empty optional": optional(True),
}


def model_of(nodes):
    rng = np.random.default_rng(0)
    shapes = {"w": (K, K), "v": (K, K), "z": (2 * K, K)}
    tensors = [numpy_helper.from_array(rng.standard_normal(s, np.float32) / 8, n) for n, s in shapes.items()]
    tensors.append(numpy_helper.from_array(np.array([1]), "axis"))
    tensors.append(helper.make_tensor("names", TensorProto.STRING, [K], [b"a", b"b"] * (K // 2)))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", K]) for name in "xy"]
    graph = helper.make_graph([*nodes, DOWN], "g", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


@pytest.mark.parametrize("memory", [0, 1 << 30])
@pytest.mark.parametrize("name", MODELS)
def test_values_of_every_type_cross_the_cuts(name, memory):
    """The last site's operand in the stages, against the same value of the whole model."""
    proto, rng = model_of(MODELS[name]), np.random.default_rng(1)
    data = [{"x": rng.standard_normal((8 + i, K), np.float32)} for i in range(2)]
    model = model_io.from_memory(proto).model
    found = [site for site in sites.find(model, sites.Selection()) if not site.skip]
    assert [site.name for site in found] == ["one", "two", "three"]
    seen = {}
    settings = calibrate.Settings(lambda site: Operator(1, "none", 1), memory=memory, threads=1)
    calibrate.run(model, found, data, lambda site, s: seen.update({site.name: s}), settings)
    whole = onnx.ModelProto.FromString(proto.SerializeToString())
    whole.graph.output.append(onnx.ValueInfoProto(name="c"))
    session = ort.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.concatenate([session.run(["c"], feed)[0] for feed in data]).astype(np.float64)
    want = x.T @ x / len(x)
    if name in ("bfloat16", "float8"):
        # A value that another order of summing puts on the other side of a tie moves by a step of the type.
        step = 2.0**-8 if name == "bfloat16" else 2.0**-4
        assert np.linalg.norm(seen["three"].hessian - want) < step * np.linalg.norm(want)
        return
    # Two products of 64 terms come before, in another order: each off by 64 * 2^-24 of |x| |w| at most, which is a few
    # times the result here; the sum over 17 rows adds as much again.
    np.testing.assert_allclose(seen["three"].hessian, want, rtol=0, atol=1024 * 2.0**-24 * want.max())


def test_memory_bounds_what_is_held(tmp_path):
    store = Store(tmp_path / "folder", 1000)
    states = [store.sample({"a": np.full(100, i, np.float32), "b": np.arange(40.0)}) for i in range(4)]
    assert 0 < store.held <= 1000
    for i, state in enumerate(states):
        np.testing.assert_array_equal(state["a"], np.full(100, i, np.float32))
        np.testing.assert_array_equal(state["b"], np.arange(40.0))
        executor.drop(state, ["a", "b", "never there"])
        assert "a" not in state and not len(state)
    assert store.held == 0
    assert not list((tmp_path / "folder").iterdir())


def test_what_no_file_can_hold_stays_in_memory(tmp_path):
    store = Store(tmp_path / "folder", 0)
    values = {
        "strings": np.array(["a", "b"], object),
        "sequence": [np.ones(3), np.zeros((2, 2))],
        "none": None,
    }
    state = store.sample(values)
    assert all(state[name] is value for name, value in values.items())
    state["strings"] = np.ones(5)
    assert (tmp_path / "folder" / "1.npy").exists()
    executor.drop(state, list(state))
    assert store.held == 0


def test_a_full_disk_is_one_warning(tmp_path, monkeypatch):
    """Memory is used then; what was written half is gone."""

    def save(path, *arguments, **options):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", save)
    store = Store(tmp_path / "folder", 100)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        state = store.sample({name: np.full(50, ord(name)) for name in "abc"})
    assert len(said) == 1 and "No space left on device" in str(said[0].message)
    for name in "abc":
        np.testing.assert_array_equal(state[name], np.full(50, ord(name)))
    assert not list((tmp_path / "folder").iterdir())
