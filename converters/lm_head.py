"""Recognising the output projection of a language model.

It is the most sensitive layer, and often its table is the embedding's too: it gets a format of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from mxort.converters import embedding
from mxort.converters.constants import Constant, same

if TYPE_CHECKING:
    from mxort.converters.sites import Site

_LOGITS = "logits"

_AFTER_THE_HEAD = frozenset(
    {"Add", "Cast", "Div", "Identity", "Mul", "Reshape", "Squeeze", "Tanh", "Unsqueeze"}
)
"""What stands between the projection and the logits: a bias, a type change, a scale, a soft cap."""


def find(model: ir.Model, sites: Sequence[Site]) -> dict[ir.Node, str]:
    """The sites that are output projections, with what tells it. Sites must have a weight."""
    tables = list(_embedding_tables(model)) if sites else []
    heads = {}
    vocabulary = max((table.shape[0] for table, _ in tables), default=0)
    for site in sites:
        assert site.weight is not None
        outputs = list(_outputs_after(site.node))
        logits = next((name for name in outputs if _LOGITS in name.lower()), None)
        if logits is not None:
            heads[site.node] = f"feeds the output {logits!r}"
        elif (gather := _tied(site.weight, tables)) is not None:
            heads[site.node] = f"shares its table with the embedding {gather!r}"
        elif outputs and vocabulary == site.N:
            heads[site.node] = f"from the embedding's size to the output {outputs[0]!r}"
    return heads


def _outputs_after(node: ir.Node) -> Iterator[str]:
    """Names of the graph outputs that are computed from this node by elementwise steps only."""
    pending = [node]
    seen = set(pending)
    while pending:
        for value in pending.pop().outputs:
            if value.is_graph_output() and value.name:
                yield value.name
            for user, _ in value.uses():
                if user.domain == "" and user.op_type in _AFTER_THE_HEAD and user not in seen:
                    seen.add(user)
                    pending.append(user)


def _embedding_tables(model: ir.Model) -> Iterator[tuple[Constant, str]]:
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if table := embedding.table_of(node, model.ir_version):
            yield table, node.name or node.outputs[0].name or "Gather"


def _tied(weight: Constant, tables: Sequence[tuple[Constant, str]]) -> str | None:
    """Name of the Gather whose table [vocabulary, hidden] is this weight W^T [N, K], be it a copy."""
    return next((name for table, name in tables if same(table, weight)), None)
