"""Calibrated experts: each is solved with the rows that choose it, and its outputs are what the next layers see."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import moe_oracle
import mxort
from mxort.calibration import experts as calibrated
from mxort.calibration.operator import Operator
from mxort.conversion.report import Report
from mxort.converters import experts, model_io, sites
from mxort.formats import dequantize_mxfp4

EXPERTS, HIDDEN, INNER = 4, 64, 96
SWIGLU = {"activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": 1.702, "activation_beta": 1.0}
GPT_OSS = SWIGLU | {"normalize_routing_weights": 1, "swiglu_limit": 1.0}


def model(seed: int = 0, bias: np.ndarray | None = None, **attributes: Any) -> onnx.ModelProto:
    """dense -> router, experts -> dense. `bias` of the router makes an expert rare.

    The experts' input is an output too: until 1.32 onnxruntime's MoE may overwrite what nobody else reads after it, and
    then computes with that.
    """
    rng = np.random.default_rng(seed)
    parts = 2 if attributes.get("swiglu_fusion") else 1
    shapes = {
        "before": (HIDDEN, HIDDEN),
        "r": (HIDDEN, EXPERTS),
        "w1": (EXPERTS, parts * INNER, HIDDEN),
        "b1": (EXPERTS, parts * INNER),
        "w2": (EXPERTS, HIDDEN, INNER),
        "b2": (EXPERTS, HIDDEN),
        "after": (HIDDEN, HIDDEN),
    }
    constants = {name: (rng.standard_normal(shape) / 8).astype(np.float32) for name, shape in shapes.items()}
    constants["rb"] = np.zeros(EXPERTS, np.float32) if bias is None else bias
    nodes = [
        helper.make_node("MatMul", ["x", "before"], ["h"], name="before"),
        helper.make_node("MatMul", ["h", "r"], ["scores"], name="router"),
        helper.make_node("Add", ["scores", "rb"], ["logits"]),
        helper.make_node(
            "MoE",
            ["h", "logits", "w1", "b1", "w2", "b2"],
            ["m"],
            name="moe",
            domain="com.microsoft",
            **{"k": 2, **attributes},
        ),
        helper.make_node("MatMul", ["m", "after"], ["y"], name="after"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "experts",
        [value("x", TensorProto.FLOAT, ["rows", HIDDEN])],
        [value(name, TensorProto.FLOAT, ["rows", HIDDEN]) for name in ("y", "h")],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def data(rows: int, samples: int = 4, seed: int = 1) -> list[dict[str, np.ndarray]]:
    """Rows that correlate, as those of real models do: what a solver lives on."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).standard_normal((8, HIDDEN))
    noise = 0.1 * rng.standard_normal((samples, rows, HIDDEN))
    return [{"x": x.astype(np.float32)} for x in rng.standard_normal((samples, rows, 8)) @ mixing + noise]


def run(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0].astype(np.float64)


@pytest.mark.parametrize("attributes", [GPT_OSS, {"activation_type": "gelu"}], ids=["gated", "plain"])
@pytest.mark.parametrize("sequential", [True, False])
def test_solved_experts_lose_less_than_rounded_ones(attributes: dict[str, Any], sequential: bool) -> None:
    """On rows that were not in the data, with everything else in float."""
    proto, others = model(**attributes), {"op_types": ["MoE"], "rotation": 32}
    report = mxort.convert(proto, calibration=data(256), sequential=sequential, **others)
    rounded = mxort.convert(proto, **others)
    rows = report.converted
    assert [(row.node, row.algorithm) for row in rows] == [("moe", "mr-gptq")] * 2
    assert all((row.gain_db or 0) > 1 for row in rows)
    x = data(64, 1, seed=5)[0]["x"]
    want = run(proto, x)
    errors = [np.linalg.norm(run(r.model, x) - want) / np.linalg.norm(want) for r in (report, rounded)]
    assert errors[0] < 0.8 * errors[1]
    for row in rows:
        assert sum(row.expert_rows) == 2 * 4 * 256
        assert row.note.startswith(f"{'gate and up' if 'swiglu_fusion' in attributes else 'up'} of 4") or (
            row.note.startswith("down of 4")
        )
        assert f"an expert saw {min(row.expert_rows)} rows or more" in row.note


def test_layers_behind_see_what_the_experts_compute() -> None:
    """With all else equal the last product is solved for the converted experts' output, in a sequential run alone."""
    proto = model(**GPT_OSS)
    made = [
        mxort.convert(proto, calibration=data(256), exclude=["before"], sequential=sequential)
        for sequential in (True, False)
    ]
    x = data(64, 1, seed=5)[0]["x"]
    want = run(proto, x)
    errors = [np.linalg.norm(run(report.model, x) - want) for report in made]
    assert [row.node for row in made[0].converted] == ["after", "moe", "moe"]
    assert errors[0] < 1.1 * errors[1] and errors[0] != errors[1]


