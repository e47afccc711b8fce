"""Models whose operators are products in other words: before and after, in float, and converted."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

import mxort
from mxort.converters import products, sites

_TYPES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64}
_TYPES |= {np.dtype(np.float16): TensorProto.FLOAT16, np.dtype(np.int32): TensorProto.INT32}

E2M1 = np.float32([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def exact(rng, *shape):
    """Numbers of E2M1: MXFP4 holds them exactly, wherever they stand in its blocks."""
    return rng.choice(E2M1, shape) * rng.choice(np.float32([-1, 1]), shape)


def model(nodes, feeds, weights, outputs=("y",), opset=17, static=True):
    """A model of ``nodes``; its inputs have the shapes of ``feeds``, or only their ranks."""

    kind = _TYPES[next(a.dtype for a in [*feeds.values(), *weights.values()] if a.dtype.kind == "f")]

    def info(name, array):
        shape = array.shape if static else [f"{name}{i}" for i in range(array.ndim)]
        return helper.make_tensor_value_info(name, _TYPES[array.dtype], shape)

    graph = helper.make_graph(
        nodes,
        "g",
        [info(name, array) for name, array in feeds.items()],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def run(proto, feeds, library=False, plain=False):
    """``plain``: nothing is fused. (A product with what dequantises its weight is, and then rounds its input.)"""
    options = ort.SessionOptions()
    if plain:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if library:
        mxort.register(options)
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))


def expressed(proto, **selection):
    """The model with products in the place of its operators, in float; the reasons of those that stay."""
    made = ir.from_proto(proto)
    products.express(made, sites.Selection(**{"min_elements": 0, **selection}))
    reasons = [node.meta[sites.LEFT] for node in made.graph.all_nodes() if sites.LEFT in node.meta]
    return ir.to_proto(made), reasons


def operators(proto):
    return [node.op_type for node in proto.graph.node if node.op_type != "Constant"]


def assert_near(got, want, bound):
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        worst = np.abs(a.astype(np.float64) - b).max(initial=0)
        assert worst <= bound, (worst, bound)


def sum_bound(k, x, w):
    """What two sums of k products may differ by, added in any order: 2 k eps of the sum of magnitudes."""
    return 2 * k * np.finfo(np.float32).eps * k * np.abs(x).max() * np.abs(w).max()


def assert_same(proto, feeds, bound, *, gone, converted=1, **options):
    """The operator ``gone`` is a product in float; and converted: its weights must be :func:`exact`."""
    want = run(proto, feeds)
    floats, reasons = expressed(proto, **options)
    assert not reasons and gone not in operators(floats)
    assert_near(run(floats, feeds), want, bound)
    report = mxort.convert(proto, min_elements=0, accuracy_level=1, **options)
    assert len(report.converted) == converted, [(s.node, s.reason) for s in report.skipped]
    for library in (True, False):
        assert_near(run(report.model, feeds, library), want, bound)
    return report
