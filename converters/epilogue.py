"""What follows a product of ours becomes part of it: an activation, and the product with another (gate and up).

Activations are recognised by what they compute, however an exporter writes them: the pointwise steps behind a product
are run on numbers (onnx.reference) and compared with each activation that the operators have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import erf
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx.reference
import onnx_ir as ir
from numpy.typing import NDArray

from mxort.converters import functions
from mxort.converters.attention import Fused, add_function
from mxort.converters.constants import NotConstantError
from mxort.converters.opset import opset_of
from mxort.converters.resolving import resolve
from mxort.converters.rewrite import drop_dead

FACTOR = "mxort_factor"
"""Key in a node's metadata: the name of the node whose product is the second factor; before that node's own keys."""

_POINTWISE = frozenset(
    ["Add", "Sub", "Mul", "Div", "Neg", "Pow", "Erf", "Tanh", "Sigmoid", "Relu", "Gelu", "Swish", "Identity"]
)
_MOST_STEPS = 10  # of GELU by tanh with its cube written as products: 9

_Floats = NDArray[np.float64]
_GRID = np.linspace(-12, 12, 1921)
_TOLERANCE = 1e-5 * (1 + np.abs(_GRID))
"""For sums in float32 and constants rounded to it; GELU and its approximation by tanh are 4.7e-4 apart."""


def _sigmoid(x: _Floats) -> _Floats:
    return 1 / (1 + np.exp(-x))


_ACTIVATIONS: dict[int, Callable[[_Floats], _Floats]] = {
    functions.RELU: lambda x: np.maximum(x, 0),
    functions.GELU: lambda x: x * (1 + np.vectorize(erf)(x / np.sqrt(2))) / 2,
    functions.GELU_TANH: lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    functions.SILU: lambda x: x * _sigmoid(x),
}
_EXPECTED = {number: activation(_GRID) for number, activation in _ACTIVATIONS.items()}


@dataclass(frozen=True)
class _Steps:
    """Pointwise steps from one value to another, between which nothing else reads."""

    activation: int
    nodes: tuple[ir.Node, ...]
    constants: tuple[ir.Value, ...]

    @property
    def output(self) -> ir.Value:
        return self.nodes[-1].outputs[0]


def fuse(model: ir.Model) -> dict[str, Fused]:
    """Replaces what it can, in place; what it did by the form of operator."""
    done = {functions.GATED: Fused(), functions.FUSED: Fused()}
    operators: set[str] = set()
    for node in list(model.graph.all_nodes()):
        if node.domain != functions.DOMAIN or node.op_type not in functions.MATMULS:
            continue
        if node.graph is None or (steps := _activation(node.outputs[0], model)) is None:
            continue
        form, operator = _replace(node, steps)
        done[form].count += 1
        operators.add(operator)
    for operator in sorted(operators):
        add_function(model, functions.function(operator, opset_of(model.graph)))
    return done


def _activation(value: ir.Value, model: ir.Model) -> _Steps | None:
    """The shortest steps behind ``value`` that compute an activation."""
    nodes: list[ir.Node] = []
    constants: list[ir.Value] = []
    known = {value}
    while len(nodes) < _MOST_STEPS and (node := _next(known, nodes, constants, model)) is not None:
        nodes.append(node)
        known.add(node.outputs[0])
        if not _closed(known - {node.outputs[0]}, nodes):
            continue
        if (found := _recognised(value, nodes, constants, model)) is not None:
            return _Steps(found, tuple(nodes), tuple(constants))
    return None


def _next(
    known: set[ir.Value], nodes: Sequence[ir.Node], constants: list[ir.Value], model: ir.Model
) -> ir.Node | None:
    """A pointwise node that reads nothing but known values and constants, which are added to ``constants``."""
    for user in (user for value in known for user, _ in value.uses()):
        if user in nodes or user.domain != "" or user.op_type not in _POINTWISE or len(user.outputs) != 1:
            continue
        if any(
            user.graph is not value.graph for value in known
        ):  # a body of the graph that the product is in
            continue
        others = [value for value in user.inputs if value is not None and value not in known]
        if all(_is_scalar(value, model) for value in others):
            constants += others
            return user
    return None


def _is_scalar(value: ir.Value, model: ir.Model) -> bool:
    try:
        return int(np.prod(resolve(value, model.ir_version).shape)) == 1
    except NotConstantError:
        return False


def _closed(inner: set[ir.Value], nodes: Sequence[ir.Node]) -> bool:
    """Whether nothing but these nodes reads the values between."""
    return not any(v.is_graph_output() or any(user not in nodes for user, _ in v.uses()) for v in inner)


def _recognised(
    value: ir.Value, nodes: Sequence[ir.Node], constants: Sequence[ir.Value], model: ir.Model
) -> int | None:
    """The activation that the steps compute."""
    numbers = {v.name: resolve(v, model.ir_version).numpy().astype(np.float32) for v in constants}
    graph = onnx.helper.make_graph(
        [ir.serde.serialize_node(node) for node in nodes],
        "steps",
        [onnx.helper.make_tensor_value_info(value.name or "", onnx.TensorProto.FLOAT, [None])],
        [onnx.helper.make_tensor_value_info(nodes[-1].outputs[0].name or "", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(number, name) for name, number in numbers.items()],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset_of(model.graph))])
    with np.errstate(all="ignore"):
        evaluator: Any = onnx.reference.ReferenceEvaluator(proto)
        computed = evaluator.run(None, {value.name: _GRID.astype(np.float32)})[0]
    for number, expected in _EXPECTED.items():
        if computed.shape == expected.shape and (np.abs(computed - expected) <= _TOLERANCE).all():
            return number
    return None


def _gate(node: ir.Node, steps: _Steps) -> tuple[ir.Node, ir.Node] | None:
    """(the product that the activated one is multiplied with, where both can be one operator; their Mul)."""
    uses = steps.output.uses()
    if len(uses) != 1 or steps.output.is_graph_output():
        return None
    ((mul, at),) = uses
    if (mul.domain, mul.op_type) != ("", "Mul") or mul.inputs[0] is mul.inputs[1]:
        return None
    other = mul.inputs[1 - at]
    up = None if other is None else other.producer()
    if other is None or up is None or up is node or not up.graph is mul.graph is node.graph:
        return None
    if len(other.uses()) != 1 or other.is_graph_output() or up.inputs[0] is not node.inputs[0]:
        return None
    same = (up.domain, up.op_type) == (node.domain, node.op_type) and _settings(up) == _settings(node)
    return (up, mul) if same else None


def _settings(node: ir.Node) -> dict[str, object]:
    return {name: attribute.value for name, attribute in node.attributes.items()}


def _replace(node: ir.Node, steps: _Steps) -> tuple[str, str]:
    """(form, operator) that now stands for the product and what followed it."""
    gate = _gate(node, steps)
    form = functions.FUSED if gate is None else functions.GATED
    operator = form + node.op_type.removeprefix(functions.MATMUL)
    removed, last, inputs = [node, *steps.nodes], steps.nodes[-1], list(node.inputs)
    metadata = dict(node.metadata_props)
    if gate is not None:
        up, last = gate
        removed += gate
        inputs += up.inputs[1:]
        metadata |= {f"{FACTOR}.{key}": text for key, text in up.metadata_props.items()}
        metadata[FACTOR] = up.name or ""
    fused = ir.Node(
        functions.DOMAIN,
        operator,
        inputs,
        [*node.attributes.values(), ir.AttrInt64(functions.ACTIVATION, steps.activation)],
        name=node.name,
        doc_string=node.doc_string,
        metadata_props=metadata,
    )
    old, new = last.outputs[0], fused.outputs[0]
    new.name, new.type, new.shape, new.doc_string = old.name, old.type, old.shape, old.doc_string
    assert last.graph is not None
    ir.convenience.replace_nodes_and_values(last.graph, last, removed, [fused], [old], [new])
    drop_dead(steps.constants)
    return form, operator
