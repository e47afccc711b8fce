"""A product that decides which experts compute stays as it is."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import mxort

HIDDEN, EXPERTS = 64, 32
RNG = np.random.default_rng(0)


def converted(nodes, outputs, experts=EXPERTS, **more):
    """{node: reason} of what is left alone, and the names of what is converted."""
    weights = {
        "router": RNG.standard_normal((HIDDEN, experts), dtype=np.float32),
        "layer": RNG.standard_normal((HIDDEN, HIDDEN), dtype=np.float32),
        "k": np.int64([4]),
        "c": np.float32([0.5]),
        **more,
    }
    nodes = [
        helper.make_node("MatMul", ["x", "layer"], ["h"], name="layer"),
        helper.make_node("MatMul", ["h", "router"], ["r"], name="router"),
        *nodes,
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["rows", HIDDEN])],
        [value(name, kind, None) for name, kind in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    report = mxort.convert(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    return {site.node: site.reason for site in report.skipped}, [site.node for site in report.converted]


TOP = [("values", TensorProto.FLOAT), ("indices", TensorProto.INT64)]


def top(source):
    return helper.make_node("TopK", [source, "k"], ["values", "indices"], name="choose")


@pytest.mark.parametrize(
    "nodes",
    [
        [top("r")],
        [helper.make_node("Softmax", ["r"], ["p"]), top("p")],
        [helper.make_node("Sigmoid", ["r"], ["s"]), helper.make_node("Add", ["s", "c"], ["p"]), top("p")],
        [
            helper.make_node("Cast", ["r"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Softmax", ["f"], ["p"]),
            top("p"),
        ],
    ],
    ids=["at once", "softmax", "sigmoid and a correction", "cast and softmax"],
)
def test_what_topk_chooses_by(nodes):
    skipped, taken = converted(nodes, TOP)
    assert skipped == {"router": "router: decides what 'choose' chooses"}
    assert taken == ["layer"]


def test_what_experts_are_chosen_by():
    experts = {
        name: RNG.standard_normal((EXPERTS, HIDDEN, HIDDEN), dtype=np.float32) for name in ("e1", "e2")
    }
    moe = helper.make_node(
        "MoE", ["h", "r", "e1", "", "e2"], ["y"], name="experts", domain="com.microsoft", k=2
    )
    skipped, taken = converted([moe], [("y", TensorProto.FLOAT)], **experts)
    assert skipped["router"] == "router: decides what 'experts' chooses"
    assert taken == ["layer", "experts", "experts"], "the experts' input is computed by an ordinary layer"


def test_a_vocabulary_is_no_set_of_experts():
    _, taken = converted([top("r")], TOP, experts=4096)
    assert taken == ["layer", "router"]


def test_a_layer_before_the_router_is_no_router():
    nodes = [helper.make_node("Relu", ["r"], ["a"]), top("a")]
    assert converted(nodes, TOP)[1] == ["layer", "router"]
