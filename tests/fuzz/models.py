"""Small models that onnxruntime runs, whose weights MXFP4 holds exactly: a conversion must compute what they do.

What exporters do in different ways is left to chance: where a weight stands (initializer, constant, behind steps that
only move it), which operator multiplies it, what follows, what is shared, and in which order nodes are stored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import mxort
from fuzz.worker import WrongError

Array = NDArray[Any]
OPSETS = {11: 6, 13: 7, 17: 8, 19: 9, 21: 10}
"""Opset -> the IR version of its time."""

TOLERANCE = 1e-4
"""Of the largest value. accuracy_level 1 bounds a product's relative RMS by 1e-6; single values err a few times more,
up to five products follow each other, and their sums cancel by a factor of ten at most in these models."""


class Builder:
    """A graph that grows by random steps; ``value`` is the name of what comes next, float [B, width]."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.opset = int(rng.choice(list(OPSETS)))
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.weights: list[tuple[str, Array]] = []
        self.count = 0
        self.width = int(rng.choice([32, 48, 64, 96]))
        self.value = "x"
        self.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", self.width])]
        self.feeds: dict[str, Array] = {"x": rng.standard_normal((5, self.width), dtype=np.float32)}

    def name(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        names = [self.name() for _ in range(outputs)]
        label = str(self.rng.choice(["", "same", f"n{self.count}", f"/a.{self.count}/{op}[0]"]))
        self.nodes.append(helper.make_node(op, inputs, names, name=label, **attributes))
        return names[0]

    def constant(self, array: Array) -> str:
        """The array as an initializer or as a Constant node."""
        name = self.name()
        if self.rng.random() < 0.3:
            tensor = numpy_helper.from_array(array)
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def exact(self, k: int, n: int) -> Array:
        """[k, n] of E2M1 values; every block of 32 along k has a 6, so that its scale is one."""
        w = self.rng.choice(np.float32([0, 0.5, 1, 1.5, 2, 3, 4, 6]), (k, n))
        w *= self.rng.choice(np.float32([-1, 1]), (k, n))
        w[::32] = 6
        return w / np.float32(16)

    def weight(self, w: Array) -> str:
        """The name of a value that is w, after up to two steps that onnxruntime folds."""
        step = str(
            self.rng.choice(["plain", "plain", "transpose", "reshape", "squeeze", "cast", "slice", "concat"])
        )
        name = f"_{step}"
        return str(getattr(self, name)(w))

    def _plain(self, w: Array) -> str:
        if self.rng.random() < 0.9:
            return self.constant(w)
        name = self.name()  # a default that a caller may replace: no constant, so it stays
        self.initializers.append(numpy_helper.from_array(w, name))
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, w.shape))
        return name

    def _transpose(self, w: Array) -> str:
        return self.node("Transpose", self.constant(np.ascontiguousarray(w.T)), perm=[1, 0])

    def _reshape(self, w: Array) -> str:
        return self.node("Reshape", self.constant(w.reshape(-1)), self.constant(np.int64(w.shape)))

    def _squeeze(self, w: Array) -> str:
        held = self.constant(w[None])
        if self.opset < 13:
            return self.node("Squeeze", held, axes=[0])
        return self.node("Squeeze", held, self.constant(np.int64([0])))

    def _cast(self, w: Array) -> str:
        return self.node("Cast", self.constant(w.astype(np.float16)), to=TensorProto.FLOAT)

    def _slice(self, w: Array) -> str:
        wide = np.concatenate([w, np.ones((3, w.shape[1]), np.float32)])
        bounds = [self.constant(np.int64([bound])) for bound in (0, len(w), 0)]
        return self.node("Slice", self.constant(wide), *bounds)

    def _concat(self, w: Array) -> str:
        cut = w.shape[1] // 2
        return self.node(
            "Concat",
            self.constant(np.ascontiguousarray(w[:, :cut])),
            self.constant(np.ascontiguousarray(w[:, cut:])),
            axis=1,
        )

    def product(self) -> None:
        n = int(self.rng.choice([16, 32, 48, 64]))
        shared = [entry for entry in self.weights if entry[1].shape[0] == self.width]
        if shared and self.rng.random() < 0.3:
            name, w = shared[0]
        else:
            w = self.exact(self.width, n)
            name = self.weight(w)
            self.weights.append((name, w))
        n = w.shape[1]
        if self.rng.random() < 0.4:
            alpha = float(self.rng.choice([1.0, 0.5, 2.0]))
            bias = (
                [self.constant(self.rng.standard_normal(n, dtype=np.float32))]
                if self.rng.random() < 0.5
                else []
            )
            self.value = self.node("Gemm", self.value, name, *bias, alpha=alpha)
        else:
            self.value = self.node("MatMul", self.value, name)
            if self.rng.random() < 0.4:
                bias_name = self.constant(self.rng.standard_normal((n,), dtype=np.float32))
                self.value = self.node("Add", self.value, bias_name)
        self.width = n

    def activation(self) -> None:
        op = str(self.rng.choice(["Relu", "Tanh", "Sigmoid", "Identity", "Dropout", "branch"]))
        if op != "branch":
            self.value = self.node(op, self.value)
            return
        out = helper.make_tensor_value_info("then", TensorProto.FLOAT, None)
        w = self.exact(self.width, self.width)
        inner = numpy_helper.from_array(w, "inner" + self.name())
        then = helper.make_graph(
            [helper.make_node("MatMul", [self.value, inner.name], ["then"])], "then", [], [out], [inner]
        )
        other_out = helper.make_tensor_value_info("other", TensorProto.FLOAT, None)
        other = helper.make_graph([helper.make_node("Neg", [self.value], ["other"])], "else", [], [other_out])
        name = "flag" + self.name()
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.BOOL, []))
        self.feeds[name] = np.array(bool(self.rng.random() < 0.7))
        self.value = self.node("If", name, then_branch=then, else_branch=other)

    def model(self) -> onnx.ModelProto:
        for _ in range(int(self.rng.integers(1, 5))):
            self.product()
            self.activation()
        outputs = [helper.make_tensor_value_info(self.value, TensorProto.FLOAT, None)]
        if self.rng.random() < 0.1 and self.weights:  # somebody reads a weight in float
            outputs.append(
                helper.make_tensor_value_info(self.node("Neg", self.weights[0][0]), TensorProto.FLOAT, None)
            )
        if self.rng.random() < 0.3:
            order = self.rng.permutation(len(self.nodes))
            self.nodes = [self.nodes[i] for i in order]
        graph = helper.make_graph(self.nodes, "g", self.inputs, outputs, self.initializers)
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=OPSETS[self.opset])


def outputs(model: onnx.ModelProto, feeds: dict[str, Array], library: bool) -> list[Array]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if library:
        mxort.register(options)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def run(rng: np.random.Generator) -> str:
    builder = Builder(rng)
    model = builder.model()
    try:
        want = outputs(model, builder.feeds, library=False)
    except Exception as error:  # a model that nobody runs says nothing, but must not be frequent
        if "two nodes with same node name" not in str(error):
            raise
        for node in model.graph.node:
            node.name = ""
        want = outputs(model, builder.feeds, library=False)
    report = mxort.convert(model, accuracy_level=1, min_elements=1)
    converted = report.model
    assert isinstance(converted, onnx.ModelProto)
    library = bool(rng.random() < 0.8)
    for got, right in zip(outputs(converted, builder.feeds, library), want, strict=True):
        if got.shape != right.shape:
            raise WrongError(f"shape {got.shape}, expected {right.shape}")
        far = float(np.abs(got - right).max(initial=0) / max(1e-30, float(np.abs(right).max(initial=0))))
        if not far <= TOLERANCE:
            raise WrongError(f"differs by {far:.2g} of the largest value, library {library}")
    return "all converted" if not report.skipped else "some left alone"
