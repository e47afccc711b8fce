"""Experts of com.microsoft MoE and QMoE become MoEMXFP4; what cannot stays, with its reason and its bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import moe_oracle
import mxort
from mxort.formats import E2M1, pack_nibbles

EXPERTS, HIDDEN, INNER = 4, 64, 96
GPT_OSS = {
    "activation_type": "swiglu",
    "swiglu_fusion": 1,
    "normalize_routing_weights": 1,
    "activation_alpha": 1.702,
    "activation_beta": 1.0,
    "swiglu_limit": 1.0,
}


def weights(rng: np.random.Generator, parts: int = 2, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    shapes = {
        "w1": (EXPERTS, parts * INNER, HIDDEN),
        "b1": (EXPERTS, parts * INNER),
        "w2": (EXPERTS, HIDDEN, INNER),
        "b2": (EXPERTS, HIDDEN),
        "r": (HIDDEN, EXPERTS),
    }
    return {name: (rng.standard_normal(shape) / 8).astype(dtype) for name, shape in shapes.items()}


def model(
    constants: dict[str, np.ndarray],
    inputs: str = "x logits w1 b1 w2 b2",
    op_type: str = "MoE",
    elem_type: int = TensorProto.FLOAT,
    scales: Any = (),
    **attributes: Any,
) -> onnx.ModelProto:
    """A router and experts; `scales` are tensors whose types numpy has not."""
    names = [name if name != "-" else "" for name in inputs.split()]
    nodes = [
        helper.make_node("MatMul", ["x", "r"], ["logits"], name="router"),
        helper.make_node(op_type, names, ["y"], name="moe", domain="com.microsoft", **{"k": 2, **attributes}),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "experts",
        [value("x", elem_type, ["rows", HIDDEN])],
        [value("y", elem_type, ["rows", HIDDEN])],
        [*(numpy_helper.from_array(v, k) for k, v in constants.items()), *scales],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def run(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


def exact(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Weights that MXFP4 holds."""
    return (E2M1.decode(rng.integers(0, 16, shape).astype(np.uint8)) / 8).astype(np.float32)


