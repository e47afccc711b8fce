"""Putting operators of the domain mxort in the place of the converted nodes, and their functions into the model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mxort.converters import experts, functions
from mxort.converters.metadata import Conversion, conversions
from mxort.converters.normalise import unique_node_names
from mxort.converters.opset import opset_of, raise_versions
from mxort.converters.resolving import leads_from_constants
from mxort.converters.sites import Site

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
    """A site and what it becomes. ``output_divisor`` float32 [N]: what its columns and bias are divided by."""

    site: Site
    weight: PackedTensors
    rotation: int
    activation_format: str
    accuracy_level: int
    output_divisor: NDArray[np.float32] | None = None


_SAMPLES, _SAMPLE_BYTES = 16, 4096
"""Of an array, by which it is known at first: hashing all of a checkpoint would take as long as copying it."""


class TensorPool:
    """Stores equal arrays once. Keyed by content, so copies and transposed copies of a weight meet here."""

    def __init__(self, put: Put) -> None:
        self._put = put
        self._stored: dict[bytes, list[ir.TensorProtocol]] = {}

    def put(self, array: NDArray[Any]) -> tuple[ir.TensorProtocol, bool]:
        """(the stored tensor, whether it is new)."""
        alike = self._stored.setdefault(_sample(array), [])
        for tensor in alike:
            if _holds(tensor, array):
                return tensor, False
        alike.append(self._put(array))
        return alike[-1], True


def _sample(array: NDArray[Any]) -> bytes:
    """A hash of the type, the shape and some of the bytes, from all over."""
    digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
    flat = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
    for start in np.linspace(0, max(0, flat.size - _SAMPLE_BYTES), _SAMPLES, dtype=np.int64):
        digest.update(flat[start : start + _SAMPLE_BYTES].data)
    return digest.digest()


def _holds(tensor: ir.TensorProtocol, array: NDArray[Any]) -> bool:
    """Whether a stored tensor is the array, bit for bit."""
    same = np.array_equal(tensor.numpy().view(np.uint8), np.ascontiguousarray(array).view(np.uint8))
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()
    return same


def is_converted(model: ir.Model) -> bool:
    """Whether mxort has been at this model. (A model that onnxruntime saves imports every domain it has met.)"""
    return bool(conversions(model.metadata_props)) or _has_ours(model)


def is_unfolded(model: ir.Model) -> bool:
    """Whether another tool has put the operators' functions in their place since: no kernel of ours runs then."""
    return bool(conversions(model.metadata_props)) and not _has_ours(model)


def _has_ours(model: ir.Model) -> bool:
    return any(node.domain == functions.DOMAIN for node in model.graph.all_nodes())


def apply(
    model: ir.Model, replacements: Sequence[Replacement], pool: TensorPool, conversion: Conversion
) -> None:
    """Rewrites the model in place. Raises OpsetError where its opset cannot be raised far enough."""
    raise_versions(model)
    initializers = _Initializers(model, replacements, pool)
    stacks: dict[ir.Node, Replacement] = {}
    for replacement in replacements:
        site = replacement.site
        if site.experts and site.node not in stacks:
            stacks[site.node] = replacement
        elif site.experts:
            _replace_experts((stacks[site.node], replacement), initializers)
        else:
            replace = _replace_gather if _is_gather(site) else _replace_matmul
            replace(replacement, initializers)
    model.opset_imports[functions.DOMAIN] = functions.VERSION
    for operator in sorted({_operator(replacement)[0] for replacement in replacements}):
        function = ir.serde.deserialize_function(functions.function(operator, opset_of(model.graph)))
        model.functions[function.identifier()] = function
    unique_node_names(model)
    conversion.write(model)


def _is_gather(site: Site) -> bool:
    return site.node.op_type == "Gather"


def _operator(replacement: Replacement) -> tuple[str, dict[str, Any]]:
    """(the operator, the attributes that its weights' format gives it)."""
    if replacement.site.experts:
        return functions.EXPERTS, {}
    return functions.operator_of(replacement.weight.weight_format, gather=_is_gather(replacement.site))


