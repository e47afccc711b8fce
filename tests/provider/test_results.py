"""What the provider computes, through whole sessions, against the oracle: every type, format and architecture."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto
from simulated import run

import op_model
import oracle

ONE_NODE = {"MxortExecutionProvider": ["MatMulMXFP4"]}
LEVEL_BOUND = {1: 1e-6, 3: 3e-3, 4: 1e-2}
"""What the operator promises where activations are not rounded (docs/format.md), relative RMS."""

TYPES = {"float": (TensorProto.FLOAT, np.float32), "float16": (TensorProto.FLOAT16, np.float16)}
ROWS = (1, 7, 33)  # a vector; the skinny kernels; the tiled ones


def outputs(cases: list[list[str]], target: str) -> list[dict[str, list[str]]]:
    """Runs each (model, file with its inputs); the first outputs go to ``target``, the placements come back."""
    import gpu
    import numpy as np

    placements, results = [], []
    with gpu.registered():
        for model, inputs in cases:
            opened = gpu.session(model)
            placements.append(gpu.placement(opened))
            results.append(opened.run(None, dict(np.load(inputs)))[0])
            del opened
    np.savez(target, *results)
    assert gpu.live() == {}, gpu.live()
    return placements


def one_node(case: oracle.Case, **options: Any) -> onnx.ModelProto:
    """The model of op_model.py without its casts."""
    proto = op_model.model(case, **options)
    (node,) = [n for n in proto.graph.node if n.op_type == "MatMulMXFP4"]
    node.input[0], node.output[0] = "A", "Y"
    del proto.graph.node[:]
    proto.graph.node.append(node)
    return proto


def assert_right(case: oracle.Case, a: NDArray[Any], y: NDArray[Any], what: str) -> None:
    """Quantised activations: the same operands bit for bit, so only the accumulation may differ. None: the level."""
    if case.activation_format != "none":
        oracle.assert_close(case, a, y, what)
        return
    exact, _ = oracle.evaluate(case, a)
    rounding = oracle.OUTPUT_EPSILON[str(y.dtype)]
    assert oracle.relative_rms(y, exact) <= LEVEL_BOUND[case.accuracy_level] + rounding, what


@pytest.mark.parametrize("arch", ["gfx950", "gfx942"])
def test_types_formats_and_shapes(arch: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    cases, expected = [], []
    for (form, level), (name, (element, dtype)) in itertools.product(
        oracle.FORMATS_AND_LEVELS, TYPES.items()
    ):
        rotation = 32 if name == "float16" else 1
        case = oracle.random_case(rng, 75, 160, rotation, activation_format=form, accuracy_level=level)
        model = tmp_path / f"{form}-{level}-{name}.onnx"
        onnx.save(one_node(case, elem_type=element, dims=("M",)), model)
        for rows in ROWS:
            a = rng.standard_normal((rows, case.K)).astype(dtype)
            inputs = tmp_path / f"{len(cases)}.npz"
            np.savez(inputs, A=a)
            cases.append([str(model), str(inputs)])
            expected.append((case, a, f"{arch} {model.stem} M={rows}"))
    placements = run(outputs, cases, str(tmp_path / "y.npz"), HIPSIM_DEVICES=arch)
    assert placements == [ONE_NODE] * len(cases)
    results = np.load(tmp_path / "y.npz")
    for n, (case, a, what) in enumerate(expected):
        assert_right(case, a, results[f"arr_{n}"], what)


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


def mixed(model: str) -> dict[str, Any]:
    """Nodes of a model on the GPU between others on the CPU."""
    import gpu
    import numpy as np

    import mxort

    with gpu.registered():
        opened = gpu.session(model)
        x = gpu.feeds(opened, rows=20)
        (y,) = opened.run(None, x)
        placement = gpu.placement(opened)
        del opened
    (expected,) = mxort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, x)
    error = float(np.sqrt(((y - expected) ** 2).sum() / (expected**2).sum()))
    return {"placement": placement, "error": error, "live": gpu.live()}


def test_other_operators_stay_on_the_cpu(converted: Any) -> None:
    result = run(mixed, converted("chain", accuracy_level=1))
    assert result["placement"] == {
        "CPUExecutionProvider": ["Add", "Mul", "Relu"],
        "MxortExecutionProvider": ["MatMulMXFP4"] * 3,
    }
    assert result["error"] < 1e-5  # three products of relative error 1e-6 on either side
    assert result["live"] == {}


def non_constant(model: str) -> list[Any]:
    import gpu

    with gpu.registered():
        opened = gpu.session(model)
        x = gpu.feeds(opened)
        return [gpu.placement(opened), [list(y.shape) for y in opened.run(None, x)]]


def test_only_constant_weights_are_claimed(tmp_path: Path) -> None:
    """The other node stays with the CPU operator, which reads weights at every run."""
    case = oracle.random_case(np.random.default_rng(6), 40, 64)
    proto = one_node(case, dims=("M",))
    (bias,) = [t for t in proto.graph.initializer if t.name == "bias"]
    proto.graph.initializer.remove(bias)
    proto.graph.input.append(onnx.helper.make_tensor_value_info("bias", TensorProto.FLOAT, [40]))
    onnx.save(proto, tmp_path / "m.onnx")
    assert run(non_constant, str(tmp_path / "m.onnx")) == [
        {"CPUExecutionProvider": ["MatMulMXFP4"]},
        [[5, 40]],
    ]
