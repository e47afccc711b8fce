"""The operators of the domain mxort as model-local ONNX functions of standard operators, each written once.

A converted model carries those that it uses, so that the file runs in any ONNX Runtime and is its own oracle. With
the mxort library registered, its kernels take over. MatMulMXFP4 has no run-time quantisation of A here (Q in
docs/format.md).
"""

# ruff: noqa: N803 (the names of the operator's inputs and attributes)
from __future__ import annotations

from typing import no_type_check

import numpy as np
import onnx
import onnx.helper
import onnxscript
from onnxscript import opset15 as op

from mxort.formats import BLOCK_SIZE, E2M1, scale_value, unpack_nibbles

DOMAIN = "mxort"
VERSION = 1
MATMUL = "MatMulMXFP4"
GATHER = "GatherMXFP4"
MIN_OPSET = 15
"""Lowest opset in which the function is valid (CastLike); its operators kept their meaning since."""

ROTATIONS = (1, 32, 64, 128)

_E2M1_VALUES = onnx.helper.make_tensor("e2m1", onnx.TensorProto.FLOAT, [1 << E2M1.bits], E2M1.values)
_E8M0_VALUES = onnx.helper.make_tensor(
    "e8m0", onnx.TensorProto.FLOAT, [256], scale_value(np.arange(256, dtype=np.uint8))
)


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


@no_type_check  # a graph in Python's clothes: nothing in it has a Python type
@onnxscript.script(_domain, default_opset=op)
def MatMulMXFP4(  # noqa: N802 (an ONNX operator name)
    A,
    B,
    B_scale,
    column_scale,
    bias,
    K: int,
    N: int,
    rotation: int = 1,
    activation_format: str = "none",
    accuracy_level: int = 0,
):
    """Y[..., N] = (A[..., K] . H . dequant(B)^T) * column_scale + bias; H is applied to the constant side."""
    low = op.Mod(B, op.Constant(value=onnx.helper.make_tensor("sixteen", onnx.TensorProto.UINT8, [], [16])))
    high = op.BitShift(
        B,
        op.Constant(value=onnx.helper.make_tensor("four", onnx.TensorProto.UINT8, [], [4])),
        direction="RIGHT",
    )
    last = op.Constant(value_ints=[-1])
    pairs = op.Concat(op.Unsqueeze(low, last), op.Unsqueeze(high, last), axis=-1)  # [N, Kb*16, 2]
    blocks = op.Reshape(pairs, op.Constant(value_ints=[0, -1, BLOCK_SIZE]))  # [N, Kb, 32]
    elements = op.Gather(op.Constant(value=_E2M1_VALUES), op.Cast(blocks, to=onnx.TensorProto.INT32))
    scales = op.Gather(op.Constant(value=_E8M0_VALUES), op.Cast(B_scale, to=onnx.TensorProto.INT32))
    stored = elements * op.Unsqueeze(scales, last)  # [N, Kb, 32]

    size = op.Constant(value_int=rotation)
    sizes = op.Concat(op.Reshape(size, last), op.Reshape(size, last), axis=0)
    signs = op.Slice(
        op.Constant(value=_SYLVESTER), op.Constant(value_ints=[0, 0]), sizes, op.Constant(value_ints=[0, 1])
    )
    hadamard = op.Cast(signs, to=onnx.TensorProto.FLOAT) / op.Sqrt(op.Cast(size, to=onnx.TensorProto.FLOAT))
    by_rotation = op.Reshape(
        stored, op.Concat(op.Constant(value_ints=[0, -1]), op.Reshape(size, last), axis=0)
    )  # [N, ., rotation]
    rotated = op.Reshape(op.MatMul(by_rotation, hadamard), op.Constant(value_ints=[0, -1]))  # H is symmetric

    columns = op.Reshape(op.Constant(value_int=K), last)
    weight = op.Transpose(
        op.Slice(rotated, op.Constant(value_ints=[0]), columns, op.Constant(value_ints=[1])), perm=[1, 0]
    )
    product = op.MatMul(op.Cast(A, to=onnx.TensorProto.FLOAT), weight)
    return op.CastLike(product * column_scale + bias, A)


_E2M1_PAIRS = onnx.helper.make_tensor(
    "e2m1_pairs",
    onnx.TensorProto.FLOAT,
    [256, 2],
    E2M1.decode(unpack_nibbles(np.arange(256, dtype=np.uint8)[:, None])),
)


@no_type_check
@onnxscript.script(_domain, default_opset=op)
def GatherMXFP4(indices, B, B_scale, multiplier, K: int):  # noqa: N802
    """Y[..., K] = dequant(B)[indices] * multiplier[indices], float; only the rows asked for are decoded."""
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
    return kept * op.Unsqueeze(op.Gather(multiplier, indices), last)


_FUNCTIONS = {MATMUL: MatMulMXFP4, GATHER: GatherMXFP4}


def function(operator: str, opset: int) -> onnx.FunctionProto:
    """The function of ``operator`` for a model of default-domain ``opset``. Raises ValueError below MIN_OPSET."""
    if opset < MIN_OPSET:
        raise ValueError(f"{operator} needs opset {MIN_OPSET} or later, got {opset}")
    proto: onnx.FunctionProto = _FUNCTIONS[operator].to_function_proto()
    del proto.opset_import[:]
    proto.opset_import.extend([onnx.helper.make_opsetid("", opset)])
    return proto
