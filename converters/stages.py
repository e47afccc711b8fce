"""Cutting a model at its sites, so that calibration can run what lies between them and do the sites itself.

Stage i is the nodes that need the results of stage i - 1's sites, then the sites whose inputs are then known.
Only what leads to a site is in a stage. No stage holds a site's own weight.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx_ir as ir
from numpy.typing import NDArray

from mxort.converters.constants import padded_rows
from mxort.converters.sites import Site
from mxort.formats import BLOCK_SIZE, blocks_of

_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
"""What onnxruntime hands to Python as numpy arrays."""

_WIDENED = "/float32"

_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


@dataclass(frozen=True)
class Stage:
    """``nodes`` turn the values ``inputs`` into ``outputs``; then ``sites`` can run. ``dead`` ends with it.

    ``constants`` are the initializers that the nodes read. Values are named; names are unique in a graph.
    """

    nodes: tuple[ir.Node, ...]
    constants: tuple[ir.Value, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sites: tuple[Site, ...]
    dead: tuple[str, ...]

    @property
    def data_folder(self) -> str:
        """Where onnxruntime finds the constants that :meth:`proto` leaves in their file; empty: there are none."""
        files = (value.const_value for value in self.constants)
        return next((str(Path(t.path).parent) for t in files if isinstance(t, ir.ExternalTensor)), "")

    def proto(
        self, model: ir.Model, types: Mapping[str, onnx.TypeProto], widened: Collection[str] = ()
    ) -> onnx.ModelProto:
        """The nodes as a model of their own. ``types`` has the type of every input.

        Inputs and outputs in ``widened`` are float32 outside, under another name, and cast on the way.

        Constants with external data in :attr:`data_folder` stay there: an embedding table would be copied
        several times on its way into a session.
        """
        floats = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)
        outside = {
            name: name + (_WIDENED if name in widened else "") for name in (*self.inputs, *self.outputs)
        }
        casts = [
            onnx.helper.make_node("Cast", [outside[name]], [name], to=types[name].tensor_type.elem_type)
            for name in self.inputs
            if name in widened
        ]
        back = [
            onnx.helper.make_node("Cast", [name], [outside[name]], to=onnx.TensorProto.FLOAT)
            for name in self.outputs
            if name in widened
        ]
        graph = onnx.helper.make_graph(
            [*casts, *(ir.to_proto(node) for node in self.nodes), *back],
            "stage",
            [
                onnx.helper.make_value_info(outside[name], floats if name in widened else types[name])
                for name in self.inputs
            ],
            [onnx.ValueInfoProto(name=outside[name]) for name in self.outputs],
            [_tensor_proto(value, self.data_folder) for value in self.constants],
        )
        opsets = [onnx.helper.make_opsetid(*item) for item in model.opset_imports.items()]
        functions = [ir.serde.serialize_function(function) for function in model.functions.values()]
        return onnx.helper.make_model(
            graph, opset_imports=opsets, ir_version=model.ir_version, functions=functions
        )


def refusal(model: ir.Model, site: Site) -> str:
    """Why calibration does not see the input of a convertible site; empty where it does."""
    assert site.weight is not None
    if site.node.graph is not model.graph:
        return "inside a subgraph: not calibrated"
    if site.node.op_type == "Gather":
        return "an embedding has no operand to calibrate on"
    if site.addend is not None:
        return "C is no constant: not calibrated"
    if site.weight.dtype not in _TYPES:
        return f"{site.weight.dtype.name.lower()}: not calibrated"
    return ""


def plan(model: ir.Model, sites: Sequence[Site], outputs: Sequence[ir.Value] = ()) -> list[Stage]:
    """The stages that lead to ``sites``, none of which :func:`refusal` refuses, and to ``outputs`` of the graph.

    What leads to an output from the last site on is in a last stage, without sites. ``outputs`` are never dead.
    """
    return _Plan(model, sites, outputs).stages()


def float_weight(site: Site) -> NDArray[np.float32]:
    """W^T as float32 [N, ceil(K/32)*32], zeros beyond K."""
    weight = site.weight
    assert weight is not None
    return padded_rows(weight, weight.array(), 0, site.N, blocks_of(site.K) * BLOCK_SIZE)


def own_bias(site: Site) -> NDArray[np.float32]:
    """float32 [N]: what the site's node itself adds (an Add that follows it is a node of the next stage)."""
    folded = site.bias is None or site.bias_node is not None
    return np.zeros(site.N, np.float32) if folded or site.bias is None else site.bias


