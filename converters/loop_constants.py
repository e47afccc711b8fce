"""Constants that a Loop or Scan carries round unchanged: its body reads them from outside instead.

Exporters pass a weight that the body needs as a state, which onnxruntime never folds and nobody can see through.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from mxort.converters.resolving import depends_on_input
from mxort.converters.walk import bodies

_SCAN_WITHOUT_BATCH = 9
"""Before this opset a Scan's states had a batch axis that its body did not see."""


@dataclass(frozen=True)
class _States:
    """Where the states of an operator stand: how many there are, and before the first of them in each list."""

    count: int
    inputs: int = 0
    body_inputs: int = 0
    body_outputs: int = 0


def read_from_outside(model: ir.Model) -> None:
    """Makes a value of the outer scope of every such state, outer loops first."""
    opset = model.graph.opset_imports.get("", _SCAN_WITHOUT_BATCH)
    nodes = [node for body in bodies(model) for node in ir.traversal.RecursiveGraphIterator(body)]
    for node in nodes:
        body = _body(node)
        if body is not None and (node.op_type == "Loop" or opset >= _SCAN_WITHOUT_BATCH):
            _shorten(node, body, model.ir_version)


def _body(node: ir.Node) -> ir.Graph | None:
    if node.domain != "" or node.op_type not in ("Loop", "Scan"):
        return None
    attribute = node.attributes.get("body")
    return None if attribute is None or attribute.is_ref() else attribute.as_graph()


def _states(node: ir.Node, body: ir.Graph) -> _States:
    """Raises no error for a damaged operator: it has no states then."""
    if node.op_type == "Loop":  # trip count and condition; iteration number and condition; condition
        states = _States(len(node.inputs) - 2, 2, 2, 1)
    else:
        states = _States(len(body.inputs) - node.attributes.get_int("num_scan_inputs", len(body.inputs)))
    lists = (
        (node.inputs, states.inputs),
        (node.outputs, 0),
        (body.inputs, states.body_inputs),
        (body.outputs, states.body_outputs),
    )
    return states if all(len(values) >= before + states.count for values, before in lists) else _States(0)


def _shorten(node: ir.Node, body: ir.Graph, ir_version: int) -> None:
    states = _states(node, body)
    gone = [i for i in range(states.count) if _is_carried(node, body, states, i, ir_version)]
    if not gone or node.graph is None:
        return
    constants: list[ir.Value] = []
    for i in reversed(gone):
        constant = node.inputs[states.inputs + i]
        assert constant is not None
        constants.insert(0, constant)
        body.outputs.pop(states.body_outputs + i)
        body.inputs.pop(states.body_inputs + i).replace_all_uses_with(constant)
    kept = [i for i in range(len(node.outputs)) if i not in gone]
    shorter = ir.Node(
        node.domain,
        node.op_type,
        [v for i, v in enumerate(node.inputs) if i - states.inputs not in gone],
        node.attributes.values(),
        num_outputs=len(kept),
        name=node.name,
        doc_string=node.doc_string,
        metadata_props=dict(node.metadata_props),
    )
    same = [ir.node("Identity", [constant]) for constant in constants]
    old = [node.outputs[i] for i in (*kept, *gone)]
    new = [*shorter.outputs, *(identity.outputs[0] for identity in same)]
    nodes = [*([shorter] if kept else []), *same]
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], nodes, old, new)
    for identity, constant in zip(same, constants, strict=True):
        if not identity.outputs[0].is_graph_output() and identity.graph is not None:
            identity.outputs[0].replace_all_uses_with(constant)
            identity.graph.remove(identity, safe=True)


def _is_carried(node: ir.Node, body: ir.Graph, states: _States, i: int, ir_version: int) -> bool:
    """Whether state i is a constant outside that the body hands on as it got it, and to nobody else."""
    outside = node.inputs[states.inputs + i]
    if outside is None or not _is_handed_on(body, states, i) or depends_on_input(outside, ir_version):
        return False
    inside = body.inputs[states.body_inputs + i]
    return sum(_source(value) is inside for value in body.outputs) == 1


def _is_handed_on(body: ir.Graph, states: _States, i: int) -> bool:
    return _source(body.outputs[states.body_outputs + i]) is body.inputs[states.body_inputs + i]


def _source(value: ir.Value) -> ir.Value:
    """What a value is a copy of: through Identity, and through inner loops that hand it on."""
    while (node := value.producer()) is not None:
        copied = None
        body = _body(node)
        if node.domain == "" and node.op_type == "Identity":
            copied = node.inputs[0]
        elif body is not None:
            states, i = _states(node, body), node.outputs.index(value)
            if i < states.count and _is_handed_on(body, states, i):
                copied = node.inputs[states.inputs + i]
        if copied is None:
            break
        value = copied
    return value