def made_of(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The inputs of the operator that are constants, by its own names of them."""
    (node,) = (node for node in proto.graph.node if node.op_type == "MoEMXFP4")
    constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    (function,) = (f for f in proto.functions if f.name == "MoEMXFP4")
    named = zip(function.input, node.input, strict=True)
    return {name: constants[given] for name, given in named if given in constants}


@pytest.mark.parametrize(
    "attributes",
    [
        GPT_OSS,
        {"activation_type": "swiglu", "swiglu_fusion": 1},
        {"activation_type": "silu", "normalize_routing_weights": 1},
        {"activation_type": "gelu"},
        {"activation_type": "relu", "k": 4},
        {"activation_type": "identity", "k": 1},
        {},
    ],
    ids=str,
)
def test_exact_weights_compute_what_onnxruntime_does(attributes: dict[str, Any]) -> None:
    """Float sums in another order: 100 terms of about 1."""
    rng = np.random.default_rng(0)
    constants = weights(rng, 2 if "swiglu_fusion" in attributes else 1)
    constants |= {name: exact(rng, *constants[name].shape) for name in ("w1", "w2")}
    proto = model(constants, **attributes)
    report = mxort.convert(proto, column_multiplier=False)
    assert [(s.node, s.op_type, s.weight_format, s.sqnr_db) for s in report.converted] == [
        ("moe", "MoE", "mxfp4", np.inf)
    ] * 2
    x = rng.standard_normal((9, HIDDEN)).astype(np.float32)
    np.testing.assert_allclose(run(report.model, x), run(proto, x), atol=3e-6, rtol=1e-5)


def test_the_oracle_is_what_onnxruntime_computes() -> None:
    rng = np.random.default_rng(1)
    experts = moe_oracle.random_experts(
        rng,
        EXPERTS,
        HIDDEN,
        INNER,
        accuracy_level=1,
        swiglu_fusion=1,
        activation_alpha=1.702,
        activation_beta=1.0,
        swiglu_limit=1.0,
    )
    constants = {"r": weights(rng)["r"]}
    for name, cases in (("1", experts.gate_up), ("2", experts.down)):
        constants["w" + name] = np.stack([c.weights * c.column_scale[:, None] for c in cases]).astype("f4")
        constants["b" + name] = np.stack([c.bias for c in cases])
    x = rng.standard_normal((9, HIDDEN)).astype(np.float32)
    y = run(model(constants, **GPT_OSS), x)
    moe_oracle.assert_close(experts, x, x @ constants["r"], y)


@pytest.mark.parametrize("rotation", [1, 32])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rounded_weights(dtype: Any, rotation: int, tmp_path: Path) -> None:
    """To files, in both types; the greatest rotation is one that divides both lengths."""
    rng = np.random.default_rng(2)
    elem_type = TensorProto.FLOAT16 if dtype == np.float16 else TensorProto.FLOAT
    proto = model(weights(rng, dtype=dtype), elem_type=elem_type, **GPT_OSS)
    onnx.save(proto, tmp_path / "float.onnx")
    asked = 64 if rotation > 1 else 1
    report = mxort.convert(tmp_path / "float.onnx", tmp_path / "out.onnx", rotation=asked)
    assert [s.rotation for s in report.converted] == [rotation] * 2
    assert [(s.K, s.N) for s in report.converted] == [
        (HIDDEN, 2 * INNER * EXPERTS),
        (INNER, HIDDEN * EXPERTS),
    ]
    assert all(18 < (s.sqnr_db or 0) < 25 for s in report.converted)
    assert "gate and up of 4 experts" in report.converted[0].note
    skipped = {s.node: s.reason for s in report.skipped}
    assert set(skipped) == {"router"}
    converted = onnx.load(tmp_path / "out.onnx")
    made = made_of(converted)
    assert made["gate_up_B"].shape == (EXPERTS, 2 * INNER, HIDDEN // 2)
    assert made["down_B_scale"].shape == (EXPERTS, HIDDEN, INNER // 32)
    assert made["down_bias"].shape == (EXPERTS, HIDDEN)
    x = rng.standard_normal((9, HIDDEN)).astype(dtype)
    want, got = (run(p, x).astype(np.float64) for p in (proto, converted))
    assert 0.01 < np.linalg.norm(want - got) / np.linalg.norm(want) < 0.25


def test_a_file_of_experts_is_inspected(tmp_path: Path) -> None:
    onnx.save(model(weights(np.random.default_rng(2)), **GPT_OSS), tmp_path / "float.onnx")
    before = mxort.inspect(tmp_path / "float.onnx")
    rows = [s for s in before.sites if s.status == "convertible"]
    assert [(s.node, s.K, s.N) for s in rows] == [("moe", HIDDEN, 768), ("moe", INNER, 256)]
    mxort.convert(tmp_path / "float.onnx", tmp_path / "out.onnx")
    after = mxort.inspect(tmp_path / "out.onnx")
    made = [s for s in after.sites if s.status == "converted"]
    assert [(s.K, s.N, s.converted_bytes) for s in made] == [(s.K, s.N, s.converted_bytes) for s in rows]
    assert after.file_bytes == (tmp_path / "out.onnx").stat().st_size
    assert abs(after.file_bytes - before.estimated_bytes) < 3000  # nodes, names and the recipe


def packed_model(
    rng: np.random.Generator, quant_type: str = "fp4", **attributes: Any
) -> tuple[onnx.ModelProto, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(QMoE, its codes [E, N, K], its scales [E, N, K/32]) as onnxruntime-genai's builder lays them out."""
    constants = weights(rng)
    tensors, codes, scales = [], {}, {}
    for name in ("w1", "w2"):
        e, n, k = constants.pop(name).shape
        codes[name] = rng.integers(0, 16, (e, n, k)).astype(np.uint8)
        scales[name] = rng.integers(119, 123, (e, n, k // 32)).astype(np.uint8)
        along_n = np.ascontiguousarray(codes[name].transpose(0, 2, 1))
        constants[name] = along_n[..., 0::2] | along_n[..., 1::2] << 4
        constants[name + "_global"] = (rng.random(e) + 0.5).astype(np.float32)
        tensors.append(
            helper.make_tensor(
                name + "_scales", TensorProto.FLOAT8E8M0, scales[name].shape, scales[name].tobytes(), raw=True
            )
        )
    inputs = "x logits w1 w1_scales b1 w2 w2_scales b2 - - - - - - - w1_global w2_global"
    given = GPT_OSS | {"quant_type": quant_type, "expert_weight_bits": 4, "block_size": 32} | attributes
    return model(constants, inputs, "QMoE", scales=tensors, **given), codes, scales


def test_codes_of_qmoe_are_kept() -> None:
    """Turned around, and otherwise as they are; what the experts are multiplied by becomes their columns'."""
    rng = np.random.default_rng(3)
    proto, codes, scales = packed_model(rng)
    report = mxort.convert(proto, weight_format="mxfp8_e4m3", min_elements=1 << 30)
    assert [s.algorithm for s in report.converted] == ["checkpoint"] * 2
    assert [s.original_bytes for s in report.converted] == [c.size // 2 for c in codes.values()]
    made = made_of(report.model)
    constants = {t.name: t for t in proto.graph.initializer}
    for product, name in (("gate_up", "w1"), ("down", "w2")):
        np.testing.assert_array_equal(made[f"{product}_B"], pack_nibbles(codes[name]))
        np.testing.assert_array_equal(made[f"{product}_B_scale"], scales[name])
        factors = numpy_helper.to_array(constants[name + "_global"])
        assert (made[f"{product}_column_scale"] == factors[:, None]).all()
    constants_of = {
        name: E2M1.decode(codes[name]).astype(np.float64)
        * np.repeat(2.0 ** (scales[name].astype(np.float64) - 127), 32, axis=-1)
        * numpy_helper.to_array(constants[name + "_global"])[:, None, None]
        for name in codes
    }
    others = {name: numpy_helper.to_array(constants[name]) for name in ("b1", "b2", "r")}
    float_model = model(others | {k: v.astype(np.float32) for k, v in constants_of.items()}, **GPT_OSS)
    x = rng.standard_normal((9, HIDDEN)).astype(np.float32)
    np.testing.assert_allclose(run(report.model, x), run(float_model, x), atol=1e-5, rtol=1e-5)


def small(**changes: tuple[int, ...]) -> dict[str, np.ndarray]:
    constants = weights(np.random.default_rng(4))
    return constants | {name: np.ones(shape, np.float32) for name, shape in changes.items()}


def with_nan(name: str) -> dict[str, np.ndarray]:
    constants = small()
    constants[name][1, 2, 3] = np.nan
    return constants


FP4 = {"quant_type": "fp4"}


def without(proto: onnx.ModelProto, index: int) -> onnx.ModelProto:
    proto.graph.node[1].input[index] = ""
    return proto


def rescaled(proto: onnx.ModelProto) -> onnx.ModelProto:
    (scale,) = (t for t in proto.graph.initializer if t.name == "w1_global")
    scale.CopyFrom(numpy_helper.from_array(np.ones(3, np.float32), "w1_global"))
    return proto


THIRD = "x logits w1 b1 w2 b2 w1"


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (lambda: model(small(), THIRD, **GPT_OSS), "experts with a third product"),
        (lambda: model(small(), "x logits w1 b1", **GPT_OSS), "the experts' weight is absent"),
        (lambda: model(small(w1=(768, 64)), **GPT_OSS), "experts of shape [768, 64] and type float"),
        (lambda: model(small(), **GPT_OSS | {"swiglu_limit": -1.0}), "experts with the swiglu_limit -1"),
        (
            lambda: model(small(), "x logits w1 w1 b1 w2", "QMoE", **GPT_OSS | FP4),
            "experts' weight is absent",
        ),
        (lambda: without(packed_model(np.random.default_rng(5))[0], 15), "the experts' weight is absent"),
        (
            lambda: rescaled(packed_model(np.random.default_rng(5))[0]),
            "has a scale of shape [3], expected [4]",
        ),
        (lambda: model(small(), use_sparse_mixer=1, **GPT_OSS), "experts chosen by a sparse mixer"),
        (lambda: model(small(), activation_type="tanh"), "experts with the activation 'tanh'"),
        (lambda: model(small(), activation_type="swiglu"), "the activation swiglu and swiglu_fusion 0"),
        (lambda: model(small(), **GPT_OSS | {"k": 5}), "k is 5, of 4 experts"),
        (lambda: model(small(w2=(4, 64, 64)), **GPT_OSS), "do not fit each other"),
        (
            lambda: model(small(w1=(4, 80, 64), b1=(4, 80), w2=(4, 64, 40)), **GPT_OSS),
            "experts of 64 inputs and 40 hidden values, not multiples of 32",
        ),
        (lambda: model(small(b1=(4, 1)), **GPT_OSS), "experts with a bias of shape [4, 1]"),
        (lambda: model(with_nan("w1"), **GPT_OSS), "weight 'w1' has a NaN or an infinity"),
        (lambda: model(with_nan("w2"), **GPT_OSS), "weight 'w2' has a NaN or an infinity"),
        (lambda: packed_model(np.random.default_rng(5), "int")[0], "is quantised already"),
        (lambda: packed_model(np.random.default_rng(5), "nvfp4")[0], "is quantised already (nvfp4)"),
    ],
)
def test_what_stays_says_why_and_how_much_it_is(proto: Any, reason: str) -> None:
    made = proto()
    report = mxort.convert(made)
    rows = [row for row in report.skipped if row.node == "moe"]
    assert len(rows) == 1 and reason in rows[0].reason and rows[0].original_bytes > 10_000
    assert not report.converted
    assert [node.op_type for node in report.model.graph.node] == [node.op_type for node in made.graph.node]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"exclude": ["moe"]}, "excluded by pattern 'moe'"),
        ({"op_types": ["MatMul"]}, "op_types leaves MoE alone"),
        ({"weight_format": "mxfp8_e4m3"}, "experts become mxfp4, and the recipe asks for mxfp8_e4m3"),
        ({"min_elements": 30_000}, "fewer than min_elements = 30000"),
    ],
)
def test_recipes_that_leave_experts_alone(options: Any, reason: str) -> None:
    """Both products or neither: the smaller one is beneath the last limit."""
    report = mxort.convert(model(small(), **GPT_OSS), **options)
    rows = [row for row in report.skipped if row.node == "moe"]
    assert len(rows) == 1 and reason in rows[0].reason
    assert rows[0].original_bytes == sum(v.nbytes for k, v in small().items() if k != "r")


