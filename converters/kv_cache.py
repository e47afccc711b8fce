"""A decoder's cache of keys and values in MXFP8 or MXFP4 instead of float: GroupQueryAttention with such a cache.

A position of a head is a row of bytes in the cache: the codes of its blocks of 32, then their scales. The functions
attend to new positions as they come and round them for the cache; the kernels round them first.
"""

from __future__ import annotations

from typing import Any, no_type_check

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx_ir as ir
import onnxscript
from onnxscript import opset15 as op

from mxort.converters import attention, functions
from mxort.errors import MxortError
from mxort.formats import (
    BLOCK_SIZE,
    E2M1,
    E4M3,
    SCALE_BIAS,
    SCALE_NAN,
    ElementFormat,
    scale_value,
    unpack_codes,
)

CACHES = {"mxfp8": E4M3, "mxfp4": E2M1}
"""Formats of a cache: the operator is GroupQueryAttentionMXFP8 or MXFP4."""

_PLACES = (1, 2)
"""Inputs and outputs of the operator that are caches."""

_DOMAIN = onnxscript.values.Opset(functions.DOMAIN, functions.VERSION)


def operator(cache: str, base: str = attention.NAME) -> str:
    """The operator of ``attention.OPERATORS`` for a format of :data:`CACHES`."""
    return base + cache.upper()


def row_bytes(head_size: int, fmt: ElementFormat) -> int:
    """Bytes of a head's position in a cache."""
    return head_size * fmt.bits // 8 + head_size // BLOCK_SIZE


def quantise(model: ir.Model, cache: str) -> int:
    """Makes the caches of all GroupQueryAttention nodes of ours ``cache``, in place -> bytes of a head's position.

    Raises MxortError where there is none, or one whose cache is not the model's own input and output.
    """
    nodes = [
        n
        for n in model.graph.all_nodes()
        if n.domain == functions.DOMAIN and n.op_type in attention.OPERATORS
    ]
    if not nodes:
        raise MxortError(f"kv_cache {cache}: the model has no attention with a cache that this library knows")
    for node in model.graph.all_nodes():  # genai makes all caches of one size
        if node.op_type == attention.NAME and node not in nodes:
            raise MxortError(
                f"kv_cache {cache}: {node.name or node.outputs[0].name!r} keeps its own kernel and cache"
            )
    nbytes = 0
    used = sorted({node.op_type for node in nodes})
    for node in nodes:
        nbytes = _quantise(node, cache, attention.head_size(node, model.ir_version))
    for base in used:
        for proto in functions_of(cache, model.opset_imports[""], base):
            attention.add_function(model, proto)
        model.functions.pop((functions.DOMAIN, base, ""), None)
    return nbytes


def _quantise(node: ir.Node, cache: str, head_size: int) -> int:
    nbytes = row_bytes(head_size, CACHES[cache])
    values = [*(node.inputs[i] for i in _PLACES), *(node.outputs[i] for i in _PLACES)]
    name = node.name or node.outputs[0].name
    if not all(v is not None and (v.is_graph_output() or _is_read_once(v)) for v in values):
        raise MxortError(f"kv_cache {cache}: the cache of {name!r} is not an input and output of the model")
    if head_size % BLOCK_SIZE or not head_size:
        known = str(head_size) if head_size else "an unknown size"
        raise MxortError(
            f"kv_cache {cache}: {name!r}: got heads of {known}, expected a multiple of {BLOCK_SIZE}"
        )
    for value in values:
        assert value is not None
        value.type = ir.TensorType(ir.DataType.UINT8)
        outer = [None] * 3 if value.shape is None else value.shape[:-1]
        value.shape = ir.Shape([*outer, nbytes])
    node.op_type = operator(cache, node.op_type)
    return nbytes


def _is_read_once(value: ir.Value) -> bool:
    return value.is_graph_input() and len(value.uses()) == 1 and not value.is_graph_output()


