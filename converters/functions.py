"""The operators of the domain mxort as model-local ONNX functions of standard operators, each written once.

A converted model carries those that it uses, so that the file runs in any ONNX Runtime and is its own oracle. With
the mxort library registered, its kernels take over. The products have no run-time quantisation of A here (Q in
docs/format.md).
"""

# ruff: noqa: N803 (the names of the operator's inputs and attributes)
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, no_type_check

import numpy as np
import onnx
import onnx.helper
import onnxscript
from onnxscript import opset15 as op

from mxort.formats import BLOCK_SIZE, WEIGHT_FORMATS, ElementFormat, scale_value, unpack_codes, word

DOMAIN = "mxort"
VERSION = 1
MIN_OPSET = 15
"""Lowest opset in which the functions are valid (CastLike); their operators kept their meaning since."""

ROTATIONS = (1, 32, 64, 128)

EXPONENT_BITS = "exponent_bits"
"""The attribute that tells the formats of one width apart, where there are several."""

_E8M0_VALUES = onnx.helper.make_tensor(
    "e8m0", onnx.TensorProto.FLOAT, [256], scale_value(np.arange(256, dtype=np.uint8))
)


def _kind(fmt: ElementFormat) -> str:
    """The kind and width of elements that an operator is named for."""
    return f"MX{'INT' if fmt.twos_complement else 'FP'}{fmt.bits}"


_KINDS = tuple(dict.fromkeys(_kind(fmt) for fmt in WEIGHT_FORMATS.values()))
MATMUL, FUSED, GATED, GATHER, MOE = "MatMul", "FusedMatMul", "GatedMatMul", "Gather", "MoE"
MATMULS = tuple(MATMUL + kind for kind in _KINDS)
GATHERS = tuple(GATHER + kind for kind in _KINDS)
EPILOGUES = tuple(form + kind for form in (FUSED, GATED) for kind in _KINDS)
"""The operators of each kind: products with a weight, rows of a table, products with what follows them."""

EXPERTS = MOE + "MXFP4"
"""A mixture of experts: two stacks of weights, and the routing."""

WITH_WEIGHTS = frozenset((*MATMULS, *GATHERS, *EPILOGUES, EXPERTS))

ACTIVATION = "activation"
RELU, GELU, GELU_TANH, SILU = 1, 2, 3, 4
"""The attribute that tells what follows a product, and its values; 0: nothing."""


def _kind_of(operator: str) -> str:
    """The kind and width of an operator's elements."""
    for form in (FUSED, GATED, MATMUL, GATHER, MOE):
        if operator.startswith(form):
            return operator.removeprefix(form)
    return ""


def formats_of(operator: str) -> dict[str, ElementFormat]:
    """The weight formats of an operator by name; the first is its default."""
    kind = _kind_of(operator)
    return {name: fmt for name, fmt in WEIGHT_FORMATS.items() if _kind(fmt) == kind}


def operands_of(operator: str) -> int:
    """How many weights an operator has, each with four inputs."""
    return 2 if operator.startswith((GATED, MOE)) else 1


def first_weight(operator: str) -> int:
    """Which input of an operator is the codes of its first weight."""
    return 2 if operator == EXPERTS else 1


def operator_of(weight_format: str, *, gather: bool = False) -> tuple[str, dict[str, Any]]:
    """(the operator for a weight format, the attributes that tell it from the operator's other formats)."""
    fmt = WEIGHT_FORMATS[weight_format]
    operator = ("Gather" if gather else "MatMul") + _kind(fmt)
    several = len(formats_of(operator)) > 1
    return operator, {EXPONENT_BITS: fmt.exponent_bits} if several else {}


def weight_format_of(operator: str, exponent_bits: int = 0) -> str:
    """The weight format of an operator with this attribute (0: absent). Raises KeyError for an unknown one."""
    for name, fmt in formats_of(operator).items():
        if exponent_bits in (0, fmt.exponent_bits):
            return name
    raise KeyError(operator, exponent_bits)


def _sylvester(size: int) -> np.ndarray:
    """int8 [size, size] of +-1: the Sylvester Hadamard matrix; its leading blocks are the smaller ones."""
    h = np.ones((1, 1), np.int8)
    while len(h) < size:
        h = np.block([[h, h], [h, -h]])
    return h


