"""What will run where: the execution provider that onnxruntime assigns to each node of a model."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from mxort.converters import functions
from mxort.errors import MxortError
from mxort.runtime import session


@dataclass(frozen=True)
class PlacedNode:
    """A node as onnxruntime runs it, that is after its optimisations; ``name`` may be empty."""

    provider: str
    domain: str
    op_type: str
    name: str

    @property
    def ours(self) -> bool:
        """Whether this is an operator of mxort."""
        return self.domain == functions.DOMAIN


@dataclass(frozen=True)
class Placement:
    """Result of :func:`place`. ``providers`` are the session's, in order of preference."""

    model: str
    onnxruntime: str
    providers: tuple[str, ...]
    nodes: tuple[PlacedNode, ...]

    def counts(self) -> list[tuple[str, str, int]]:
        """(provider, operator, number of nodes), most frequent first within a provider."""
        found = Counter((node.provider, node.op_type) for node in self.nodes)
        order = {name: i for i, name in enumerate(self.providers)}
        rows = [(provider, op_type, count) for (provider, op_type), count in found.items()]
        return sorted(rows, key=lambda row: (order.get(row[0], len(order)), -row[2], row[1]))

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return asdict(self)


def place(path: str | os.PathLike[str], device: str | None = None) -> Placement:
    """Opens the model on ``device`` (see :func:`mxort.InferenceSession`) and asks onnxruntime what it assigned.

    Raises MxortError as opening a session does, and where onnxruntime is older than 1.24.
    """
    runtime = session.require_onnxruntime()
    if session.parse_version(runtime.__version__) < session.MIN_ONNXRUNTIME_FOR_EP:
        needed = ".".join(map(str, session.MIN_ONNXRUNTIME_FOR_EP))
        raise MxortError(
            f"onnxruntime {runtime.__version__} does not say what runs where: {needed} or later does"
        )
    options = runtime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    opened = session.open_session(path, options, device=device)
    nodes = [
        PlacedNode(part.ep_name, node.domain, node.op_type, node.name)
        for part in opened.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]
    return Placement(os.fspath(path), runtime.__version__, tuple(opened.get_providers()), tuple(nodes))
