"""Giving GroupQueryAttention nodes of com.microsoft this library's kernel: an operator of the same name and meaning.

Its function is the node that was there, so that without the library the file computes what it did. Nodes that use more
of the contract than the kernel knows are left alone.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx.helper
import onnx_ir as ir

from mxort.converters import functions
from mxort.converters.shapes import width

NAME = "GroupQueryAttention"
WINDOW, SINK = f"Window{NAME}", f"Sink{NAME}"
"""With a window; with a window or none and a sink: operators of their own, which what knows the first alone refuses."""

_MICROSOFT = "com.microsoft"
_INPUTS = ("query", "past_key", "past_value", "seqlens_k", "total_sequence_length", "cos_cache", "sin_cache")
_PLACES = (0, 3, 4, 5, 6, 7, 8)
"""Where the original has them; 1 and 2 are key and value where the three are not packed."""

_SINK_INPUT, _SINK_PLACE = "head_sink", 11
_INPUTS_OF = {NAME: _INPUTS, WINDOW: _INPUTS, SINK: (*_INPUTS, _SINK_INPUT)}
OPERATORS = tuple(_INPUTS_OF)

_OUTPUTS = ("output", "present_key", "present_value")
_KEPT = {"num_heads": None, "kv_num_heads": None, "scale": 0.0, "softcap": 0.0, "do_rotary": 0}
_KEPT |= {"rotary_interleaved": 0}
"""Attributes of both operators with their defaults; None: required."""

_WINDOW_SIZE, _NO_WINDOW = "local_window_size", -1
_SMOOTH = "smooth_softmax"  # a sink of 0

_UNUSED = {"qk_output": (0,)}
"""Attributes of the original alone, with the values that ask for nothing."""


FUSED = "fused"


@dataclass
class Fused:
    """How many nodes got the kernel, and why the others did not."""

    count: int = 0
    left: Counter[str] = field(default_factory=Counter)

    def counts(self) -> dict[str, int]:
        """By reason, the fused first; empty where there are no such nodes."""
        return {FUSED: self.count, **self.left} if self.count or self.left else {}


def fuse(model: ir.Model) -> Fused:
    """Replaces what nodes it can, in place."""
    result = Fused()
    used: set[str] = set()
    for node in list(model.graph.all_nodes()):
        if (node.domain, node.op_type) != (_MICROSOFT, NAME):
            continue
        if reason := _refusal(node):
            result.left[reason] += 1
        else:
            _name_head_size(node, model.ir_version)
            used.add(_replace(node))
            result.count += 1
    for name in sorted(used):
        add_function(model, function(model.opset_imports[""], name))
    return result


def add_function(model: ir.Model, proto: onnx.FunctionProto) -> None:
    """Gives ``model`` the function of an operator of ours that it now has."""
    definition = ir.serde.deserialize_function(proto)
    model.functions[definition.identifier()] = definition
    model.opset_imports.setdefault(functions.DOMAIN, functions.VERSION)


def _refusal(node: ir.Node) -> str:
    """Why a node keeps the kernel it has; "" if it does not."""
    inputs = [*node.inputs, *[None] * (_SINK_PLACE + 1 - len(node.inputs))]
    packed, separate = (
        inputs[1] is None and inputs[2] is None,
        inputs[1] is not None and inputs[2] is not None,
    )
    if not (packed or separate) or any(inputs[place] is None for place in _PLACES):
        return "an input is missing: a cache, the lengths, or the tables of a rotation"
    if any(value is not None for i, value in enumerate(inputs) if i > max(_PLACES) and i != _SINK_PLACE):
        return "it has an input beyond sin_cache (positions, a bias, scales)"
    cache = inputs[3]
    if cache is None or cache.dtype != ir.DataType.FLOAT:
        return "its cache is not float, or of unknown type"
    if sum(bool(value.name) for value in node.outputs) != len(_OUTPUTS):
        return "it has not the three outputs"
    if inputs[_SINK_PLACE] is not None and _is_smooth(node):
        return "it has two sinks"
    for name, attribute in node.attributes.items():
        if name not in (*_KEPT, _WINDOW_SIZE, _SMOOTH) and attribute.value not in _UNUSED.get(name, ()):
            return f"attribute {name}"
    return "" if node.attributes.get_int("do_rotary", 0) else "it does not rotate"


def _is_smooth(node: ir.Node) -> bool:
    return node.attributes.get_int(_SMOOTH, 0) > 0


def _operator(node: ir.Node) -> str:
    """What a node of com.microsoft becomes."""
    if _is_smooth(node) or (len(node.inputs) > _SINK_PLACE and node.inputs[_SINK_PLACE] is not None):
        return SINK
    return WINDOW if node.attributes.get_int(_WINDOW_SIZE, _NO_WINDOW) > 0 else NAME


def head_size(node: ir.Node, ir_version: int) -> int:
    """From a cache's shape, else from the width of queries, keys and values; 0 where neither is known.

    ``node`` has the packed ones as its first input, or the queries, with keys as its second.
    """
    separate = node.domain == _MICROSOFT and node.inputs[1] is not None
    cache = node.inputs[1 if node.domain == functions.DOMAIN else 3]
    if cache is not None and cache.shape is not None and isinstance(size := cache.shape[-1], int):
        return size
    heads = node.attributes.get_int("num_heads")
    if not separate:
        heads += 2 * node.attributes.get_int("kv_num_heads")
    return width(node.inputs[0], ir_version) // heads


def _name_head_size(node: ir.Node, ir_version: int) -> None:
    """Writes the size into the shapes of caches that have a name there, as genai's builder gives them: servers which
    allocate caches by these shapes (onnx-genai-server) need it."""
    if not (size := head_size(node, ir_version)):
        return
    for value in (*node.inputs[3:5], *node.outputs[1:3]):
        if value is None or value.shape is None or len(value.shape) != 4 or isinstance(value.shape[3], int):
            continue
        value.shape = ir.Shape([*value.shape[:3], size])


def _replace(node: ir.Node) -> str:
    """-> the operator that is there now."""
    graph = node.graph
    assert graph is not None
    new: list[ir.Node] = []
    query = node.inputs[0]
    if node.inputs[1] is not None:
        new.append(ir.node("Concat", node.inputs[:3], {"axis": -1}, name=f"{node.name}_packed"))
        query = new[0].outputs[0]
        query.name = f"{node.outputs[0].name}_packed"
    operator = _operator(node)
    inputs = [query, *(node.inputs[place] for place in _PLACES[1:])]
    kept = [attribute for name, attribute in node.attributes.items() if name in _KEPT]
    if (window := node.attributes.get_int(_WINDOW_SIZE, _NO_WINDOW)) > 0:
        kept.append(ir.AttrInt64(_WINDOW_SIZE, window))
    if operator == SINK and _is_smooth(node):
        zeros = np.zeros(node.attributes.get_int("num_heads"), np.float32)
        new.append(ir.node("Constant", [], {"value": ir.tensor(zeros)}))
        new[-1].outputs[0].name = f"{node.outputs[0].name}_sink"
        inputs.append(new[-1].outputs[0])
    elif operator == SINK:
        inputs.append(node.inputs[_SINK_PLACE])
    new.append(
        ir.Node(
            functions.DOMAIN,
            operator,
            inputs,
            kept,
            num_outputs=len(_OUTPUTS),
            name=node.name,
            doc_string=node.doc_string,
            metadata_props=dict(node.metadata_props),
        )
    )
    for old, value in zip(node.outputs, new[-1].outputs, strict=False):
        value.name, value.type, value.shape = old.name, old.type, old.shape
    ir.convenience.replace_nodes_and_values(
        graph, node, [node], new, node.outputs[: len(_OUTPUTS)], new[-1].outputs
    )
    return operator


def function(opset: int, operator: str = NAME) -> onnx.FunctionProto:
    """An operator of :data:`OPERATORS` as the node of com.microsoft that it stands for."""
    inputs = _INPUTS_OF[operator]
    names = dict(zip((*_PLACES, _SINK_PLACE), inputs, strict=False))
    attributes = _KEPT if operator == NAME else {**_KEPT, _WINDOW_SIZE: _NO_WINDOW}
    places = [names.get(place, "") for place in range(max(names) + 1)]
    original = onnx.helper.make_node(NAME, places, _OUTPUTS, domain=_MICROSOFT)
    for name, default in attributes.items():
        kind = onnx.AttributeProto.FLOAT if isinstance(default, float) else onnx.AttributeProto.INT
        original.attribute.append(onnx.AttributeProto(name=name, ref_attr_name=name, type=kind))
    return onnx.helper.make_function(
        functions.DOMAIN,
        operator,
        inputs,
        _OUTPUTS,
        [original],
        [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid(_MICROSOFT, 1)],
        [name for name, default in attributes.items() if default is None],
        [onnx.helper.make_attribute(name, value) for name, value in attributes.items() if value is not None],
    )
