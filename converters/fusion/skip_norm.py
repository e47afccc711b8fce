"""A sum and the normalisation behind it become one operator: com.microsoft Skip(Simplified)LayerNormalization.

The file has the operator's function with it, as for those of this library: onnx, and what else does not know it, opens
the file too. onnxruntime has kernels for it.
"""

from __future__ import annotations

from typing import no_type_check

import onnx
import onnx.helper
import onnx_ir as ir
import onnxscript
from onnxscript import opset23 as op

from mxort.converters.attention import Fused
from mxort.converters.fusion.steps import Builder, drop, kind, maker, take_over
from mxort.converters.opset import opset_of
from mxort.converters.shapes import Inferred

NAME = "SkipLayerNormalization"
_MICROSOFT = "com.microsoft"
_domain = onnxscript.values.Opset(_MICROSOFT, 1)


@no_type_check
@onnxscript.script(_domain, default_opset=op)
def SkipLayerNormalization(input, skip, gamma, beta, epsilon: float = 1e-12):  # noqa: N802
    """(layer norm of input + skip, its mean, 1 / its deviation, input + skip)."""
    total = input + skip
    y, mean, deviation = op.LayerNormalization(total, gamma, beta, axis=-1, epsilon=epsilon)
    return y, mean, deviation, op.Identity(total)


@no_type_check
@onnxscript.script(_domain, default_opset=op)
def SkipSimplifiedLayerNormalization(input, skip, gamma, epsilon: float = 1e-12):  # noqa: N802
    """(RMS norm of input + skip, its mean, 1 / root of its mean square, input + skip)."""
    total = input + skip
    y = op.RMSNormalization(total, gamma, axis=-1, epsilon=epsilon)
    square = op.ReduceMean(total * total, op.Constant(value_ints=[-1]))
    deviation = op.Reciprocal(op.Sqrt(square + op.CastLike(op.Constant(value_float=epsilon), square)))
    return y, op.ReduceMean(total, op.Constant(value_ints=[-1])), deviation, op.Identity(total)


_NORMS = {
    "LayerNormalization": SkipLayerNormalization,
    "RMSNormalization": SkipSimplifiedLayerNormalization,
}


def function(operator: str, opset: int) -> onnx.FunctionProto:
    """The operator in single steps."""
    proto: onnx.FunctionProto = next(f for f in _NORMS.values() if f.name == operator).to_function_proto()
    del proto.opset_import[:]
    proto.opset_import.append(onnx.helper.make_opsetid("", opset))
    return proto


def fuse(model: ir.Model, known: Inferred) -> Fused:
    """Replaces what it can, in place."""
    result = Fused()
    known_before = {node.op_identifier()[:2] for node in model.graph}
    found = [(add, norm) for norm in model.graph if (add := _sum(norm)) is not None]
    for add, norm in found:
        if _same(*map(known.shape, add.inputs)):
            _replace(model, add, norm)
            result.count += 1
        else:
            result.left["the two that are added may be of different shapes"] += 1
    made = {node.op_identifier()[:2] for node in model.graph} - known_before
    for domain, operator in sorted(made):  # nodes that were there may use more than the functions have
        definition = ir.serde.deserialize_function(function(operator, opset_of(model.graph)))
        model.functions[definition.identifier()] = definition
        model.opset_imports.setdefault(domain, 1)
    return result


def _sum(norm: ir.Node) -> ir.Node | None:
    """The Add that a normalisation of the last axis has as its input."""
    value = norm.inputs[0] if kind(norm) in _NORMS else None
    add = maker(value)
    if value is None or add is None or kind(add) != "Add":
        return None
    rank = None if value.shape is None else len(value.shape)
    alone = not any(output.uses() or output.is_graph_output() for output in norm.outputs[1:])
    return add if alone and norm.attributes.get_int("axis", -1) in (-1, rank and rank - 1) else None


def _same(first: ir.Shape | None, second: ir.Shape | None) -> bool:
    """Whether nothing is broadcast; of three axes, which the operator takes."""
    if first is None or second is None or not len(first) == len(second) == 3:
        return False
    return all(a == b and (isinstance(a, int) or bool(a.value)) for a, b in zip(first, second, strict=True))


def _replace(model: ir.Model, add: ir.Node, norm: ir.Node) -> None:
    total = add.outputs[0]
    operator = _NORMS[norm.op_type].name
    node = Builder(model, norm).add(
        operator, [*add.inputs, *norm.inputs[1:]], {}, like=total, outputs=4, domain=_MICROSOFT
    )
    node.attributes["epsilon"] = ir.AttrFloat32("epsilon", norm.attributes.get_float("epsilon", 1e-5))
    for unused in node.outputs[1:3]:
        unused.name = ""
    old = norm.outputs[0]
    take_over(old, node.outputs[0])
    drop([old])
    if total.uses() or total.is_graph_output():
        take_over(total, node.outputs[3])
    else:
        node.outputs[3].name = ""
    drop([total])