class _Initializers:
    """The new initializers: one for every stored tensor, in the graph that uses it, else in the outermost."""

    def __init__(self, model: ir.Model, replacements: Sequence[Replacement], pool: TensorPool) -> None:
        self._main = model.graph
        self._names = {v.name for graph in model.graphs() for v in _values(graph)}
        self._values: dict[int, ir.Value] = {}
        self._vectors: dict[int, list[ir.TensorProtocol]] = {}
        users: dict[int, set[ir.Graph]] = {}
        for replacement in replacements:
            site = replacement.site
            divisor = np.float32(1) if replacement.output_divisor is None else replacement.output_divisor
            column_scale = replacement.weight.column_scale * np.float32(site.alpha) / divisor
            if site.multiplier is not None:
                column_scale = column_scale * site.multiplier
            vectors = [pool.put(site.stacked(column_scale))[0]]
            if not _is_gather(site):
                bias = np.zeros(site.N, np.float32) if site.bias is None else site.bias
                vectors.append(pool.put(site.stacked(bias / divisor))[0])
            self._vectors[id(replacement)] = vectors
            assert isinstance(site.node.graph, ir.Graph)
            for tensor in (replacement.weight.codes, replacement.weight.scales, *vectors):
                users.setdefault(id(tensor), set()).add(site.node.graph)
        self._users = users

    def of(self, replacement: Replacement) -> list[ir.Value]:
        """Values of the operator's inputs after the first: B, B_scale, column_scale and, where it has one, bias."""
        site, weight = replacement.site, replacement.weight
        assert site.weight is not None
        vectors = zip(("column_scale", "bias"), self._vectors[id(replacement)], strict=False)
        base = site.weight.name or site.name
        return [
            self._value(weight.codes, f"{base}_{weight.weight_format}"),
            self._value(weight.scales, f"{base}_{weight.weight_format}_scale"),
            *(self._value(vector, f"mxort_{what}_{site.N}") for what, vector in vectors),
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


def _replace_matmul(replacement: Replacement, initializers: _Initializers) -> None:
    site = replacement.site
    old = site.node
    new: list[ir.Node] = []
    left = old.inputs[0]
    if site.transpose_a:
        new.append(ir.node("Transpose", [left], {"perm": [1, 0]}, name=f"{site.name}_transpose_A"))
        new[-1].outputs[0].name = initializers.unique(f"{site.name}_transposed_A")
        left = new[-1].outputs[0]
    attributes: dict[str, int | str] = {
        "K": site.K,
        "N": site.N,
        "rotation": replacement.rotation,
        "activation_format": replacement.activation_format,
        "accuracy_level": replacement.accuracy_level,
    }
    operator = _node(replacement, left, initializers, attributes)
    new.append(operator)
    if site.addend is not None:
        operator.outputs[0].name = initializers.unique(f"{site.name}_product")
        new.append(ir.node("Add", [operator.outputs[0], site.addend], name=f"{site.name}_add_C"))
    _put(site, new)


def _replace_gather(replacement: Replacement, initializers: _Initializers) -> None:
    """The operator gives float: a table of another type is followed by a Cast."""
    site = replacement.site
    assert site.weight is not None
    new = [_node(replacement, site.node.inputs[1], initializers, {"K": site.K})]
    if site.weight.dtype != ir.DataType.FLOAT:
        new[0].outputs[0].name = initializers.unique(f"{site.name}_float")
        new.append(ir.node("Cast", new[0].outputs, {"to": site.weight.dtype}, name=f"{site.name}_cast"))
    _put(site, new)


def _replace_experts(stacks: tuple[Replacement, Replacement], initializers: _Initializers) -> None:
    """The two products of a mixture of experts become one operator, with the stricter of their levels."""
    first, second = sorted(stacks, key=lambda stack: stack.site.operand)
    attributes = experts.attributes_of(first.site.node) | {
        "rotation": first.rotation,
        "activation_format": first.activation_format,
        "accuracy_level": min(stack.accuracy_level for stack in stacks),
    }
    node = _node(first, first.site.node.inputs[0], initializers, attributes, second)
    _put(first.site, [node])


def _node(
    replacement: Replacement,
    first: ir.Value | None,
    initializers: _Initializers,
    attributes: Mapping[str, Any],
    second: Replacement | None = None,
) -> ir.Node:
    """The operator that takes a site's place, with the name and the notes of its node."""
    old = replacement.site.node
    operator, format_attributes = _operator(replacement)
    router = old.inputs[1:2] if replacement.site.experts else ()
    return ir.Node(
        functions.DOMAIN,
        operator,
        [first, *router, *initializers.of(replacement), *(initializers.of(second) if second else ())],
        ir.convenience.convert_attributes({**attributes, **format_attributes}),
        name=old.name,
        doc_string=old.doc_string,
        metadata_props=dict(old.metadata_props),
    )


def _put(site: Site, new: list[ir.Node]) -> None:
    """Puts ``new`` in the place of the site's nodes and drops the constants that nothing else uses."""
    old, last = site.node, site.bias_node or site.node
    graph = last.graph
    assert graph is not None
    result, output = last.outputs[0], new[-1].outputs[0]
    output.doc_string = result.doc_string
    output.metadata_props.update(result.metadata_props)
    output.meta.update(result.meta)
    dead = [value for node in (old, last) for value in node.inputs if value is not None]
    ir.convenience.replace_nodes_and_values(
        graph, last, [last] if last is old else [old, last], new, [result], [output]
    )
    drop_dead(dead)


def drop_dead(values: Iterable[ir.Value]) -> None:
    """Removes the constants that nothing uses any more, with the nodes that led from them."""
    pending = list(values)
    while pending:
        value = pending.pop()
        node, graph = value.producer(), value.graph
        if value.uses() or value.is_graph_output():
            continue
        if node is None:
            named = value.name if value.is_initializer() and not value.is_graph_input() else None
            if named and isinstance(graph, ir.Graph) and named in graph.initializers:
                del graph.initializers[named]
        elif (
            leads_from_constants(node)
            and node.graph is not None
            and not any(output.uses() or output.is_graph_output() for output in node.outputs)
        ):
            pending += [v for v in node.inputs if v is not None]
            node.graph.remove(node, safe=True)


def drop_steps(values: Iterable[ir.Value | None]) -> None:
    """Removes the steps that nothing reads any more, back to where others do."""
    pending = [value for value in values if value is not None]
    while pending:
        value = pending.pop()
        node = value.producer()
        if value.uses() or value.is_graph_output():
            continue
        if node is None:
            drop_dead([value])
        elif node.graph is not None and not any(o.uses() or o.is_graph_output() for o in node.outputs):
            inputs = [v for v in node.inputs if v is not None]
            node.graph.remove(node, safe=True)
            pending += inputs