def functions_of(cache: str, opset: int, base: str = attention.NAME) -> list[onnx.FunctionProto]:
    """The function of :func:`operator`, and those that it calls."""
    return [*_helpers(cache, opset), _function(cache, opset, base)]


def _function(cache: str, opset: int, base: str) -> onnx.FunctionProto:
    """The operator: the caches decoded, the attention of com.microsoft, its caches encoded."""
    proto = attention.function(opset, base)
    kind = cache.upper()
    helper = onnx.helper.make_node
    caches, made = proto.input[1:3], proto.output[1:3]
    (node,) = proto.node
    for i, name in enumerate(node.input):
        if name in caches:
            node.input[i] = f"{name}_float"
    for i, name in enumerate(node.output):
        if name in made:
            node.output[i] = f"{name}_float"
    decode = [helper(f"Decode{kind}", [x], [f"{x}_float"], domain=functions.DOMAIN) for x in caches]
    encode = [helper(f"Encode{kind}", [f"{x}_float"], [x], domain=functions.DOMAIN) for x in made]
    nodes = [*decode, node, *encode]
    del proto.node[:]
    proto.node.extend(nodes)
    proto.name = operator(cache, base)
    proto.opset_import.append(onnx.helper.make_opsetid(functions.DOMAIN, functions.VERSION))
    return proto


def _helpers(cache: str, opset: int) -> list[onnx.FunctionProto]:
    protos = []
    for name, script in (("Decode", _decode), ("Encode", _encode)):
        proto = script(CACHES[cache]).to_function_proto()
        proto.name = name + cache.upper()
        del proto.opset_import[:]
        proto.opset_import.append(onnx.helper.make_opsetid("", opset))
        protos.append(proto)
    return protos


def _tensor(name: str, array: np.ndarray) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)


_SCALES = _tensor("e8m0", scale_value(np.arange(256, dtype=np.uint8)))


def _decode(fmt: ElementFormat) -> Any:
    values = _tensor("values", fmt.values[unpack_codes(np.arange(256, dtype=np.uint8)[:, None], fmt)])
    of_block = BLOCK_SIZE * fmt.bits // 8
    whole = of_block + 1

    @no_type_check
    @onnxscript.script(_DOMAIN, default_opset=op)
    def decode(rows):
        """Rows of bytes [..., bytes] -> float [..., head size]."""
        last = op.Constant(value_ints=[-1])
        outer = op.Shape(rows, end=-1)
        blocks = op.Shape(rows, start=-1) / op.Constant(value_ints=[whole])
        width = blocks * op.Constant(value_ints=[of_block])
        codes = op.Cast(op.Slice(rows, op.Constant(value_ints=[0]), width, last), to=onnx.TensorProto.INT32)
        scales = op.Cast(op.Slice(rows, width, width + blocks, last), to=onnx.TensorProto.INT32)
        shape = op.Concat(outer, blocks, op.Constant(value_ints=[BLOCK_SIZE]), axis=0)
        elements = op.Reshape(op.Gather(op.Constant(value=values), codes), shape, allowzero=1)
        decoded = elements * op.Unsqueeze(op.Gather(op.Constant(value=_SCALES), scales), last)
        size = blocks * op.Constant(value_ints=[BLOCK_SIZE])
        return op.Reshape(decoded, op.Concat(outer, size, axis=0), allowzero=1)

    return decode


