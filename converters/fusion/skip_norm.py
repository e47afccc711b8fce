"""A sum and the RMS norm behind it become one operator: com.microsoft SkipSimplifiedLayerNormalization.

The file has the operator's function with it, as for those of this library: onnx, and what else does not know it, opens
the file too. onnxruntime has kernels for it. Its SkipLayerNormalization is left alone: on
the CPU it takes 0.2 ms longer than Add and LayerNormalization (128 x 384 numbers, onnxruntime 1.31).
"""

from __future__ import annotations

from typing import no_type_check

import onnx
import onnx.helper
import onnx_ir as ir
import onnxscript
from onnxscript import opset23 as op

from mxort.converters.attention import Fused, add_function
from mxort.converters.fusion.steps import Builder, kind, maker, take_over
from mxort.converters.opset import opset_of
from mxort.converters.rewrite import drop_steps
from mxort.converters.shapes import Inferred, width

NAME = "SkipSimplifiedLayerNormalization"
_MICROSOFT = "com.microsoft"


@no_type_check
@onnxscript.script(onnxscript.values.Opset(_MICROSOFT, 1), default_opset=op)
def SkipSimplifiedLayerNormalization(input, skip, gamma, epsilon: float = 1e-12):  # noqa: N802
    """(RMS norm of input + skip, its mean, 1 / root of its mean square, input + skip)."""
    total = input + skip
    y = op.RMSNormalization(total, gamma, axis=-1, epsilon=epsilon)
    square = op.ReduceMean(total * total, op.Constant(value_ints=[-1]))
    deviation = op.Reciprocal(op.Sqrt(square + op.CastLike(op.Constant(value_float=epsilon), square)))
    return y, op.ReduceMean(total, op.Constant(value_ints=[-1])), deviation, op.Identity(total)


def function(opset: int) -> onnx.FunctionProto:
    """The operator in single steps."""
    proto: onnx.FunctionProto = SkipSimplifiedLayerNormalization.to_function_proto()
    del proto.opset_import[:]
    proto.opset_import.append(onnx.helper.make_opsetid("", opset))
    return proto


def fuse(model: ir.Model, known: Inferred) -> Fused:
    """Replaces what it can, in place."""
    result = Fused()
    had = any((node.domain, node.op_type) == (_MICROSOFT, NAME) for node in model.graph)
    found = [(add, norm) for norm in model.graph if (add := _sum(norm)) is not None]
    for add, norm in found:
        if _same(*(_shape(value, known, model.ir_version) for value in add.inputs)):
            _replace(model, add, norm)
            result.count += 1
        else:
            result.left["the two that are added may be of different shapes"] += 1
    if result.count:
        model.opset_imports.setdefault(_MICROSOFT, 1)
        if not had:  # nodes that were there may use more than the function has
            add_function(model, function(opset_of(model.graph)))
    return result


def _sum(norm: ir.Node) -> ir.Node | None:
    """The Add that a normalisation of the last axis has as its input."""
    value = norm.inputs[0] if kind(norm) == "RMSNormalization" else None
    add = maker(value)
    if value is None or add is None or kind(add) != "Add":
        return None
    rank = None if value.shape is None else len(value.shape)
    alone = not any(output.uses() or output.is_graph_output() for output in norm.outputs[1:])
    return add if alone and norm.attributes.get_int("axis", -1) in (-1, rank and rank - 1) else None


def _shape(value: ir.Value | None, known: Inferred, ir_version: int) -> list[int | str | None]:
    """Inference does not see the width of products of ours."""
    shape = known.shape(value)
    dims = [d if isinstance(d, int) else d.value for d in shape or ()]
    return [*dims[:-1], width(value, ir_version) or dims[-1]] if dims else []


def _same(first: list[int | str | None], second: list[int | str | None]) -> bool:
    """Whether nothing is broadcast; of three axes, which the operator takes."""
    return len(first) == 3 and first == second and None not in first


def _replace(model: ir.Model, add: ir.Node, norm: ir.Node) -> None:
    total = add.outputs[0]
    inputs = [*add.inputs, norm.inputs[1]]
    node = Builder(model, norm).add(NAME, inputs, like=total, outputs=4, domain=_MICROSOFT)
    node.attributes["epsilon"] = ir.AttrFloat32("epsilon", norm.attributes.get_float("epsilon", 1e-5))
    for unused in node.outputs[1:3]:
        unused.name = ""
    old = norm.outputs[0]
    take_over(old, node.outputs[0])
    drop_steps([old])
    if total.uses() or total.is_graph_output():
        take_over(total, node.outputs[3])
    else:
        node.outputs[3].name = ""
    drop_steps([total])
