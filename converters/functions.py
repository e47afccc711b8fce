"""The operators of the domain mxort as model-local ONNX functions of standard operators, each written once.

A converted model carries those that it uses, so that the file runs in any ONNX Runtime and is its own oracle. With
the mxort library registered, its kernels take over. The products have no run-time quantisation of A here (Q in
docs/format.md).
"""

# ruff: noqa: N803 (the names of the operator's inputs and attributes)
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, no_type_check

import numpy as np
import onnx
import onnx.helper
import onnxscript
from onnxscript import opset15 as op

from mxort.formats import BLOCK_SIZE, E2M1, WEIGHT_FORMATS, ElementFormat, scale_value, unpack_nibbles, word

DOMAIN = "mxort"
VERSION = 1
OPERATORS = {4: "MatMulMXFP4", 6: "MatMulMXFP6", 8: "MatMulMXFP8"}
"""The operator of each width of weights' elements, in bits."""

MATMUL = OPERATORS[E2M1.bits]
GATHER = "GatherMXFP4"
MIN_OPSET = 15
"""Lowest opset in which the functions are valid (CastLike); their operators kept their meaning since."""

ROTATIONS = (1, 32, 64, 128)

EXPONENT_BITS = "exponent_bits"
"""The attribute that tells the formats of one width apart, where there are several."""

_E8M0_VALUES = onnx.helper.make_tensor(
    "e8m0", onnx.TensorProto.FLOAT, [256], scale_value(np.arange(256, dtype=np.uint8))
)


def formats_of(bits: int) -> list[ElementFormat]:
    """The weight formats of an operator; the first is its default."""
    return [fmt for fmt in WEIGHT_FORMATS.values() if fmt.bits == bits]


def operator_of(weight_format: str) -> tuple[str, dict[str, Any]]:
    """(the operator for a weight format, the attributes that tell it from the operator's other formats)."""
    fmt = WEIGHT_FORMATS[weight_format]
    several = len(formats_of(fmt.bits)) > 1
    return OPERATORS[fmt.bits], {EXPONENT_BITS: fmt.exponent_bits} if several else {}


def weight_format_of(operator: str, exponent_bits: int = 0) -> str:
    """The weight format of an operator with this attribute (0: absent). Raises KeyError for an unknown one."""
    for name, fmt in WEIGHT_FORMATS.items():
        if OPERATORS[fmt.bits] == operator and exponent_bits in (0, fmt.exponent_bits):
            return name
    raise KeyError(operator, exponent_bits)


def _sylvester(size: int) -> np.ndarray:
    """int8 [size, size] of +-1: the Sylvester Hadamard matrix; its leading blocks are the smaller ones."""
    h = np.ones((1, 1), np.int8)
    while len(h) < size:
        h = np.block([[h, h], [h, -h]])
    return h


_SYLVESTER = onnx.helper.make_tensor(
    "sylvester", onnx.TensorProto.INT8, [ROTATIONS[-1]] * 2, _sylvester(ROTATIONS[-1]).tobytes(), raw=True
)

_domain = onnxscript.values.Opset(DOMAIN, VERSION)


def _int32(name: str, values: Sequence[int]) -> onnx.TensorProto:
    return onnx.helper.make_tensor(name, onnx.TensorProto.INT32, [len(values)], list(values))


