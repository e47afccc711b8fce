"""What onnxruntime's optimiser joined, taken apart: FusedMatMul, FusedGemm, FusedConv, Attention of com.microsoft."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from mxort.converters.products import convolution
from mxort.converters.products.base import Builder, Context, Left
from mxort.converters.products.matmul import swap_last

_MICROSOFT = "com.microsoft"

_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "Softplus": (),
    "Softsign": (),
    "LeakyRelu": ("alpha",),
    "Elu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
}
"""Operator that a fused one may end with -> its parameters."""


def matmul(context: Context, node: ir.Node) -> None:
    """FusedMatMul and TransposeMatMul: operands transposed, a factor. Raises Left."""
    weight = context.constant(node.inputs[1])
    if len(weight.shape) != 2:
        raise Left(f"weight of shape {list(weight.shape)} is not a matrix")
    flags = {
        name: node.attributes.get_int(name, 0) for name in ("transA", "transB", "transBatchA", "transBatchB")
    }
    if flags["transBatchA"] or flags["transBatchB"]:
        raise Left("a product whose batch is transposed is not converted")
    k, n = reversed(weight.shape) if flags["transB"] else weight.shape
    context.check(node, weight, k, n)
    build = Builder(context, node)
    x, w = node.inputs
    if flags["transA"]:
        rank = context.ranks.of(x)
        if rank is None or rank < 2:
            raise Left(f"A is transposed, and its rank is {rank or 'unknown'}")
        x = build.op("Transpose", [x], perm=swap_last(rank))
    if flags["transB"]:
        w = build.op("Transpose", [w], perm=[1, 0])
    if (alpha := node.attributes.get_float("alpha", 1.0)) != 1:
        w = build.op("Mul", [w, build.number(alpha, weight.dtype)])
    assert w is not None
    build.replace([build.product(x, w)])


def gemm(context: Context, node: ir.Node) -> None:
    """FusedGemm: a Gemm, then its activation. Raises Left."""
    weight = context.constant(node.inputs[1])
    _whole(context, node, weight.shape)
    attributes = node.attributes
    settings: dict[str, Any] = {name: attributes.get_int(name, 0) for name in ("transA", "transB")}
    settings |= {name: attributes.get_float(name, 1.0) for name in ("alpha", "beta")}
    k, n = reversed(weight.shape) if settings.get("transB") else weight.shape
    context.check(node, weight, k, n)
    parameters = [node.attributes.get_float(f"activation_{name}", 0.0) for name in ("alpha", "beta", "gamma")]
    build = Builder(context, node)
    y = build.product_of("Gemm", node.inputs, settings)
    build.replace([_activated(build, y, node, parameters)])


def conv(context: Context, node: ir.Node) -> None:
    """FusedConv: a Conv, a sum, an activation; the Conv is then a rule's own matter. Raises Left."""
    weight = context.constant(node.inputs[1])
    convolution.check(context, node, weight.shape, weight)
    _activation(node)
    parameters = node.attributes.get("activation_params")
    build = Builder(context, node)
    fused = ("activation", "activation_params")
    settings = {name: a.value for name, a in node.attributes.items() if name not in fused}
    y = build.product_of("Conv", node.inputs[:3], settings)
    made = y.producer()
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        y = build.op("Add", [y, node.inputs[3]])
    numbers = [] if parameters is None else list(parameters.as_floats())
    build.replace([_activated(build, y, node, numbers)])
    assert made is not None
    convolution.express(context, made)


def _whole(context: Context, node: ir.Node, shape: tuple[int, ...]) -> None:
    if len(shape) != 2:
        raise Left(f"weight of shape {list(shape)} is not a matrix")
    _activation(node)


def _activation(node: ir.Node) -> str:
    name = node.attributes.get_string("activation", "")
    if name and name not in _ACTIVATIONS:
        raise Left(f"ends with {name}, which is not taken apart")
    return name


def _activated(build: Builder, y: ir.Value, node: ir.Node, parameters: list[float]) -> ir.Value:
    name = _activation(node)
    if not name:
        return y
    settings: dict[str, Any] = dict(zip(_ACTIVATIONS[name], parameters, strict=False))
    return build.op(name, [y], **settings)


def check_attention(context: Context, node: ir.Node, cache: ir.Value | None, mask: ir.Value | None) -> None:
    """Raises Left for what MultiHeadAttention beside a product does not say."""
    what = ""
    if cache is not None or len([v for v in node.outputs if v.name and v.uses()]) > 1:
        what = "a cache"
    elif node.attributes.get_int("do_rotary", 0):
        what = "rotary positions"
    elif mask is not None and context.ranks.of(mask) not in (2, 3):
        what = "a mask of lengths"
    if what:
        raise Left(f"a fused attention with {what} is not taken apart (export without attention fusion)")


_KEPT = ("num_heads", "unidirectional", "mask_filter_value", "scale")
"""What Attention and MultiHeadAttention both have."""


def attention(context: Context, node: ir.Node) -> None:
    """Attention: the product of q, k and v, then MultiHeadAttention. Raises Left."""
    x, w, *rest = node.inputs
    bias, mask, past, scores, length = (*rest, *[None] * 5)[:5]
    weight = context.constant(w)
    if len(weight.shape) != 2:
        raise Left(f"weight of shape {list(weight.shape)} is not a matrix")
    check_attention(context, node, past or length, mask)
    k, n = weight.shape
    sizes = node.attributes.get("qkv_hidden_sizes")
    widths = [n // 3] * 3 if sizes is None else list(sizes.as_ints())
    if sum(widths) != n:
        raise Left(f"q, k and v of {widths} columns do not fit a weight of {n}")
    context.check(node, weight, k, n)
    build = Builder(context, node)
    assert w is not None
    y = build.product(x, w)
    if bias is not None:
        y = build.op("Add", [y, bias])
    q, key, v = build.split(y, widths, 2)
    settings = {name: node.attributes[name].value for name in _KEPT if name in node.attributes}
    (result,) = build.ops("MultiHeadAttention", [q, key, v, None, mask, scores], 1, _MICROSOFT, **settings)
    build.replace([result])
