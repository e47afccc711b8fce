"""Models of one MoEMXFP4 for the tests, with the operator's function in them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from moe_oracle import Experts
from mxort.converters import functions


def model(
    experts: Experts,
    *,
    elem_type: int = TensorProto.FLOAT,
    opset: int = 21,
    dims: tuple[object, ...] = ("rows",),
    flat_router: bool = False,
    **overrides: object,
) -> onnx.ModelProto:
    """X [*dims, D], router [*dims, E] (or [rows, E], `flat_router`) -> Y. `overrides` replaces or (None) removes
    attributes of the node, or overrides inputs by name.

    bfloat16 cannot be fed from Python, so X, router and Y are then float outside and cast inside.
    """
    tensors, values = dict(experts.inputs), dict(experts.attributes)
    for key, value in overrides.items():
        (tensors if key in tensors else values)[key] = value
    values = {key: value for key, value in values.items() if value is not None}
    outside = TensorProto.FLOAT if elem_type == TensorProto.BFLOAT16 else elem_type
    operator = functions.EXPERTS
    nodes = [
        helper.make_node("Cast", ["X"], ["X_in"], to=elem_type),
        helper.make_node("Cast", ["router"], ["router_in"], to=elem_type),
        helper.make_node(
            operator, ["X_in", "router_in", *tensors], ["Y_out"], name="node", domain="mxort", **values
        ),
        helper.make_node("Cast", ["Y_out"], ["Y"], to=outside),
    ]
    d, number = experts.down[0].N, len(experts.down)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "one_node",
        [
            value("X", outside, [*dims, d]),
            value("router", outside, [*(["all_rows"] if flat_router else dims), number]),
        ],
        [value("Y", outside, [None] * (len(dims) + 1))],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in tensors.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("mxort", 1)]
    made = [functions.function(operator, opset)]
    return helper.make_model(graph, opset_imports=opsets, functions=made, ir_version=10)
