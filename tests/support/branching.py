"""A model whose sites are in a row, side by side and in a subgraph, with its operands."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

K = 64


def branching(path):
    """Sites in a row, side by side, with a shared input, in a subgraph and behind Gemm's attributes."""
    rng = np.random.default_rng(0)

    def tensor(name, *shape):
        return numpy_helper.from_array(rng.standard_normal(shape, dtype=np.float32) / 8, name)

    constants = [tensor(f"w{i}", K, K) for i in range(5)]
    constants += [tensor("wt", K, K), tensor("bias", K), tensor("inner", K, K), tensor("scale", K, 1)]
    constants.append(numpy_helper.from_array(np.array(True), "yes"))
    node = helper.make_node
    result = [helper.make_tensor_value_info("branch", TensorProto.FLOAT, None)]
    inside = helper.make_graph(
        [node("MatMul", ["g", "inner"], ["branch"], name="inside")], "then", [], result
    )
    other = [helper.make_tensor_value_info("other", TensorProto.FLOAT, None)]
    outside = helper.make_graph([node("Neg", ["mixed"], ["other"])], "else", [], other)
    nodes = [
        node("Transpose", ["scale"], ["row"]),  # a constant that two stages compute
        node("Mul", ["x", "row"], ["scaled"]),
        node("MatMul", ["scaled", "w0"], ["a"], name="a"),
        node("MatMul", ["scaled", "w1"], ["b0"], name="b"),
        node("Add", ["b0", "bias"], ["b"]),
        node("MatMul", ["x", "w2"], ["c"], name="c"),
        node("Tanh", ["a"], ["ta"]),
        node("MatMul", ["ta", "w3"], ["d"], name="d"),
        node("Mul", ["d", "b"], ["gated"]),
        node("Add", ["gated", "x"], ["mixed"]),  # x lives until here
        node("Mul", ["mixed", "row"], ["e"]),
        node("Transpose", ["e"], ["et"], perm=[1, 0]),
        node("Gemm", ["et", "wt", "bias"], ["g"], name="g", transA=1, transB=1, alpha=0.5, beta=2.0),
        node("If", ["yes"], ["h"], then_branch=inside, else_branch=outside),
        node("Add", ["h", "c"], ["hc"]),
        node("MatMul", ["hc", "w4"], ["y"], name="last"),
        node("Exp", ["y"], ["unused"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["n", K])],
        [value("y", TensorProto.FLOAT, ["n", K]), value("unused", TensorProto.FLOAT, ["n", K])],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def feeds(count=5, rows=40):
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((rows + i, K), dtype=np.float32)} for i in range(count)]


OPERANDS = {"a": "scaled", "b": "scaled", "c": "x", "d": "ta", "g": "et", "last": "hc"}
