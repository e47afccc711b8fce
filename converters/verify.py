"""Checking models with onnx's own checker, without handing it gigabytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import onnx
import onnx.checker
import onnx.defs
import onnx.helper
import onnx_ir as ir

from mxort.converters.walk import tensors

_STUBBED_BYTES = 1024
_ASIDE = "mxort.unchecked"


def check(model: ir.Model) -> None:
    """Runs onnx.checker on the model's structure. Raises its ValidationError, or a serialisation error.

    Large tensors are stood in for by empty ones: the checker copies the model twice, and refuses external
    data behind links. What their data must fulfil is checked on loading. What onnxruntime runs though the checker
    refuses it is passed over: operators that onnx does not know in the default domain
    (SimplifiedLayerNormalization), and inputs and outputs of unknown rank.
    """
    with _without_large_tensors(model):
        proto = ir.to_proto(model)
    versions = {o.domain: o.version for o in proto.opset_import}
    _set_unknown_operators_aside(proto.graph.node, versions)
    for function in proto.functions:
        _set_unknown_operators_aside(function.node, {o.domain: o.version for o in function.opset_import})
        function.opset_import.append(onnx.helper.make_opsetid(_ASIDE, 1))
    proto.opset_import.append(onnx.helper.make_opsetid(_ASIDE, 1))
    for info in (*proto.graph.input, *proto.graph.output):
        if info.type.HasField("tensor_type"):
            info.type.tensor_type.shape.SetInParent()
    onnx.checker.check_model(proto)


def _set_unknown_operators_aside(nodes: Iterable[onnx.NodeProto], versions: dict[str, int]) -> None:
    """Moves the operators of the default domain that onnx lacks at this version into a custom domain."""
    version = versions.get("", versions.get("ai.onnx", 1))
    for node in nodes:
        known = onnx.defs.has(node.op_type, max_inclusive_version=version)
        if node.domain in ("", "ai.onnx") and not known:
            node.domain = _ASIDE
        for attribute in node.attribute:
            for graph in [attribute.g, *attribute.graphs]:
                _set_unknown_operators_aside(graph.node, versions)


@contextmanager
def _without_large_tensors(model: ir.Model) -> Iterator[None]:
    large = [place for place in tensors(model) if _is_large(place.tensor)]
    try:
        for place in large:
            place.put(_stub(place.tensor))
        yield
    finally:
        for place in large:
            place.put(place.tensor)


def _is_large(tensor: ir.TensorProtocol) -> bool:
    return isinstance(tensor, ir.ExternalTensor) or (
        tensor.dtype != ir.DataType.STRING and tensor.nbytes > _STUBBED_BYTES
    )


def _stub(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """A tensor of the same type and rank without elements."""
    shape = [0] * max(1, tensor.shape.rank())
    return ir.Tensor(np.empty(shape, tensor.dtype.numpy()), dtype=tensor.dtype, name=tensor.name)
