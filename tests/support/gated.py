"""A gated block behind a norm: what smoothing can fold into, and a head that it cannot."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

K = 64


def gated(path, seed=0, exact=False):
    """norm -> gate, up; sigmoid(gate) * (up + b) -> down; and a head behind a Softmax, which lets no division through.

    ``exact``: weights of +-1 alone, of which MXFP4 loses nothing.
    """
    rng = np.random.default_rng(seed)

    def weight(name):
        values = rng.standard_normal((K, K)) / 8
        return numpy_helper.from_array((np.sign(values) if exact else values).astype(np.float32), name)

    vectors = {"g": 1 + rng.random(K), "c": rng.standard_normal(K), "b": rng.standard_normal(K)}
    vectors["g"][::16] *= 40  # outlier channels
    node = helper.make_node
    nodes = [
        node("LayerNormalization", ["x", "g", "c"], ["a"], name="norm", axis=-1),
        node("MatMul", ["a", "wg"], ["gate"], name="gate"),
        node("MatMul", ["a", "wu"], ["up0"], name="up"),
        node("Add", ["up0", "b"], ["up1"]),
        node("Sigmoid", ["gate"], ["r"]),
        node("Mul", ["r", "up1"], ["m"]),
        node("MatMul", ["m", "wd"], ["d"], name="down"),
        node("Softmax", ["d"], ["p"], axis=-1),
        node("MatMul", ["p", "wh"], ["h"], name="head"),
        node("Add", ["h", "d"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "gated",
        [value("x", TensorProto.FLOAT, ["n", K])],
        [value("y", TensorProto.FLOAT, ["n", K])],
        [weight(n) for n in ("wg", "wu", "wd", "wh")]
        + [numpy_helper.from_array(v.astype(np.float32), n) for n, v in vectors.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def feeds(count=8, seed=1):
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((32, K), dtype=np.float32)} for _ in range(count)]
