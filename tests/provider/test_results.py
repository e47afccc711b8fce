"""Whole sessions on the provider: shapes at run time, and other operators around its nodes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from simulated import run

import op_model
import oracle


def one_node(case: oracle.Case, **options: Any) -> onnx.ModelProto:
    """The model of op_model.py without its casts."""
    proto = op_model.model(case, **options)
    (node,) = [n for n in proto.graph.node if n.op_type == "MatMulMXFP4"]
    node.input[0], node.output[0] = "A", "Y"
    del proto.graph.node[:]
    proto.graph.node.append(node)
    return proto


def half_vectors(model: str) -> dict[str, Any]:
    import gpu
    import numpy as np

    import mxort

    with gpu.registered():
        opened = gpu.session(model)
        a = np.random.default_rng(0).standard_normal((1, 9, 64)).astype(np.float16)
        (y,) = opened.run(None, {"A": a})
        placement = gpu.placement(opened)
        del opened
    (expected,) = mxort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"A": a})
    return {"placement": placement, "y": y.tolist(), "expected": expected.tolist()}


def test_vectors_of_the_type_of_a(tmp_path: Path) -> None:
    """column_scale and bias in float16, as tools leave them that make a model float16."""
    case = oracle.random_case(np.random.default_rng(6), 40, 64, accuracy_level=1)
    halves = {name: getattr(case, name).astype(np.float16) for name in ("column_scale", "bias")}
    onnx.save(one_node(case, elem_type=onnx.TensorProto.FLOAT16, **halves), tmp_path / "m.onnx")
    result = run(half_vectors, str(tmp_path / "m.onnx"))
    assert result["placement"] == {"MxortExecutionProvider": ["MatMulMXFP4"]}
    # Both round to float16 what they compute to 1e-6: equal but for neighbours.
    np.testing.assert_allclose(result["y"], result["expected"], rtol=2.0**-10)


def shapes(model: str) -> dict[str, Any]:
    """Ranks and empty inputs: a list of [shape of A, shape of Y, largest difference to the CPU's result]."""
    import gpu
    import numpy as np

    import mxort

    found = []
    with gpu.registered():
        opened = gpu.session(model)
        on_cpu = mxort.InferenceSession(model, providers=["CPUExecutionProvider"])
        for shape in ((2, 3, 64), (1, 1, 64), (2, 0, 64), (0, 5, 64), (1, 40, 64)):
            a = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
            (y,), (expected,) = opened.run(None, {"A": a}), on_cpu.run(None, {"A": a})
            difference = float(np.abs(y - expected).max()) if y.size else 0.0
            found.append([list(a.shape), list(y.shape), difference])
        try:
            opened.run(None, {"A": np.ones((1, 1, 32), np.float32)})
            error = ""
        except Exception as wrong:
            error = gpu.message(wrong)
        del opened
    return {"found": found, "error": error, "live": gpu.live()}


def test_ranks_empty_inputs_and_a_wrong_shape(tmp_path: Path) -> None:
    case = oracle.random_case(np.random.default_rng(6), 40, 64, accuracy_level=1)
    onnx.save(one_node(case), tmp_path / "m.onnx")
    result: Mapping[str, Any] = run(shapes, str(tmp_path / "m.onnx"))
    for a, y, difference in result["found"]:
        assert y == [*a[:-1], 40]
        assert difference < 1e-4
    assert "32" in result["error"] and "64" in result["error"]
    assert result["live"] == {}


def mixed(model: str, operators: str) -> dict[str, Any]:
    """A model whose operators are all on the GPU, or only those of domain mxort."""
    import gpu
    import numpy as np

    import mxort

    with gpu.registered():
        opened = gpu.session(model, options={"operators": operators})
        x = gpu.feeds(opened, rows=20)
        (y,) = opened.run(None, x)
        placement = gpu.placement(opened)
        del opened
    (expected,) = mxort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, x)
    error = float(np.sqrt(((y - expected) ** 2).sum() / (expected**2).sum()))
    return {"placement": placement, "error": error, "live": gpu.live()}


OTHERS = ["Add", "Mul", "Relu"]


@pytest.mark.parametrize("operators", ["all", "mx"])
def test_other_operators(operators: str, converted: Any) -> None:
    result = run(mixed, converted("chain", accuracy_level=1), operators)
    products = ["MatMulMXFP4"] * 3
    alone = {"CPUExecutionProvider": OTHERS, "MxortExecutionProvider": products}
    together = {"MxortExecutionProvider": sorted(OTHERS + products)}
    assert result["placement"] == (alone if operators == "mx" else together)
    assert result["error"] < 1e-5  # three products of relative error 1e-6 on either side
    assert result["live"] == {}
