"""Operators that are products in other words: MatMul takes their place before sites are looked for.

A rule is a file here, with a function that puts products in the place of a node or raises ``Left`` with the reason why
it stays, and a row of ``RULES``. What it makes computes the same, in float too: whatever then keeps a product float
loses nothing.
"""

from __future__ import annotations

import onnx_ir as ir

from mxort.converters.normalise import unique_node_names
from mxort.converters.products import channel_last, convolution, einsum, fused, matmul, recurrent
from mxort.converters.products.base import Context, Express, Left, leave
from mxort.converters.sites import Selection

RULES: dict[tuple[str, str], Express] = {
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


def express(model: ir.Model, selection: Selection) -> None:
    """Rewrites the operators of ``model`` that hold weights and would be converted as products, in place."""
    nodes = [n for n in model.graph.all_nodes() if (n.domain, n.op_type) in RULES]
    if not nodes:
        return
    context = Context.of(model, selection)
    for node in nodes:
        try:
            RULES[node.domain, node.op_type](context, node)
        except Left as left:
            leave(node, str(left))
    channel_last.settle(context)
    unique_node_names(model)