SYLVESTER = onnx.helper.make_tensor(
    "sylvester", onnx.TensorProto.INT8, [ROTATIONS[-1]] * 2, _sylvester(ROTATIONS[-1]).tobytes(), raw=True
)

_domain = onnxscript.values.Opset(DOMAIN, VERSION)


def _int32(name: str, values: Sequence[int]) -> onnx.TensorProto:
    return onnx.helper.make_tensor(name, onnx.TensorProto.INT32, [len(values)], list(values))


@dataclass(frozen=True)
class _Decoding:
    """The constants with which the functions of a kind decode: words of whole codes in whole bytes."""

    radix: onnx.TensorProto
    divisors: onnx.TensorProto
    count: onnx.TensorProto
    values: onnx.TensorProto  # a table for each number of exponent bits, from the first format's on
    first: int
    nbytes: int

    @staticmethod
    def of(operator: str) -> _Decoding:
        formats = list(formats_of(operator).values())
        bits = formats[0].bits
        codes, nbytes = word(formats[0])
        tables = np.stack([f.values for f in formats])
        return _Decoding(
            _int32("radix", [256**i for i in range(nbytes)]),
            _int32("divisors", [2 ** (bits * i) for i in range(codes)]),
            _int32("count", [2**bits]),
            onnx.helper.make_tensor("values", onnx.TensorProto.FLOAT, tables.shape, tables),
            formats[0].exponent_bits,
            nbytes,
        )


@cache
def _matmul(operator: str) -> Any:
    """The function of a product."""
    d = _Decoding.of(operator)
    radix, divisors, count, values, first = d.radix, d.divisors, d.count, d.values, d.first
    bytes_shape, blocks_shape = [0, -1, d.nbytes], [0, -1, BLOCK_SIZE]

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
            op.Constant(value=SYLVESTER),
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


@cache
def _gather(operator: str) -> Any:
    """The function of a table's rows; only those asked for are decoded."""
    d = _Decoding.of(operator)
    radix, divisors, count, values, first, nbytes = (
        d.radix,
        d.divisors,
        d.count,
        d.values,
        d.first,
        [d.nbytes],
    )

    @no_type_check
    @onnxscript.script(_domain, default_opset=op)
    def gather(indices, B, B_scale, multiplier, K: int, exponent_bits: int = first):
        """Y[..., K] = dequant(B)[indices] * multiplier[indices] in multiplier's type."""
        last = op.Constant(value_ints=[-1])
        blocks = op.Concat(op.Shape(indices), op.Shape(B_scale, start=1), axis=0)  # [..., Kb]
        per_word = op.Constant(value_ints=nbytes)
        rows = op.Concat(
            op.Shape(indices), op.Shape(B, start=1) / per_word, per_word, axis=0
        )  # [..., ., bytes]
        byte = op.Reshape(op.Cast(op.Gather(B, indices), to=onnx.TensorProto.INT32), rows)
        # Not ReduceSum, which onnxruntime gives the wrong shape where there are no rows.
        words = op.MatMul(byte, op.Unsqueeze(op.Constant(value=radix), last))
        codes = op.Mod(words / op.Constant(value=divisors), op.Constant(value=count))
        by_block = op.Reshape(codes, op.Concat(blocks, op.Constant(value_ints=[BLOCK_SIZE]), axis=0))
        table = op.Gather(
            op.Constant(value=values), op.Constant(value_int=exponent_bits) - op.Constant(value_int=first)
        )
        scales = op.Gather(
            op.Constant(value=_E8M0_VALUES), op.Cast(op.Gather(B_scale, indices), to=onnx.TensorProto.INT32)
        )
        elements = op.Gather(table, by_block) * op.Unsqueeze(scales, last)  # [..., Kb, 32]
        width = op.Shape(B_scale, start=1) * op.Constant(value_ints=[BLOCK_SIZE])
        whole = op.Reshape(elements, op.Concat(op.Shape(indices), width, axis=0))
        columns = op.Reshape(op.Constant(value_int=K), last)
        kept = op.Slice(whole, op.Constant(value_ints=[0]), columns, last)
        factors = op.Cast(op.Gather(multiplier, indices), to=onnx.TensorProto.FLOAT)
        return op.CastLike(kept * op.Unsqueeze(factors, last), multiplier)

    return gather


