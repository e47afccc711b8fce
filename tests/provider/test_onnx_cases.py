"""ONNX's own operator tests (onnx.backend.test) on the provider: every case of the operators that it takes, in the
types that it takes. The expected results are ONNX's."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import onnx
import pytest
from simulated import run

# Operators with cases that run on the provider. What is left to the CPU of them, and why, stands in LEFT.
OPERATORS = [
    "Abs", "Add", "And", "ArgMax", "ArgMin", "Attention", "Cast", "Ceil", "Clip", "Concat", "Conv", "Cos", "Div",
    "Elu", "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Gelu",
    "Gemm", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN",
    "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "MatMul", "Max", "Min", "Mish",
    "Mul", "Neg", "Not", "Or", "PRelu", "Pad", "Pow", "RMSNormalization", "Reciprocal", "ReduceL1", "ReduceL2",
    "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "ReduceSumSquare", "Relu", "Reshape", "RotaryEmbedding", "Round", "Shape", "Sigmoid", "Sign", "Sin", "Size",
    "Slice", "Softmax", "Softplus", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Swish", "Tanh", "Tile", "TopK",
    "Transpose", "Unsqueeze", "Where", "Xor",
]  # fmt: skip

LEFT = {
    "attention_3d_diff_heads": "values of 10 numbers a head",
    "attention_4d_diff_heads": "the same",
    "attention_3d_transpose_verification": "the same, of 4",
    "qk_matmul": "scores that are asked for",
    "shape": "folded: the shape of its input is known",
    "pow": "an exponent of another type than float, or a base of whole numbers",
    "edge_pad": "mode edge",
    "reflect_pad": "mode reflect",
    "wrap_pad": "mode wrap",
    "top_k": "whole numbers",
    "reduce_max_empty_set_bool": "bool",
    "reduce_max_bool": "bool",
    "reduce_min_bool": "bool",
}

ELSEWHERE = {"Cast", "Shape", "ReduceLogSum", "ReduceLogSumExp"}
"""In test_operators.py: ONNX's cases are of other types, of known shapes, or newer than onnxruntime."""

TAKEN = {np.dtype(t) for t in (np.float32, np.float16, np.int64, np.int32, np.int8, np.uint8, np.bool_)}


def cases(operators: list[str]) -> dict[str, dict[str, Any]]:
    """In the child: runs the cases of these operators; name -> placement and the largest error, or what went wrong."""
    import gpu
    import onnxruntime as ort
    from onnx.backend.test.loader import load_model_tests

    found: dict[str, dict[str, Any]] = {}
    with gpu.registered():
        for case in load_model_tests(kind="node"):
            model = case.model if case.model is not None else onnx.load(f"{case.model_dir}/model.onnx")
            types = [node.op_type for node in model.graph.node]
            if len(types) != 1 or types[0] not in operators or "expanded" in case.name:
                continue
            found[case.name] = one(gpu, ort, model, case)
    return found


def one(gpu: Any, ort: Any, model: onnx.ModelProto, case: Any) -> dict[str, Any]:
    sets = case.data_sets or read_sets(case.model_dir, model)
    sets = [tuple([np.asarray(v) if np.isscalar(v) else v for v in half] for half in both) for both in sets]
    operator = model.graph.node[0].op_type
    values = [v for inputs, outputs in sets for v in [*inputs, *outputs]]
    if not all(isinstance(v, np.ndarray) and v.dtype in TAKEN for v in values):
        return {"operator": operator, "skipped": "type"}
    try:
        opened = gpu.session(model.SerializeToString())
    except Exception as error:
        return {"operator": operator, "skipped": f"onnxruntime: {gpu.message(error)[:200]}"}
    row: dict[str, Any] = {"operator": operator, "gpu": bool(gpu.placement(opened).get(gpu.EP)), "worst": 0.0}
    for inputs, outputs in sets:
        feeds = {i.name: v for i, v in zip(opened.get_inputs(), inputs, strict=False)}
        try:
            got = opened.run(None, feeds)
        except Exception as error:
            row |= {"worst": float("inf"), "error": gpu.message(error)[:300]}
            return row
        for g, want in zip(got, outputs, strict=True):
            row["worst"] = max(row["worst"], distance(np.asarray(g), want, case))
    return row


def distance(got: np.ndarray, want: np.ndarray, case: Any) -> float:
    """Of the tolerance: at most 1 passes."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return float("inf")
    if want.dtype.kind != "f":
        return 0.0 if np.array_equal(got, want) else float("inf")
    g, w = got.astype(np.float64), want.astype(np.float64)
    equal = (g == w) | (np.isnan(g) & np.isnan(w))
    # ONNX's own tolerance (rtol 1e-3, atol 1e-7) is wide; functions here are right to a few units of the last place,
    # sums to as many as they have terms (at most 120 in these cases).
    unit = 2.0**-23 if want.dtype == np.float32 else 2.0**-10
    with np.errstate(invalid="ignore"):
        ratio = np.where(equal, 0.0, np.abs(g - w) / (64 * unit * np.maximum(np.abs(w), 0.25)))
    return float(np.nan_to_num(ratio, nan=np.inf).max(initial=0.0))


def read_sets(folder: str, model: onnx.ModelProto) -> list[tuple[list[Any], list[Any]]]:
    from pathlib import Path

    from onnx import numpy_helper

    def read(path: Path) -> Any:
        try:
            return numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes()))
        except Exception:
            return None

    sets = []
    for data in sorted(Path(folder).glob("test_data_set_*")):
        sets.append(([read(data / f"input_{i}.pb") for i in range(len(model.graph.input))],
                     [read(data / f"output_{i}.pb") for i in range(len(model.graph.output))]))  # fmt: skip
    return sets


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, Any]]:
    return dict(run(cases, OPERATORS))


def test_results_are_onnxs(results: dict[str, dict[str, Any]]) -> None:
    wrong = {name: row for name, row in results.items() if row.get("gpu") and row["worst"] > 1}
    assert not wrong


def test_every_operator_has_cases_on_the_provider(results: dict[str, dict[str, Any]]) -> None:
    count = collections.Counter(row["operator"] for row in results.values() if row.get("gpu"))
    assert {operator for operator in OPERATORS if not count[operator]} == ELSEWHERE


def test_what_is_left_to_the_cpu_is_known(results: dict[str, dict[str, Any]]) -> None:
    left = [n for n, row in results.items() if not row.get("gpu") and "skipped" not in row]
    assert not [name for name in left if not any(f"test_{known}" in name for known in LEFT)]
