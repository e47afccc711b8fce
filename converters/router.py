"""Recognising routers: small products whose result decides which experts a token goes to.

Every published recipe leaves them as they are: they weigh nothing, and an error that changes a choice is a large one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from mxort.converters.sites import Site

_CHOOSERS = {
    ("", "TopK"): 0,
    ("com.microsoft", "MoE"): 1,
    ("com.microsoft", "QMoE"): 1,
    ("mxort", "MoEMXFP4"): 1,
}
"""(domain, operator) -> the input that it chooses by."""

_ON_THE_WAY = frozenset(
    {
        "Add",
        "Cast",
        "Div",
        "Identity",
        "Mul",
        "Reshape",
        "Sigmoid",
        "Softmax",
        "Softplus",
        "Sqrt",
        "Squeeze",
        "Sub",
    }
    | {"ReduceMax", "Tanh", "Transpose", "Unsqueeze", "Where"}
)
"""What stands between the product and the choice: a bias, probabilities, a scale, groups."""

_MOST_EXPERTS = 2048
"""More columns than that are a vocabulary, from which a model with sampling inside of it takes the best."""


def find(sites: Sequence[Site]) -> dict[ir.Node, str]:
    """The sites that are routers, with the reason to keep them."""
    found = ((site.node, chooser(site.node, site.N)) for site in sites if site.weight is not None)
    return {node: reason(name) for node, name in found if name}


def reason(name: str) -> str:
    """Why a router stays, of the name that :func:`chooser` gives."""
    return f"router: decides what {name!r} chooses"


def chooser(node: ir.Node, n: int) -> str:
    """The name of the node that chooses by the ``n`` columns that this one computes, elementwise steps between.

    "" if there is none.
    """
    if n > _MOST_EXPERTS:
        return ""
    pending, seen = [node], {node}
    while pending:
        for value in pending.pop().outputs:
            for user, index in value.uses():
                if _CHOOSERS.get((user.domain, user.op_type)) == index:
                    return user.name or user.op_type
                if user.domain == "" and user.op_type in _ON_THE_WAY and user not in seen:
                    seen.add(user)
                    pending.append(user)
    return ""