def test_experts_that_saw_few_rows_are_rounded() -> None:
    """The report says so; what they become is what rounding alone gives in the same rotation."""
    bias = np.float32([0, 0, 0, -12])
    proto = model(bias=bias, **GPT_OSS)
    report = mxort.convert(proto, calibration=data(256), op_types=["MoE"])
    rows = report.converted[0].expert_rows
    assert 0 < rows[3] < 10 < 300 < min(rows[:3])
    assert "1 saw too few and are rounded" in report.converted[0].note
    plain = mxort.convert(proto, op_types=["MoE"], rotation=32)
    codes = [
        {t.name: numpy_helper.to_array(t) for t in r.model.graph.initializer}["w1_mxfp4"]
        for r in (report, plain)
    ]
    np.testing.assert_array_equal(codes[0][3], codes[1][3])
    assert all((codes[0][e] != codes[1][e]).any() for e in range(3))
    restored = Report.from_json(report.to_json())
    assert restored.converted[0].expert_rows == rows
    written = json.loads(report.to_json())["sites"]
    assert [row["expert_rows"] for row in written if row["node"] == "moe"] == [list(rows)] * 2


def test_an_expert_without_any_rows() -> None:
    report = mxort.convert(
        model(bias=np.float32([0, 0, 0, -1e9]), **GPT_OSS), calibration=data(64), op_types=["MoE"]
    )
    assert report.converted[0].expert_rows[3] == 0
    assert np.isfinite(run(report.model, data(8, 1)[0]["x"])).all()


@pytest.mark.parametrize("name", ["w1", "w2"])
def test_weights_that_are_not_finite_leave_the_node(name: str) -> None:
    proto = model(**GPT_OSS)
    (weight,) = (t for t in proto.graph.initializer if t.name == name)
    values = numpy_helper.to_array(weight).copy()
    values[2, 3, 4] = np.inf
    weight.CopyFrom(numpy_helper.from_array(values, name))
    report = mxort.convert(proto, calibration=data(64))
    assert {row.node for row in report.converted} == {"before", "after"}
    reasons = {row.reason for row in report.skipped if row.node == "moe"}
    assert f"weight {name!r} has a NaN or an infinity" in reasons


@pytest.mark.parametrize(
    ("attributes", "activation", "fusion"),
    [
        (GPT_OSS, moe_oracle.SILU, 1),
        (SWIGLU | {"swiglu_fusion": 2}, moe_oracle.SILU, 2),
        ({"activation_type": "relu", "normalize_routing_weights": 1}, moe_oracle.RELU, 0),
        ({"activation_type": "gelu"}, moe_oracle.GELU_TANH, 0),
        ({"activation_type": "silu", "k": 4}, moe_oracle.SILU, 0),
        ({"activation_type": "identity", "k": 1}, moe_oracle.NONE, 0),
    ],
)
def test_what_the_run_computes_is_the_operator(
    attributes: dict[str, Any], activation: int, fusion: int
) -> None:
    """Both stores, against double precision: with weights that MXFP4 holds the quantised and the float one agree."""
    proto = model(**attributes)
    (moe,) = (node for node in proto.graph.node if node.op_type == "MoE")
    given = {a.name: helper.get_attribute_value(a) for a in moe.attribute}
    rng = np.random.default_rng(3)
    made = moe_oracle.random_experts(
        rng,
        EXPERTS,
        HIDDEN,
        INNER,
        given["k"],
        accuracy_level=1,
        activation=activation,
        swiglu_fusion=fusion,
        normalize_routing_weights=given.get("normalize_routing_weights", 0),
        activation_alpha=given.get("activation_alpha", 1.0),
        activation_beta=given.get("activation_beta", 0.0),
        swiglu_limit=given.get("swiglu_limit", 0.0),
    )
    for case in (*made.gate_up, *made.down):
        case.column_scale = np.ones_like(case.column_scale)
        case.scales -= 3
    exact = {
        name: np.stack([case.weights for case in cases]).astype(np.float32)
        for name, cases in (("w1", made.gate_up), ("w2", made.down))
    }
    exact |= {
        name: np.stack([c.bias for c in cases]) for name, cases in (("b1", made.gate_up), ("b2", made.down))
    }
    for tensor in proto.graph.initializer:
        if tensor.name in exact:
            tensor.CopyFrom(numpy_helper.from_array(exact[tensor.name], tensor.name))
    source = model_io.from_memory(proto)
    pair = tuple(s for s in sites.find(source.model, sites.Selection()) if experts.is_one(s.node))
    x = rng.standard_normal((2, 9, HIDDEN)).astype(np.float32)
    logits = rng.standard_normal((2, 9, EXPERTS)).astype(np.float32)

    def quantize(stack: Any, expert: int, array: np.ndarray, statistics: Any) -> Any:
        cases = made.down if stack.operand else made.gate_up
        case = cases[expert]
        np.testing.assert_array_equal(
            array.reshape(EXPERTS, -1, stack.K)[expert], dequantize_mxfp4(case.codes, case.scales, stack.K)
        )
        chose = [
            i for s in range(2) for i in range(9) if expert in dict(moe_oracle.chosen(made, logits[s][i]))
        ]
        assert statistics.rows == len(chose)
        return calibrated.QuantizedWeight(case.codes, case.scales, case.column_scale)

    outputs = calibrated.run(
        calibrated.Mixture(pair, Operator(1, "none", 1), 1), lambda i, _: (x[i], logits[i]), 2, 2, quantize
    )
    for store in range(2):
        for sample in range(2):
            moe_oracle.assert_close(made, x[sample], logits[sample], outputs[store][sample])