@cache
def _integers(operator: str) -> Any:
    """The function of a product whose elements are integers in units of a power of two.

    As bytes and scales of DequantizeLinear, a row for each block, which onnxruntime does not fold into floats when it
    loads a model, as it does the other function's steps, keeping each: a weight then takes 4 bytes instead of 47.
    """
    (fmt,) = formats_of(operator).values()
    units = 2 ** (fmt.bias - 1 + fmt.mantissa_bits)
    codes = np.arange(256, dtype=np.uint8)[:, None]
    values = fmt.values[unpack_codes(codes, fmt)] * units  # [256, codes in a byte]
    integers = onnx.helper.make_tensor(
        "integers", onnx.TensorProto.INT8, values.shape, values.astype(np.int8).tobytes(), raw=True
    )
    scales_of_units = onnx.helper.make_tensor(
        "scales",
        onnx.TensorProto.FLOAT,
        [256],
        scale_value(np.arange(256, dtype=np.uint8)) / np.float32(units),
    )
    block = [-1, BLOCK_SIZE]

    @no_type_check
    @onnxscript.script(_domain, default_opset=op)
    def matmul(
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
        """Y[..., N] = (A[..., K] . H . dequant(B)^T) * column_scale + bias."""
        last = op.Constant(value_ints=[-1])
        elements = op.Gather(op.Constant(value=integers), op.Cast(B, to=onnx.TensorProto.INT32))
        blocks = op.Reshape(elements, op.Constant(value_ints=block))  # [N Kb, 32]
        scales = op.Gather(
            op.Constant(value=scales_of_units), op.Cast(op.Reshape(B_scale, last), to=onnx.TensorProto.INT32)
        )
        width = op.Shape(B_scale, start=1) * op.Constant(value_ints=[BLOCK_SIZE])
        columns = op.Reshape(op.Constant(value_int=N), last)
        weight = op.Reshape(op.DequantizeLinear(blocks, scales, axis=0), op.Concat(columns, width, axis=0))

        rows = op.Flatten(op.Cast(A, to=onnx.TensorProto.FLOAT), axis=-1)
        tail = width - op.Reshape(op.Constant(value_int=K), last)
        padded = op.Pad(rows, op.Concat(op.Constant(value_ints=[0, 0, 0]), tail, axis=0))
        size = op.Reshape(op.Constant(value_int=rotation), last)
        signs = op.Slice(
            op.Constant(value=SYLVESTER),
            op.Constant(value_ints=[0, 0]),
            op.Concat(size, size, axis=0),
            op.Constant(value_ints=[0, 1]),
        )
        hadamard = op.Cast(signs, to=onnx.TensorProto.FLOAT) / op.Sqrt(
            op.Cast(size, to=onnx.TensorProto.FLOAT)
        )
        by_rotation = op.Reshape(
            padded, op.Concat(op.Shape(rows, end=1), width / size, size, axis=0), allowzero=1
        )
        rotated = op.Reshape(
            op.MatMul(by_rotation, hadamard), op.Concat(op.Shape(rows, end=1), width, axis=0), allowzero=1
        )
        scale = op.Cast(column_scale, to=onnx.TensorProto.FLOAT)
        product = op.Gemm(rotated, weight, transB=1) * scale + op.Cast(bias, to=onnx.TensorProto.FLOAT)
        shape = op.Concat(op.Shape(A, end=-1), columns, axis=0)
        return op.CastLike(op.Reshape(product, shape, allowzero=1), A)

    return matmul


def _is_integer(operator: str) -> bool:
    """Whether the elements fit int8 in units of the smallest, in all formats of an operator of whole bytes."""
    formats = formats_of(operator).values()
    return all(
        fmt.max * 2 ** (fmt.bias - 1 + fmt.mantissa_bits) < 128 and 8 % fmt.bits == 0 for fmt in formats
    )


@no_type_check
@onnxscript.script(_domain, default_opset=op)
def activated(product, alpha, activation: int):
    """What follows a product, in float; SiLU is x * sigmoid(alpha * x)."""
    x = op.Cast(product, to=onnx.TensorProto.FLOAT)
    which = op.Constant(value_int=activation)
    one, half = op.Constant(value_float=1.0), op.Constant(value_float=0.5)
    if which == op.Constant(value_int=RELU):
        y = op.Relu(x)
    else:
        if which == op.Constant(value_int=GELU):
            y = half * x * (one + op.Erf(x * op.Constant(value_float=0.7071067811865476)))
        else:
            if which == op.Constant(value_int=GELU_TANH):
                cubic = x + op.Constant(value_float=0.044715) * x * x * x
                y = half * x * (one + op.Tanh(op.Constant(value_float=0.7978845608028654) * cubic))
            else:
                if which == op.Constant(value_int=SILU):
                    y = x * op.Sigmoid(alpha * x)
                else:
                    y = op.Identity(x)
    return y


def _epilogue(operator: str, opset: int) -> onnx.FunctionProto:
    """The function of a product with what follows it: that product's own operator, then standard ones."""
    product = MATMUL + _kind_of(operator)
    inner = function(product, opset)
    proto = activated.to_function_proto()
    (x, alpha), (y,) = proto.input, proto.output
    parts = ("",) if operands_of(operator) == 1 else ("gate_", "up_")
    names = [part + name for part in parts for name in inner.input[1:]]
    products = [
        onnx.helper.make_node(product, [inner.input[0], *names[at : at + 4]], [out], domain=DOMAIN)
        for at, out in zip(range(0, len(names), 4), (x, "factor"), strict=False)
    ]
    defaults = {a.name: a for a in inner.attribute_proto}
    for node in products:
        for name in (*inner.attribute, *defaults):
            kind = defaults[name].type if name in defaults else onnx.AttributeProto.INT
            node.attribute.append(onnx.AttributeProto(name=name, ref_attr_name=name, type=kind))
    products.append(onnx.helper.make_node("Constant", [], [alpha], value_float=1.0))
    last, result = y, []
    if len(parts) == 2:
        last = "gated"
        result.append(onnx.helper.make_node("Cast", ["factor"], ["wide"], to=onnx.TensorProto.FLOAT))
        result.append(onnx.helper.make_node("Mul", [y, "wide"], [last]))
    result.append(onnx.helper.make_node("CastLike", [last, inner.input[0]], ["Y"]))
    return onnx.helper.make_function(
        DOMAIN,
        operator,
        [inner.input[0], *names],
        ["Y"],
        [*products, *proto.node, *result],
        [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid(DOMAIN, VERSION)],
        [*inner.attribute, ACTIVATION],
        list(defaults.values()),
    )


INTEGER_OPSETS = range(19, 28)
"""onnx.reference has DequantizeLinear from 19 on; that of 28 no onnxruntime has yet (1.32)."""


def _fix_attribute(proto: onnx.FunctionProto, name: str) -> None:
    """Makes an attribute of the function, where it has it, the constant that is its default."""
    default = next((a for a in proto.attribute_proto if a.name == name), None)
    if default is None:
        return
    proto.attribute_proto.remove(default)
    for attribute in (a for node in proto.node for a in node.attribute if a.ref_attr_name == name):
        attribute.ref_attr_name = ""
        attribute.i = default.i


def function(operator: str, opset: int) -> onnx.FunctionProto:
    """The function of ``operator`` for a model of default-domain ``opset``. Raises ValueError below MIN_OPSET."""
    if opset < MIN_OPSET:
        raise ValueError(f"{operator} needs opset {MIN_OPSET} or later, got {opset}")
    if operator == EXPERTS:
        from mxort.converters import experts_function  # built of this module's parts

        return experts_function.function(opset)
    if operator in EPILOGUES:
        return _epilogue(operator, opset)
    if operator in GATHERS:
        definition = _gather(operator)
    elif opset in INTEGER_OPSETS and _is_integer(operator):
        definition = _integers(operator)
    else:
        definition = _matmul(operator)
    proto: onnx.FunctionProto = definition.to_function_proto()
    proto.name = operator
    if len(formats_of(operator)) == 1:
        _fix_attribute(proto, EXPONENT_BITS)
    del proto.opset_import[:]
    proto.opset_import.extend([onnx.helper.make_opsetid("", opset)])
    return proto