def test_a_node_without_logits_stays() -> None:
    """Its router has nothing to decide then, and is a product as any other."""
    proto = model(small(), "x - w1 b1 w2 b2", **GPT_OSS)
    report = mxort.convert(proto, include=["moe"])
    assert {row.node: row.reason for row in report.skipped}["moe"] == "experts without rows or logits"


@pytest.mark.parametrize("op_type", ["Gather", "GatherND"])
def test_experts_that_are_picked_for_each_row_are_named(op_type: str) -> None:
    """As torch.onnx exports them: every row's weights, gathered."""
    stack = np.ones((EXPERTS, HIDDEN, INNER), np.float32)
    nodes = [
        helper.make_node(op_type, ["stack", "chosen"], ["weights"], name="pick"),
        helper.make_node("MatMul", ["x", "weights"], ["y"], name="product"),
    ]
    value = helper.make_tensor_value_info
    shape = ["rows"] if op_type == "Gather" else ["rows", 1]
    graph = helper.make_graph(
        nodes,
        "picked",
        [value("x", TensorProto.FLOAT, ["rows", 1, HIDDEN]), value("chosen", TensorProto.INT64, shape)],
        [value("y", TensorProto.FLOAT, ["rows", 1, INNER])],
        [numpy_helper.from_array(stack, "stack")],
    )
    report = mxort.convert(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    )
    rows = {row.node: (row.reason, row.original_bytes) for row in report.skipped}
    assert rows["pick"][0].startswith("picks from") and rows["pick"][1] == stack.nbytes
    assert rows["product"] == (f"its weight is picked from {list(stack.shape)} by {op_type} 'pick'", 0)
