"""Small models for the execution provider's tests, made by the converter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import mxort

WIDTH, HIDDEN = 96, 160
"""Three blocks of 32, and no multiple of a tile; five, one of them the second half of a step of 64."""


def single() -> onnx.ModelProto:
    """x [rows, WIDTH] -> y [rows, HIDDEN]: one MatMul."""
    return _model([helper.make_node("MatMul", ["x", "w1"], ["y"], name="up")], HIDDEN)


def scaled() -> onnx.ModelProto:
    """x [rows, WIDTH] -> y [rows, HIDDEN]: a Mul, then a MatMul."""
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["g"], name="scaled"),
        helper.make_node("MatMul", ["g", "w1"], ["y"], name="up"),
    ]
    return _model(nodes, HIDDEN)


def chain() -> onnx.ModelProto:
    """x [rows, WIDTH] -> y [rows, WIDTH]: three MatMuls with a Mul, a Relu and an Add between them.

    No two of the products are neighbours: every tensor between them passes through another operator.
    """
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="up"),
        helper.make_node("Mul", ["h", "gate"], ["g"], name="gated"),
        helper.make_node("Relu", ["g"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w2"], ["d"], name="down"),
        helper.make_node("MatMul", ["x", "w3"], ["s"], name="side"),
        helper.make_node("Add", ["d", "s"], ["y"], name="sum"),
    ]
    return _model(nodes, WIDTH)


def _model(nodes: list[onnx.NodeProto], width: int) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    shapes = {
        "w1": (WIDTH, HIDDEN),
        "w2": (HIDDEN, WIDTH),
        "w3": (WIDTH, WIDTH),
        "gate": (HIDDEN,),
        "scale": (WIDTH,),
    }
    used = {name for node in nodes for name in node.input}
    constants = [numpy_helper.from_array(_weight(rng, shapes[n]), n) for n in shapes if n in used]
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", width])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _weight(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)


def converted(model: onnx.ModelProto, path: Path, **recipe: Any) -> str:
    """Writes the model converted with these options of the recipe."""
    report = mxort.convert(model, path, **recipe)
    assert all(site.status == "converted" for site in report.sites), [s.reason for s in report.sites]
    return str(path)
