"""Experts: com.microsoft MoE, of float weights, and QMoE, of MXFP4 ones, become MoEMXFP4 (docs/format.md).

A node has two stacks of weights, [E, N, K] each. Each is a site of its own, the matrix [E N, K] of all its experts'
rows, so that it is rounded and reported as any other weight; the rewrite puts both into one operator.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mxort.converters import functions, lazy_weights, packed_experts
from mxort.converters.constants import FLOAT_TYPES, Constant, NotConstantError
from mxort.converters.resolving import resolve
from mxort.formats import BLOCK_SIZE

if TYPE_CHECKING:
    from mxort.converters.sites import Site

OP_TYPE = "MoE"
"""What ``op_types`` calls them."""

_DOMAIN = "com.microsoft"
_MOE, _QMOE = (_DOMAIN, "MoE"), (_DOMAIN, "QMoE")

_OPERANDS = {_MOE: ((2, 3), (4, 5)), _QMOE: ((2, 4), (5, 7))}
"""Where an operator has the weight and the bias of each of its two products."""

_THIRD = {_MOE: (6, 7), _QMOE: (8, 9, 10, 11, 12, 13, 14)}
"""Inputs that must be absent: a third product; zero points; weights of the router beside its choice."""

_ACTIVATIONS = {"identity": 0, "relu": 1, "gelu": 3, "silu": 4, "swiglu": 4}
"""activation_type -> ours. onnxruntime's CPU kernel computes GELU by tanh."""

STACKS = ("gate and up", "down")


def is_one(node: ir.Node) -> bool:
    """Whether the node is a mixture of experts that another tool has made."""
    return (node.domain, node.op_type) in _OPERANDS


class LeftError(Exception):
    """Says why a node's experts stay as they are."""


def find(node: ir.Node, ir_version: int, site: type[Site]) -> list[Site]:
    """The two sites of a node's experts, or one that is skipped; nothing for other nodes."""
    try:
        attributes_of(node)
        stacks = list(_stacks(node, ir_version))
        _check_shapes(node, stacks)
        biases = [_bias(node, operand, stack, ir_version) for operand, stack in enumerate(stacks)]
    except LeftError as reason:
        return [site(node, str(reason))]
    number = stacks[0].shape[0]
    rotation_width = math.gcd(*(stack.shape[2] for stack in stacks))
    up = STACKS[0] if attributes_of(node)["swiglu_fusion"] else "up"
    found = [
        site(
            node,
            weight=stack.reshaped((number * stack.shape[1], stack.shape[2])),
            bias=bias,
            multiplier=packed_experts.multiplier(node, operand, stack.shape, ir_version),
            note=f"{(up, STACKS[1])[operand]} of {number} experts",
            experts=number,
            operand=operand,
            rotation_width=rotation_width,
        )
        for operand, (stack, bias) in enumerate(zip(stacks, biases, strict=True))
    ]
    kinds = {(lazy_weights.is_packed(one), lazy_weights.activation_format(one)) for one in found}
    if len(kinds) > 1:
        return [site(node, "experts of which one product is MXFP4 and one is not, or with other operands")]
    return found


def together(sites: Sequence[Site]) -> list[Site]:
    """The sites; experts of which one stack is left alone are left alone as one site."""
    left = {s.node: s for s in reversed(sites) if s.experts and s.skip}
    result: list[Site] = []
    for site in sites:
        if site.node not in left:
            result.append(site)
        elif site is left[site.node]:
            result.append(replace(site, weight=None, bias=None, note=""))
    return result


def attributes_of(node: ir.Node) -> dict[str, Any]:
    """The operator's attributes of a node's, but for those of the products. Raises LeftError."""
    given = node.attributes
    name = given.get_string("activation_type", "relu")
    fusion = given.get_int("swiglu_fusion", 0)
    third = _THIRD[node.domain, node.op_type]
    if any(packed_experts.input_of(node, index) is not None for index in third):
        raise LeftError("experts with a third product, zero points or weights of their own for the router")
    if len(node.inputs) < 2 or None in node.inputs[:2]:
        raise LeftError("experts without rows or logits")
    if given.get_int("use_sparse_mixer", 0):
        raise LeftError("experts chosen by a sparse mixer")
    if name not in _ACTIVATIONS:
        raise LeftError(f"experts with the activation {name!r}")
    if (name == "swiglu") != (fusion in (1, 2)):
        raise LeftError(f"experts with the activation {name} and swiglu_fusion {fusion}")
    if (limit := given.get_float("swiglu_limit", 0.0)) < 0:
        raise LeftError(f"experts with the swiglu_limit {limit:g}")
    return {
        "k": given.get_int("k", 1),
        "normalize_routing_weights": int(bool(given.get_int("normalize_routing_weights", 0))),
        functions.ACTIVATION: _ACTIVATIONS[name],
        "swiglu_fusion": fusion,
        "activation_alpha": given.get_float("activation_alpha", 1.0) if fusion else 1.0,
        "activation_beta": given.get_float("activation_beta", 0.0) if fusion else 0.0,
        "swiglu_limit": limit if fusion and math.isfinite(limit) else 0.0,
    }


def _stacks(node: ir.Node, ir_version: int) -> Iterator[Constant]:
    """The weights of the two products, [E, N, K]. Raises LeftError."""
    kind = node.domain, node.op_type
    for operand, (index, _) in enumerate(_OPERANDS[kind]):
        if kind == _QMOE:
            stack = packed_experts.stack(node, operand, ir_version)
            if isinstance(stack, str):
                raise LeftError(stack)
            yield stack
            continue
        try:
            stack = resolve(packed_experts.input_of(node, index), ir_version)
        except NotConstantError as reason:
            raise LeftError(f"the experts' weight {reason}") from None
        if len(stack.shape) != 3 or stack.dtype not in FLOAT_TYPES:
            raise LeftError(f"experts of shape {list(stack.shape)} and type {stack.dtype.name.lower()}")
        yield stack


def _check_shapes(node: ir.Node, stacks: Sequence[Constant]) -> None:
    """Raises LeftError where the operator does not take experts of these shapes."""
    (e, n, d), (e2, d2, i) = (stack.shape for stack in stacks)
    parts = 2 if node.attributes.get_int("swiglu_fusion", 0) else 1
    if not e == e2 or d != d2 or n != parts * i or not e:
        raise LeftError(f"experts of shapes {[e, n, d]} and {[e2, d2, i]} do not fit each other")
    if d % BLOCK_SIZE or i % BLOCK_SIZE:
        raise LeftError(f"experts of {d} inputs and {i} hidden values, not multiples of {BLOCK_SIZE}")
    if not 1 <= node.attributes.get_int("k", 1) <= e:
        raise LeftError(f"k is {node.attributes.get_int('k', 1)}, of {e} experts")


def _bias(node: ir.Node, operand: int, stack: Constant, ir_version: int) -> NDArray[np.float32] | None:
    """The bias of a product, float32 [E N]; None where it has none. Raises LeftError."""
    index = _OPERANDS[node.domain, node.op_type][operand][1]
    value = packed_experts.input_of(node, index)
    if value is None:
        return None
    try:
        bias = resolve(value, ir_version)
    except NotConstantError as reason:
        raise LeftError(f"the experts' bias {reason}") from None
    if bias.shape != stack.shape[:2] or bias.dtype not in FLOAT_TYPES:
        raise LeftError(f"experts with a bias of shape {list(bias.shape)}")
    return bias.numpy().astype(np.float32).reshape(-1)
