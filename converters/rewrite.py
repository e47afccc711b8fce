"""Putting the operators in the place of the converted ones, and their functions into the model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mxort.converters import functions
from mxort.converters.opset import opset_of, raise_versions
from mxort.converters.sites import Site

METADATA_VERSION = "mxort.version"
METADATA_RECIPE = "mxort.recipe"
METADATA_SOURCE = "mxort.source_sha256"

Put = Callable[[NDArray[Any]], ir.TensorProtocol]
"""Stores an array where the output keeps its weights."""


@dataclass(frozen=True)
class PackedTensors:
    """A weight: codes uint8 [N, ceil(K/32)*block_bytes], scales uint8 [N, ceil(K/32)], multipliers float32 [N]."""

    codes: ir.TensorProtocol
    scales: ir.TensorProtocol
    column_scale: NDArray[np.float32]
    weight_format: str = "mxfp4"


@dataclass(frozen=True)
class Replacement:
    """A site and what it becomes."""

    site: Site
    weight: PackedTensors
    rotation: int
    activation_format: str
    accuracy_level: int


class TensorPool:
    """Stores equal arrays once. Keyed by content, so copies and transposed copies of a weight meet here."""

    def __init__(self, put: Put) -> None:
        self._put = put
        self._stored: dict[bytes, ir.TensorProtocol] = {}

    def put(self, array: NDArray[Any]) -> tuple[ir.TensorProtocol, bool]:
        """(the stored tensor, whether it is new)."""
        digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        key = digest.digest()
        if new := key not in self._stored:
            self._stored[key] = self._put(array)
        return self._stored[key], new


def is_converted(model: ir.Model) -> bool:
    """Whether mxort has been at this model."""
    return METADATA_VERSION in model.metadata_props or functions.DOMAIN in model.opset_imports


def apply(
    model: ir.Model, replacements: Sequence[Replacement], pool: TensorPool, metadata: dict[str, str]
) -> None:
    """Rewrites the model in place. Raises OpsetError where its opset cannot be raised far enough."""
    raise_versions(model)
    initializers = _Initializers(model, replacements, pool)
    for replacement in replacements:
        _replace(replacement, initializers)
    model.opset_imports[functions.DOMAIN] = functions.VERSION
    for operator in {functions.operator_of(r.weight.weight_format)[0]: None for r in replacements}:
        function = ir.serde.deserialize_function(functions.matmul_function(opset_of(model.graph), operator))
        model.functions[function.identifier()] = function
    model.metadata_props.update(metadata)


class _Initializers:
    """The new initializers: one for every stored tensor, in the graph that uses it, else in the outermost."""

    def __init__(self, model: ir.Model, replacements: Sequence[Replacement], pool: TensorPool) -> None:
        self._main = model.graph
        self._names = {v.name for graph in model.graphs() for v in _values(graph)}
        self._values: dict[int, ir.Value] = {}
        self._vectors: dict[int, tuple[ir.TensorProtocol, ir.TensorProtocol]] = {}
        users: dict[int, set[ir.Graph]] = {}
        for replacement in replacements:
            site = replacement.site
            column_scale = replacement.weight.column_scale * np.float32(site.alpha)
            bias = np.zeros(site.N, np.float32) if site.bias is None else site.bias
            vectors = pool.put(column_scale)[0], pool.put(bias)[0]
            self._vectors[id(replacement)] = vectors
            assert isinstance(site.node.graph, ir.Graph)
            for tensor in (replacement.weight.codes, replacement.weight.scales, *vectors):
                users.setdefault(id(tensor), set()).add(site.node.graph)
        self._users = users

    def of(self, replacement: Replacement) -> list[ir.Value]:
        """Values of the operator's inputs B, B_scale, column_scale and bias."""
        site, weight = replacement.site, replacement.weight
        assert site.weight is not None
        column_scale, bias = self._vectors[id(replacement)]
        base = site.weight.name or site.name
        return [
            self._value(weight.codes, f"{base}_{weight.weight_format}"),
            self._value(weight.scales, f"{base}_{weight.weight_format}_scale"),
            self._value(column_scale, f"mxort_column_scale_{site.N}"),
            self._value(bias, f"mxort_bias_{site.N}"),
        ]

    def _value(self, tensor: ir.TensorProtocol, name: str) -> ir.Value:
        if id(tensor) not in self._values:
            users = self._users[id(tensor)]
            graph = next(iter(users)) if len(users) == 1 else self._main
            value = ir.Value(
                name=self.unique(name),
                type=ir.TensorType(tensor.dtype),
                shape=ir.Shape(tensor.shape.numpy()),
                const_value=tensor,
            )
            tensor.name = value.name
            graph.register_initializer(value)
            self._values[id(tensor)] = value
        return self._values[id(tensor)]

    def unique(self, name: str) -> str:
        candidate, number = name, 1
        while candidate in self._names:
            number += 1
            candidate = f"{name}_{number}"
        self._names.add(candidate)
        return candidate


def _values(graph: ir.Graph) -> Iterable[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _replace(replacement: Replacement, initializers: _Initializers) -> None:
    site = replacement.site
    old, last = site.node, site.bias_node or site.node
    graph = last.graph
    assert graph is not None and site.weight is not None
    new: list[ir.Node] = []
    left = old.inputs[0]
    if site.transpose_a:
        new.append(ir.node("Transpose", [left], {"perm": [1, 0]}, name=f"{site.name}_transpose_A"))
        new[-1].outputs[0].name = initializers.unique(f"{site.name}_transposed_A")
        left = new[-1].outputs[0]
    name, attributes = functions.operator_of(replacement.weight.weight_format)
    operator = ir.Node(
        functions.DOMAIN,
        name,
        [left, *initializers.of(replacement)],
        ir.convenience.convert_attributes(
            {
                "K": site.K,
                "N": site.N,
                "rotation": replacement.rotation,
                "activation_format": replacement.activation_format,
                "accuracy_level": replacement.accuracy_level,
                **attributes,
            }
        ),
        name=old.name,
        doc_string=old.doc_string,
        metadata_props=dict(old.metadata_props),
    )
    new.append(operator)
    if site.addend is not None:
        operator.outputs[0].name = initializers.unique(f"{site.name}_product")
        new.append(ir.node("Add", [operator.outputs[0], site.addend], name=f"{site.name}_add_C"))
    result, output = last.outputs[0], new[-1].outputs[0]
    output.doc_string = result.doc_string
    output.metadata_props.update(result.metadata_props)
    output.meta.update(result.meta)
    dead = [value for node in (old, last) for value in node.inputs if value is not None]
    ir.convenience.replace_nodes_and_values(
        graph, last, [last] if last is old else [old, last], new, [result], [output]
    )
    _drop_dead(dead)


def _drop_dead(values: Iterable[ir.Value]) -> None:
    """Removes the constants that nothing uses any more, with the nodes that led from them."""
    for value in values:
        if value.uses() or value.is_graph_output():
            continue
        node, graph = value.producer(), value.graph
        if node is None:
            if (
                value.is_initializer()
                and not value.is_graph_input()
                and value.name
                and isinstance(graph, ir.Graph)
            ):
                del graph.initializers[value.name]
        elif node.op_type in ("Constant", "Identity", "Transpose", "Reshape", "Cast") and node.domain == "":
            inputs = [v for v in node.inputs if v is not None]
            if node.graph is not None:
                node.graph.remove(node, safe=True)
                _drop_dead(inputs)
