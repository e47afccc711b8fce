"""Operators that are products in other words: MatMul takes their place before sites are looked for.

A rule is a file here, with a function that puts products in the place of a node or raises ``Left`` with the reason why
it stays, and a row of ``RULES``. What it makes computes the same, in float too: whatever then keeps a product float
loses nothing.
"""

from __future__ import annotations

import onnx_ir as ir

from mxort.converters.normalise import unique_node_names
from mxort.converters.products import (
    batched_experts,
    channel_last,
    convolution,
    dequantize,
    einsum,
    fused,
    integer,
    integer_layers,
    matmul,
    nbits,
    quark,
    recurrent,
)
from mxort.converters.products.base import Context, Express, Left, leave
from mxort.converters.sites import Selection
from mxort.errors import first_line

RULES: dict[tuple[str, str], Express] = {
    ("", "ReduceSum"): batched_experts.express,
    ("", "MatMul"): matmul.express,
    ("", "Conv"): convolution.express,
    ("", "Einsum"): einsum.express,
    ("", "LSTM"): recurrent.express,
    ("", "GRU"): recurrent.express,
    ("com.microsoft", "FusedMatMul"): fused.matmul,
    ("com.microsoft", "TransposeMatMul"): fused.matmul,
    ("com.microsoft", "FusedGemm"): fused.gemm,
    ("com.microsoft", "FusedConv"): fused.conv,
    ("com.microsoft", "Attention"): fused.attention,
}
"""(domain, operator) -> what puts products in its place."""


QUANTISED: dict[tuple[str, str], Express] = {
    ("", "DequantizeLinear"): dequantize.express,
    **{(domain, name): quark.express for domain in quark.DOMAINS for name in quark.NAMES},
    ("com.microsoft", "MatMulNBits"): nbits.matmul,
    ("com.microsoft", "GatherBlockQuantized"): nbits.gather,
    ("", "MatMulInteger"): integer.dynamic,
    ("", "ConvInteger"): integer_layers.dynamic_conv,
    ("", "QLinearMatMul"): integer.static,
    ("", "QLinearConv"): integer_layers.static_conv,
    ("com.microsoft", "QLinearConv"): integer_layers.static_conv,
    ("com.microsoft", "QGemm"): integer_layers.gemm,
    ("com.microsoft", "QAttention"): integer_layers.attention,
    ("com.microsoft", "DynamicQuantizeMatMul"): integer.dynamic_fused,
    ("com.microsoft", "MatMulIntegerToFloat"): integer.to_float,
    ("com.microsoft", "DynamicQuantizeLSTM"): integer.lstm,
}
"""The same for what other tools have quantised: these come first, and the products that they make are ordinary ones."""


def express(model: ir.Model, selection: Selection) -> None:
    """Rewrites the operators of ``model`` that hold weights and would be converted as products, in place."""
    if not any((n.domain, n.op_type) in RULES.keys() | QUANTISED.keys() for n in model.graph.all_nodes()):
        return
    context = Context.of(model, selection)
    for rules in (QUANTISED, RULES):
        for node in list(model.graph.all_nodes()):
            rule = rules.get((node.domain, node.op_type))
            if rule is not None and node.graph is not None:
                _apply(rule, context, node)
    channel_last.settle(context)
    unique_node_names(model)


_DAMAGED = (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError)
"""What an operator of another domain raises that lacks inputs, or has attributes of another type: onnx checks none."""


def _apply(rule: Express, context: Context, node: ir.Node) -> None:
    try:
        rule(context, node)
    except Left as left:
        for stays in left.nodes or (node,):
            leave(stays, str(left))
    except _DAMAGED as error:
        leave(node, f"is damaged, or of a form that is not known: {first_line(error)}")
