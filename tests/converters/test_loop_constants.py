"""converters/loop_constants.py: products in bodies of loops whose weight is a state; onnxruntime runs both models."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import mxort

K = 64
RNG = np.random.default_rng(0)


def exact():
    w = RNG.choice(np.float32([-1, 1]), (K, K)) * RNG.choice(np.float32([0, 0.5, 1, 2, 6]), (K, K))
    w[::32] = 6
    return w / np.float32(64)


def info(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes, outputs, weights, opset=17):
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", [3, K])],
        [info(name, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def loop_body(handed_on="w_in", extra=(), outputs=()):
    """x -> tanh(x w), w handed on as it came, or by the node of ``extra`` that makes ``handed_on``."""
    return helper.make_graph(
        [
            helper.make_node("Identity", ["more"], ["more_out"]),
            helper.make_node("MatMul", ["x_in", "w_in"], ["y"], name="inside"),
            helper.make_node("Tanh", ["y"], ["x_out"]),
            *extra,
        ],
        "body",
        [
            info("i", [], TensorProto.INT64),
            info("more", [], TensorProto.BOOL),
            info("w_in", [K, K]),
            info("x_in", [3, K]),
        ],
        [info("more_out", [], TensorProto.BOOL), info(handed_on, [K, K]), info("x_out", [3, K]), *outputs],
    )


def loop(body, results=("w_last", "x_last"), weight="w", start="x"):
    return helper.make_node("Loop", ["trips", "yes", weight, start], list(results), name="loop", body=body)


WEIGHTS = {"w": exact(), "trips": np.int64(3), "yes": np.array(True)}
IDENTITY = helper.make_node("Identity", ["w_in"], ["w_same"])


def check(proto, converted):
    x = RNG.standard_normal((3, K), dtype=np.float32)
    report = mxort.convert(proto, accuracy_level=1, min_elements=1)
    assert [site.node for site in report.converted] == converted, [s.reason for s in report.skipped]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    want = ort.InferenceSession(proto.SerializeToString(), options).run(None, {"x": x})
    for library in (False, True):
        if library:
            mxort.register(options)
        got = ort.InferenceSession(report.model.SerializeToString(), options).run(None, {"x": x})
        for ours, theirs in zip(got, want, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())
    return report.model


def test_a_weight_as_state_of_a_loop():
    made = check(model([loop(loop_body())], ["x_last"], WEIGHTS), ["inside"])
    (node,) = (node for node in made.graph.node if node.op_type == "Loop")
    assert len(node.input) == 3 and len(node.output) == 1
    assert "w" not in {tensor.name for tensor in made.graph.initializer}


def test_through_identity():
    check(model([loop(loop_body("w_same", [IDENTITY]))], ["x_last"], WEIGHTS), ["inside"])


def test_the_state_is_read_behind_the_loop():
    after = helper.make_node("MatMul", ["x_last", "w_last"], ["z"], name="after")
    made = check(model([loop(loop_body()), after], ["z"], WEIGHTS), ["inside", "after"])
    assert len([tensor for tensor in made.graph.initializer if tensor.dims[:1] == [K]]) == 4


def test_the_state_is_an_output_of_the_model():
    made = check(model([loop(loop_body())], ["x_last", "w_last"], WEIGHTS), ["inside"])
    assert [value.name for value in made.graph.output] == ["x_last", "w_last"]


def test_behind_steps():
    weights = WEIGHTS | {"t": np.ascontiguousarray(WEIGHTS["w"].T)}
    weights.pop("w")
    transpose = helper.make_node("Transpose", ["t"], ["w"], perm=[1, 0])
    check(model([transpose, loop(loop_body())], ["x_last"], weights), ["inside"])


def test_a_loop_in_a_loop():
    inner = loop_body()
    for value, name in zip(inner.input, ("i2", "more2", "w_in2", "x_in2"), strict=True):
        value.name = name
    for node in inner.node:
        node.name = "deep" if node.name else ""
        for names in (node.input, node.output):
            names[:] = [n + "2" for n in names]
    for value, name in zip(inner.output, ("more_out2", "w_in2", "x_out2"), strict=True):
        value.name = name
    nested = helper.make_node("Loop", ["trips", "yes", "w_in", "x_out"], ["w_deep", "x_deep"], body=inner)
    outer = loop_body("w_deep", [nested])
    outer.output[2].name = "x_deep"
    proto = model([loop(outer)], ["x_last"], WEIGHTS)
    check(proto, ["inside", "deep"])


def test_a_scan():
    """Through Identity: of a state that is handed on as it is, onnxruntime sees zeros from the second step on."""
    nodes = [
        helper.make_node("MatMul", ["row", "w_in"], ["y"], name="inside"),
        helper.make_node("Tanh", ["y"], ["row_out"]),
        IDENTITY,
    ]
    ins, outs = [info("w_in", [K, K]), info("row", [K])], [info("w_same", [K, K]), info("row_out", [K])]
    body = helper.make_graph(nodes, "body", ins, outs)
    scan = helper.make_node("Scan", ["w", "x"], ["w_last", "z"], num_scan_inputs=1, body=body)
    check(model([scan], ["z"], WEIGHTS), ["inside"])


@pytest.mark.parametrize(
    "body",
    [
        loop_body("w_new", [helper.make_node("Neg", ["w_in"], ["w_new"])]),
        loop_body(outputs=[info("w_in", [K, K])]),
    ],
    ids=["changed", "collected too"],
)
def test_other_states_stay(body):
    results = ("w_last", "x_last", *(["ws"] if len(body.output) == 4 else []))
    check(model([loop(body, results)], ["x_last"], WEIGHTS), [])
