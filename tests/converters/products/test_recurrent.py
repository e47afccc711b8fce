"""converters/products/recurrent.py: onnxruntime's LSTM and GRU are the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

import mxort
from same_products import assert_same, exact, model, operators

GATES = {"LSTM": 4, "GRU": 3}
T, B, K, H = 5, 2, 64, 32


def recurrent(op_type, directions, *, bias=True, start=True, outputs=("y", "h", "c"), seed=0, **attributes):
    """(node, feeds, weights); weights are small, so that no gate is at its end, where an error would not be seen."""
    rng = np.random.default_rng(seed)
    gates = GATES[op_type]
    weights = {
        "w": exact(rng, directions, gates * H, K) / np.float32(128),
        "r": exact(rng, directions, gates * H, H) / np.float32(64),
        "b": rng.standard_normal((directions, 2 * gates * H), dtype=np.float32),
    }
    feeds = {"x": rng.standard_normal((T, B, K), dtype=np.float32)}
    states = ["h0", "c0"][: 2 if op_type == "LSTM" else 1]
    if start:
        feeds |= {name: rng.standard_normal((directions, B, H), dtype=np.float32) for name in states}
    names = ["x", "w", "r", "b" if bias else "", "", *(states if start else [])]
    while not names[-1]:
        names.pop()
    direction = "bidirectional" if directions == 2 else attributes.pop("direction", "forward")
    node = helper.make_node(
        op_type,
        names,
        list(outputs[: 1 + len(states)]),
        name="n",
        hidden_size=H,
        direction=direction,
        **attributes,
    )
    return node, feeds, weights


BOUND = T * 8 * 2 * (K + H) * np.finfo(np.float32).eps * 8 * 8
"""T positions, each of a sum of K + H products, of magnitudes below 8 in all; a state is at most doubled by a step."""

CASES = [(op, directions) for op in GATES for directions in (1, 2)]


@pytest.mark.parametrize(("op_type", "directions"), CASES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("linear", [0, 1])
@pytest.mark.parametrize("opset", [11, 21])
def test_any(op_type, directions, bias, start, linear, opset):
    more = {"linear_before_reset": linear} if op_type == "GRU" else {}
    node, feeds, weights = recurrent(op_type, directions, bias=bias, start=start, **more)
    outputs = list(node.output)
    proto = model([node], feeds, weights, outputs, static=bool(linear), opset=opset)
    count = directions * (3 if op_type == "GRU" and not linear else 2)
    report = assert_same(proto, feeds, BOUND, gone=op_type, converted=count)
    assert {site.op_type for site in report.converted} == {op_type}
    assert sum(site.original_bytes for site in report.converted) == weights["w"].nbytes + weights["r"].nbytes


@pytest.mark.parametrize("op_type", GATES)
@pytest.mark.parametrize("outputs", [("y",), ("", "h"), ("y", "", "c")])
def test_backwards_and_some_outputs(op_type, outputs):
    outputs = outputs[: 3 if op_type == "LSTM" else 2]
    node, feeds, weights = recurrent(op_type, 1, outputs=outputs, direction="reverse")
    proto = model([node], feeds, weights, [name for name in outputs if name])
    assert_same(proto, feeds, BOUND, gone=op_type, converted=3 if op_type == "GRU" else 2)


def test_the_state_stays_float_where_a_recipe_says_so():
    node, feeds, weights = recurrent("LSTM", 2)
    proto = model([node], feeds, weights, ["y", "h", "c"])
    report = mxort.convert(proto, min_elements=0, exclude=("*/recurrent",))
    assert [site.node for site in report.converted] == ["n/forward", "n/backward"]
    assert [site.node for site in report.skipped] == ["n/forward/recurrent", "n/backward/recurrent"]


REASONS = {
    "clip": ({"clip": 1.0}, "a LSTM with clip is not converted"),
    "activations": (
        {"activations": ["Sigmoid", "Relu", "Tanh"]},
        "a LSTM with the activations sigmoid, relu, tanh is not converted",
    ),
}


@pytest.mark.parametrize(("attributes", "reason"), REASONS.values(), ids=REASONS)
def test_reasons(attributes, reason):
    node, feeds, weights = recurrent("LSTM", 1, **attributes)
    report = mxort.convert(model([node], feeds, weights, ["y", "h", "c"]), min_elements=0)
    assert [site.reason for site in report.skipped][:1] == [reason]
    assert report.skipped[0].original_bytes == sum(array.nbytes for array in weights.values())
    assert operators(report.model) == ["LSTM"]


def test_lengths():
    node, feeds, weights = recurrent("LSTM", 1)
    node.input[4] = "lengths"
    feeds["lengths"] = np.int32([5, 3])
    report = mxort.convert(model([node], feeds, weights, ["y", "h", "c"]), min_elements=0)
    assert report.skipped[0].reason == "sequences of several lengths and peepholes are not converted"