class _Plan:
    def __init__(self, model: ir.Model, sites: Sequence[Site], outputs: Sequence[ir.Value]) -> None:
        self._model = model
        self._outputs = outputs
        self._site_of = {site.node: site for site in reversed(sites)}
        self._needed = self._ancestors()
        self._level: dict[ir.Node, int] = {}
        """Stage of every needed node; -1 for those that depend on constants only."""
        for node in model.graph:
            if node in self._needed:
                self._level[node] = self._level_of(node)

    def _ancestors(self) -> set[ir.Node]:
        ends = (value.producer() for value in self._outputs)
        pending = [*self._site_of, *(node for node in ends if node is not None)]
        needed = set(pending)
        while pending:
            node = pending.pop()
            for value in self._inputs(node):
                producer = value.producer()
                if producer is not None and producer not in needed:
                    needed.add(producer)
                    pending.append(producer)
        return needed

    def _inputs(self, node: ir.Node) -> Iterable[ir.Value]:
        """The values a node reads; of a site's node only its operands."""
        if node in self._site_of:
            return operands(self._site_of[node])
        return (value for value in read_values(node) if value is not None)

    def _value_level(self, value: ir.Value) -> int:
        node = value.producer()
        if node is None:
            return -1 if value.is_initializer() else 0
        return self._level[node] + (node in self._site_of)

    def _level_of(self, node: ir.Node) -> int:
        if node.op_type in _RANDOM or node in self._site_of:
            return max([0, *map(self._value_level, self._inputs(node))])
        return max(map(self._value_level, self._inputs(node)), default=-1)

    def stages(self) -> list[Stage]:
        levels = [self._level[node] for node in self._site_of]
        count = 1 + max([*levels, *map(self._value_level, self._outputs)], default=-1)
        nodes = [self._nodes_of(level) for level in range(count)]
        sites = [
            [
                self._site_of[node]
                for node in self._model.graph
                if node in self._site_of and self._level[node] == i
            ]
            for i in range(count)
        ]
        last_use: dict[str, int] = {}
        for level in range(count):
            for node in (*nodes[level], *(site.node for site in sites[level])):
                for value in self._inputs(node):
                    if self._value_level(value) >= 0:
                        last_use[value.name or ""] = level
        last_use |= {value.name or "": count for value in self._outputs}
        result = []
        for level in range(count):
            made = {value for node in nodes[level] for value in node.outputs}
            read = dict.fromkeys(value for node in nodes[level] for value in self._inputs(node))
            at_sites = {value for site in sites[level] for value in operands(site)}
            # Of what is made here, what sites read or a later stage. (A site may also read a graph input.)
            outputs = [v for v in made if v in at_sites or last_use.get(v.name or "", -1) > level]
            inner = {v.name for v in made} - {v.name for v in outputs}
            result.append(
                Stage(
                    tuple(nodes[level]),
                    tuple(v for v in read if v.producer() is None and v.is_initializer()),
                    tuple(v.name or "" for v in read if v not in made and self._value_level(v) >= 0),
                    tuple(sorted(v.name or "" for v in outputs)),
                    tuple(sites[level]),
                    tuple(name for name, last in last_use.items() if last == level and name not in inner),
                )
            )
        return result

    def _nodes_of(self, level: int) -> list[ir.Node]:
        """The nodes of one stage in order, with those that compute constants for them."""
        wanted = {n for n in self._needed if self._level[n] == level and n not in self._site_of}
        pending = [*wanted, *(node for node in self._site_of if self._level[node] == level)]
        while pending:
            for value in self._inputs(pending.pop()):
                node = value.producer()
                if node is not None and self._level[node] == -1 and node not in wanted:
                    wanted.add(node)
                    pending.append(node)
        return [node for node in self._model.graph if node in wanted]


def operands(site: Site) -> list[ir.Value]:
    """What a site's node reads beside constants: A, or X and the router's logits of experts."""
    return [value for value in site.node.inputs[: 2 if site.experts else 1] if value is not None]


def read_values(node: ir.Node) -> Iterator[ir.Value]:
    """The values of the node's own graph that it reads: its inputs, and what its subgraphs take from outside."""
    yield from (value for value in node.inputs if value is not None)
    for body in _bodies(node):
        inner = [value for n in ir.traversal.RecursiveGraphIterator(body) for value in n.inputs]
        for value in (*inner, *body.outputs):
            if value is not None:
                producer = value.producer()
                if (value.graph if producer is None else producer.graph) is node.graph:
                    yield value


def _bodies(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _tensor_proto(value: ir.Value, folder: str) -> onnx.TensorProto:
    tensor = value.const_value
    assert tensor is not None
    if isinstance(tensor, ir.ExternalTensor):
        path = Path(tensor.path)
        if str(path.parent) == folder:
            place = (path.name, tensor.offset, tensor.length, tensor.dtype)
            tensor = ir.ExternalTensor(*place, shape=tensor.shape, name=tensor.name)
        else:
            tensor = ir.Tensor(tensor.numpy(), dtype=tensor.dtype)
    proto: onnx.TensorProto = ir.serde.serialize_tensor(tensor)
    proto.name = value.name or ""
    return proto