def _define(bits: int) -> Any:
    """The function of the operator with weights of so many bits."""
    formats = formats_of(bits)
    codes, nbytes = word(formats[0])
    radix = _int32("radix", [256**i for i in range(nbytes)])
    divisors = _int32("divisors", [2 ** (bits * i) for i in range(codes)])
    count = _int32("count", [2**bits])
    # One table for each number of exponent bits, from the first format's on.
    values = onnx.helper.make_tensor(
        "values", onnx.TensorProto.FLOAT, [len(formats), 2**bits], np.stack([f.values for f in formats])
    )
    first = formats[0].exponent_bits
    bytes_shape, blocks_shape = [0, -1, nbytes], [0, -1, BLOCK_SIZE]

    @no_type_check  # a graph in Python's clothes: nothing in it has a Python type
    @onnxscript.script(_domain, default_opset=op)
    def matmul(
        A,
        B,
        B_scale,
        column_scale,
        bias,
        K: int,
        N: int,
        exponent_bits: int = first,
        rotation: int = 1,
        activation_format: str = "none",
        accuracy_level: int = 0,
    ):
        """Y[..., N] = (A[..., K] . H . dequant(B)^T) * column_scale + bias; H is applied to the constant side."""
        last = op.Constant(value_ints=[-1])
        # Words of whole codes in whole bytes: sums of their bytes, taken apart again.
        byte = op.Cast(
            op.Reshape(B, op.Constant(value_ints=bytes_shape)), to=onnx.TensorProto.INT32
        )  # [N, ., bytes]
        words = op.ReduceSum(byte * op.Constant(value=radix), last, keepdims=1)
        codes = op.Mod(words / op.Constant(value=divisors), op.Constant(value=count))
        blocks = op.Reshape(codes, op.Constant(value_ints=blocks_shape))  # [N, Kb, 32]
        table = op.Gather(
            op.Constant(value=values), op.Constant(value_int=exponent_bits) - op.Constant(value_int=first)
        )
        elements = op.Gather(table, blocks)
        scales = op.Gather(op.Constant(value=_E8M0_VALUES), op.Cast(B_scale, to=onnx.TensorProto.INT32))
        stored = elements * op.Unsqueeze(scales, last)  # [N, Kb, 32]

        size = op.Constant(value_int=rotation)
        sizes = op.Concat(op.Reshape(size, last), op.Reshape(size, last), axis=0)
        signs = op.Slice(
            op.Constant(value=_SYLVESTER),
            op.Constant(value_ints=[0, 0]),
            sizes,
            op.Constant(value_ints=[0, 1]),
        )
        hadamard = op.Cast(signs, to=onnx.TensorProto.FLOAT) / op.Sqrt(
            op.Cast(size, to=onnx.TensorProto.FLOAT)
        )
        by_rotation = op.Reshape(
            stored, op.Concat(op.Constant(value_ints=[0, -1]), op.Reshape(size, last), axis=0)
        )  # [N, ., rotation]
        rotated = op.Reshape(
            op.MatMul(by_rotation, hadamard), op.Constant(value_ints=[0, -1])
        )  # H is symmetric

        columns = op.Reshape(op.Constant(value_int=K), last)
        weight = op.Transpose(
            op.Slice(rotated, op.Constant(value_ints=[0]), columns, op.Constant(value_ints=[1])), perm=[1, 0]
        )
        product = op.MatMul(op.Cast(A, to=onnx.TensorProto.FLOAT), weight)
        # float, or A's type where a tool has made the model float16
        scale = op.Cast(column_scale, to=onnx.TensorProto.FLOAT)
        return op.CastLike(product * scale + op.Cast(bias, to=onnx.TensorProto.FLOAT), A)

    return matmul


_E2M1_PAIRS = onnx.helper.make_tensor(
    "e2m1_pairs",
    onnx.TensorProto.FLOAT,
    [256, 2],
    E2M1.decode(unpack_nibbles(np.arange(256, dtype=np.uint8)[:, None])),
)


@no_type_check
@onnxscript.script(_domain, default_opset=op)
def GatherMXFP4(indices, B, B_scale, multiplier, K: int):  # noqa: N802
    """Y[..., K] = dequant(B)[indices] * multiplier[indices] in multiplier's type; only rows asked for are decoded."""
    last = op.Constant(value_ints=[-1])
    blocks = op.Concat(op.Shape(indices), op.Shape(B_scale, start=1), axis=0)  # [..., Kb]
    codes = op.Cast(op.Gather(B, indices), to=onnx.TensorProto.INT32)
    by_block = op.Concat(blocks, op.Constant(value_ints=[BLOCK_SIZE]), axis=0)
    elements = op.Reshape(op.Gather(op.Constant(value=_E2M1_PAIRS), codes), by_block)  # [..., Kb, 32]
    scales = op.Gather(
        op.Constant(value=_E8M0_VALUES), op.Cast(op.Gather(B_scale, indices), to=onnx.TensorProto.INT32)
    )
    width = op.Shape(B_scale, start=1) * op.Constant(value_ints=[BLOCK_SIZE])
    rows = op.Reshape(elements * op.Unsqueeze(scales, last), op.Concat(op.Shape(indices), width, axis=0))
    columns = op.Reshape(op.Constant(value_int=K), last)
    kept = op.Slice(rows, op.Constant(value_ints=[0]), columns, last)
    factors = op.Cast(op.Gather(multiplier, indices), to=onnx.TensorProto.FLOAT)
    return op.CastLike(kept * op.Unsqueeze(factors, last), multiplier)


_BITS = {name: bits for bits, name in OPERATORS.items()}
_FUNCTIONS = {name: _define(bits) for bits, name in OPERATORS.items()} | {GATHER: GatherMXFP4}


def _fix_attribute(proto: onnx.FunctionProto, name: str) -> None:
    """Makes an attribute of the function the constant that is its default."""
    default = next(a for a in proto.attribute_proto if a.name == name)
    proto.attribute_proto.remove(default)
    for attribute in (a for node in proto.node for a in node.attribute if a.ref_attr_name == name):
        attribute.ref_attr_name = ""
        attribute.i = default.i


def function(operator: str, opset: int) -> onnx.FunctionProto:
    """The function of ``operator`` for a model of default-domain ``opset``. Raises ValueError below MIN_OPSET."""
    if opset < MIN_OPSET:
        raise ValueError(f"{operator} needs opset {MIN_OPSET} or later, got {opset}")
    proto: onnx.FunctionProto = _FUNCTIONS[operator].to_function_proto()
    proto.name = operator
    if operator in _BITS and len(formats_of(_BITS[operator])) == 1:
        _fix_attribute(proto, EXPONENT_BITS)
    del proto.opset_import[:]
    proto.opset_import.extend([onnx.helper.make_opsetid("", opset)])
    return proto
