"""Models small enough to convert and run in milliseconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTHS = (64, 128, 96)
"""Input, hidden and output width of :func:`mlp`."""


def mlp(path: Path, *, seed: int = 0, scale: float = 1.0, external: bool = False, output: str = "y") -> Path:
    """x float [batch, 64] -> fc1, Add, Relu, fc2 (MatMul both) -> y float [batch, 96] times ``scale``."""
    rng = np.random.default_rng(seed)
    constants = {
        "w1": rng.standard_normal(WIDTHS[:2], dtype=np.float32),
        "b1": rng.standard_normal(WIDTHS[1], dtype=np.float32),
        "w2": rng.standard_normal(WIDTHS[1:], dtype=np.float32) * np.float32(scale),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h0"], name="fc1"),
        helper.make_node("Add", ["h0", "b1"], ["h1"], name="bias"),
        helper.make_node("Relu", ["h1"], ["h2"], name="relu"),
        helper.make_node("MatMul", ["h2", "w2"], [output], name="fc2"),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTHS[0]])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", WIDTHS[2]])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path, save_as_external_data=external, location=path.name + ".data", size_threshold=0)
    return path