def _encode(fmt: ElementFormat) -> Any:
    """Rule "even", elements to nearest even, saturating: docs/format.md."""
    bits, mantissa, lowest = fmt.bits, fmt.mantissa_bits, 1 - fmt.bias
    steps = np.arange(fmt.emax - lowest + 1)
    thresholds = _tensor("thresholds", 2.0 ** (lowest + steps[1:]).astype(np.float32))
    units = _tensor("units", (2.0 ** (mantissa - lowest - steps)).astype(np.float32))
    carry, codes_of_step = 2 - 2.0 ** -(mantissa + 1), float(2**mantissa)
    most, sign = float(np.flatnonzero(fmt.values == fmt.max)[0]), float(2 ** (bits - 1))
    offset, per_byte = float(SCALE_BIAS - fmt.emax), 8 // bits
    largest = float(SCALE_NAN - 1)
    radix = _tensor("radix", 2.0 ** (bits * np.arange(per_byte, dtype=np.float32))[:, None])

    @no_type_check
    @onnxscript.script(_DOMAIN, default_opset=op)
    def encode(x):
        """float [..., head size] -> rows of bytes [..., bytes]."""
        last, one = op.Constant(value_ints=[-1]), op.Constant(value_ints=[1])
        outer = op.Shape(x, end=-1)
        block = op.Constant(value_ints=[BLOCK_SIZE])
        count = op.Shape(x, start=-1) / block
        raw = op.Reshape(x, op.Concat(outer, count, block, axis=0), allowzero=1)
        bad = op.IsNaN(op.ReduceSum(raw * op.Constant(value_float=0.0), last, keepdims=1))
        clean = op.Where(bad, op.Constant(value_float=0.0), raw)
        most_of_block, _ = op.TopK(op.Abs(clean), one)
        # floor(log2) of the largest magnitude: by the logarithm, then exactly.
        two = op.Constant(value_float=2.0)
        absmax = op.Max(most_of_block, op.Constant(value_float=2.0**-126))
        guess = op.Floor(op.Log(absmax) / op.Constant(value_float=0.6931471805599453))
        power = op.Pow(two, guess)
        over = op.Cast(absmax / power >= two, to=onnx.TensorProto.FLOAT)
        under = op.Cast(absmax < power, to=onnx.TensorProto.FLOAT)
        exponent = guess + over - under
        ratio = absmax / op.Pow(two, exponent)
        carried = exponent + op.Cast(ratio >= op.Constant(value_float=carry), to=onnx.TensorProto.FLOAT)
        scale = op.Clip(
            carried + op.Constant(value_float=offset),
            op.Constant(value_float=0.0),
            op.Constant(value_float=largest),
        )
        inverse = op.Gather(
            op.Constant(value=_SCALES),
            op.Cast(op.Constant(value_float=largest) - scale, to=onnx.TensorProto.INT32),
        )
        scaled = clean * inverse
        magnitude = op.Abs(scaled)
        above = op.Cast(
            op.Unsqueeze(magnitude, last) >= op.Constant(value=thresholds), to=onnx.TensorProto.FLOAT
        )
        step = op.ReduceSum(above, last, keepdims=0)
        unit = op.Gather(op.Constant(value=units), op.Cast(step, to=onnx.TensorProto.INT32))
        code = op.Min(
            step * op.Constant(value_float=codes_of_step) + op.Round(magnitude * unit),
            op.Constant(value_float=most),
        )
        zero = op.Constant(value_float=0.0)
        negative = op.Or(clean < zero, op.Reciprocal(clean) < zero)  # -0 too
        signed = code + op.Cast(negative, to=onnx.TensorProto.FLOAT) * op.Constant(value_float=sign)
        bytes_of = op.Shape(x, start=-1) / op.Constant(value_ints=[per_byte])
        shape = op.Concat(outer, bytes_of, op.Constant(value_ints=[per_byte]), axis=0)
        packed = op.MatMul(op.Reshape(signed, shape, allowzero=1), op.Constant(value=radix))
        codes = op.Cast(op.Squeeze(packed, last), to=onnx.TensorProto.UINT8)
        nan = op.Constant(value_float=float(SCALE_NAN))
        scales = op.Cast(op.Squeeze(op.Where(bad, nan, scale), last), to=onnx.TensorProto.UINT8)
        return op.Concat(codes, scales, axis=-1)

    return encode
