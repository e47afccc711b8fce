"""Operators with inputs, attributes and weights that cannot be: what is not understood stays; no rule raises."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import mxort
from same_products import model

RNG = np.random.default_rng(0)


def floats(*shape):
    return RNG.standard_normal(shape, dtype=np.float32)


def microsoft(op_type, inputs, outputs=("y",), **attributes):
    return helper.make_node(op_type, inputs, list(outputs), name="n", domain="com.microsoft", **attributes)


def plain(op_type, inputs, outputs=("y",), **attributes):
    return helper.make_node(op_type, inputs, list(outputs), name="n", **attributes)


WEIGHTS = {
    "m": floats(64, 32),
    "stack": floats(3, 64, 32),
    "kernel": floats(40, 32, 3, 3),
    "lw": floats(2, 64, 64),
    "lr": floats(2, 64, 16),
    "lb": floats(2, 128),
    "row": floats(32),
    "long": floats(192),
    "wide": floats(64, 192),
    "codes": RNG.integers(0, 256, (32, 2, 16), np.uint8),
    "flat": RNG.integers(0, 256, (32, 32), np.uint8),
    "scales": np.abs(floats(32, 2)) + 1,
    "q": RNG.integers(-128, 128, (64, 32)).astype(np.int8),
    "qs": np.abs(floats(32)) + 1,
    "qw": RNG.integers(-128, 128, (2, 64, 64)).astype(np.int8),
    "qr": RNG.integers(-128, 128, (2, 16, 64)).astype(np.int8),
    "two": np.abs(floats(2)) + 1,
    "zeros": np.zeros(2, np.int8),
}
CASES = [
    ((5, 64), [plain("Einsum", ["x", "m"], equation="ab,bc->ac")]),
    ((3, 5, 64), [plain("MatMul", ["x", "stack"])]),
    ((1, 32, 8, 8), [plain("Conv", ["x", "kernel"], strides=[1, 1], pads=[1, 1, 1, 1], dilations=[1, 1])]),
    ((5, 2, 64), [plain("LSTM", ["x", "lw", "lr", "lb"], hidden_size=16, direction="bidirectional")]),
    ((5, 64), [microsoft("FusedMatMul", ["x", "m"], transA=0, transB=0, alpha=1.0)]),
    ((5, 64), [microsoft("FusedGemm", ["x", "m", "row"], activation="Relu", transB=0)]),
    ((1, 32, 8, 8), [microsoft("FusedConv", ["x", "kernel"], activation="Relu", pads=[1, 1, 1, 1])]),
    ((2, 5, 64), [microsoft("Attention", ["x", "wide", "long"], num_heads=4)]),
    ((5, 64), [microsoft("MatMulNBits", ["x", "codes", "scales"], K=64, N=32, bits=4, block_size=32)]),
    ((5, 64), [microsoft("DynamicQuantizeMatMul", ["x", "q", "qs"])]),
    (
        (5, 2, 64),
        [
            microsoft(
                "DynamicQuantizeLSTM",
                ["x", "qw", "qr", "lb", "", "", "", "", "two", "zeros", "two", "zeros"],
                hidden_size=16,
                direction="bidirectional",
            )
        ],
    ),
    (
        (5, 64),
        [plain("DequantizeLinear", ["q", "qs"], ["w"], axis=1), plain("MatMul", ["x", "w"])],
    ),
    (
        (5, 64),
        [
            helper.make_node(
                "MXQuantizeDequantize",
                ["m"],
                ["w"],
                domain="com.amd.quark",
                element_dtype="fp4_e2m1",
                axis=0,
                block_size=32,
                rounding_mode=2,
            ),
            plain("MatMul", ["x", "w"]),
        ],
    ),
]


def damage(rng, proto):
    """One thing about a node, or about a weight that it reads."""
    node = proto.graph.node[rng.integers(len(proto.graph.node))]
    kind = rng.integers(5)
    if kind == 0 and node.input:
        del node.input[rng.integers(len(node.input)) :]
    elif kind == 1 and node.input:
        node.input[rng.integers(len(node.input))] = str(rng.choice(["", "x", "row", "m", "zeros"]))
    elif kind == 2 and node.attribute:
        attribute = node.attribute[rng.integers(len(node.attribute))]
        name = attribute.name
        value = [[-1], -7, 2**40, "bk,kn", [2**33, 0], 0.5, [1.5]][rng.integers(7)]
        attribute.CopyFrom(helper.make_attribute(name, value))
    elif kind == 3 and node.attribute:
        del node.attribute[rng.integers(len(node.attribute))]
    else:
        names = [name for name in node.input if name in WEIGHTS]
        if names:
            name = rng.choice(names)
            tensor = next(t for t in proto.graph.initializer if t.name == name)
            array = numpy_helper.to_array(tensor)
            shape = [array.shape[::-1], array.shape[:-1], (0, *array.shape[1:]), (*array.shape, 1)][
                rng.integers(4)
            ]
            tensor.CopyFrom(numpy_helper.from_array(np.resize(array, shape), tensor.name))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("case", range(len(CASES)), ids=[nodes[0].op_type for _, nodes in CASES])
def test_damaged(case, seed):
    shape, nodes = CASES[case]
    read = {name for node in nodes for name in node.input}
    weights = {name: array for name, array in WEIGHTS.items() if name in read | {"row", "m", "zeros"}}
    proto = model(
        [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes], {"x": floats(*shape)}, weights
    )
    proto.opset_import.append(helper.make_opsetid("com.amd.quark", 1))
    options = {"requantize": True, "convert_conv": True, "min_elements": 0}
    if seed == 0:
        assert mxort.convert(proto, **options).converted, "undamaged it is converted"
        return
    for _ in range(3):
        damage(np.random.default_rng(1000 * case + seed), proto)
        try:
            report = mxort.convert(proto, **options)
        except mxort.MxortError as error:
            assert "\n" not in str(error)
        else:
            assert report.model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
