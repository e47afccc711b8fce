"""Recognising the output projection of a language model.

It is better left alone: it is the most sensitive layer, and often its table is the embedding's too, so that
converting it makes the file larger.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from mxort.converters.constants import Constant, NotConstantError, resolve

if TYPE_CHECKING:
    from mxort.converters.sites import Site

_LOGITS = "logits"

_AFTER_THE_HEAD = frozenset(
    {"Add", "Cast", "Div", "Identity", "Mul", "Reshape", "Squeeze", "Tanh", "Unsqueeze"}
)
"""What stands between the projection and the logits: a bias, a type change, a scale, a soft cap."""

_COMPARED_ROWS = 4096


def find(model: ir.Model, sites: Sequence[Site]) -> dict[ir.Node, str]:
    """The sites that are output projections, with the reason to keep them. Sites must have a weight."""
    tables = list(_embedding_tables(model)) if sites else []
    heads = {}
    for site in sites:
        assert site.weight is not None
        if (output := _logits_after(site.node)) is not None:
            heads[site.node] = f"lm_head: feeds the output {output!r} (convert_lm_head)"
        elif (gather := _tied(site.weight, tables)) is not None:
            heads[site.node] = f"lm_head: shares its table with the embedding {gather!r} (convert_lm_head)"
    return heads


def _logits_after(node: ir.Node) -> str | None:
    """Name of the graph output called logits that is computed from this node by elementwise steps only."""
    pending = [node]
    seen = set(pending)
    while pending:
        for value in pending.pop().outputs:
            if value.is_graph_output() and _LOGITS in (value.name or "").lower():
                return value.name
            for user, _ in value.uses():
                if user.domain == "" and user.op_type in _AFTER_THE_HEAD and user not in seen:
                    seen.add(user)
                    pending.append(user)
    return None


def _embedding_tables(model: ir.Model) -> Iterator[tuple[Constant, str]]:
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain == "" and node.op_type == "Gather":
            try:
                table = resolve(node.inputs[0], model.ir_version)
            except NotConstantError:
                continue
            axis = node.attributes.get_int("axis", 0)
            if len(table.shape) == 2 and axis in (0, -2):
                yield table, node.name or node.outputs[0].name or "Gather"


def _tied(weight: Constant, tables: Sequence[tuple[Constant, str]]) -> str | None:
    """Name of the Gather whose table [vocabulary, hidden] is this weight W^T [N, K], be it a copy."""
    for table, name in tables:
        if table.shape == weight.shape and (table.identity == weight.identity or _equal(table, weight)):
            return name
    return None


def _equal(a: Constant, b: Constant) -> bool:
    """Whether two constants of one shape hold the same numbers; stops at the first chunk that differs."""
    if a.dtype != b.dtype:
        return False
    left, right = a.array(), b.array()
    return all(
        np.array_equal(a.convert(left[i : i + _COMPARED_ROWS]), b.convert(right[i : i + _COMPARED_ROWS]))
        for i in range(0, len(left), _COMPARED_ROWS)
    )
