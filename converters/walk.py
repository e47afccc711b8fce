"""Going through a model: its bodies (graph and functions) and all its tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir


def bodies(model: ir.Model) -> list[ir.Graph | ir.Function]:
    """The graph and the functions; subgraphs belong to their nodes."""
    return [model.graph, *model.functions.values()]


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor stands: an initializer (``value``) or an attribute of a node."""

    tensor: ir.TensorProtocol
    value: ir.Value | None = None
    node: ir.Node | None = None
    attribute: ir.Attr | None = None

    def put(self, tensor: ir.TensorProtocol) -> None:
        """Replaces the tensor."""
        if self.value is not None:
            self.value.const_value = tensor
        elif self.node is not None and self.attribute is not None:
            old = self.attribute
            self.node.attributes[old.name] = ir.AttrTensor(old.name, tensor, old.doc_string)


def tensors(model: ir.Model) -> Iterator[TensorPlace]:
    """Every tensor of every graph, subgraph and function. Tensors may be replaced on the way."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield TensorPlace(value.const_value, value=value)
    for body in bodies(model):
        for node in ir.traversal.RecursiveGraphIterator(body):
            for attribute in list(node.attributes.values()):
                if not attribute.is_ref() and attribute.type == ir.AttributeType.TENSOR:
                    # not as_tensor(): its type check asks a tensor for its size, which a damaged one has not
                    yield TensorPlace(attribute.value, node=node, attribute=attribute)
