"""Models of one node for the tests, with the operator's function in them."""

from __future__ import annotations

import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from mxort.converters import functions
from mxort.runtime.session import get_library_path
from oracle import Case


def model(
    case: Case,
    *,
    elem_type: int = TensorProto.FLOAT,
    opset: int = 21,
    dims: tuple[object, ...] = ("batch", "M"),
    activation: int | None = None,
    factor: Case | None = None,
    **attributes: object,
) -> onnx.ModelProto:
    """A [*dims, K] -> Y. `attributes` replaces or (None) removes attributes of the node, or overrides inputs by name.

    bfloat16 cannot be fed from Python, so A and Y are then float outside and cast inside. With an `activation` it is
    the operator that ends in one, with a `factor` (of equal K, N and settings) the gated one.
    """
    tensors = {"B": case.codes, "B_scale": case.scales, "column_scale": case.column_scale, "bias": case.bias}
    if factor is not None:
        second = (factor.codes, factor.scales, factor.column_scale, factor.bias)
        tensors |= dict(zip((f"factor_{name}" for name in tensors), second, strict=True))
    values = {
        "K": case.K,
        "N": case.N,
        "rotation": case.rotation,
        "activation_format": case.activation_format,
        "accuracy_level": case.accuracy_level,
    }
    operator, own = functions.operator_of(case.weight_format)
    values |= own
    made = [operator]
    if activation is not None:
        values["activation"] = activation
        form = functions.FUSED if factor is None else functions.GATED
        operator = form + operator.removeprefix(functions.MATMUL)
        made.append(operator)
    for key, value in attributes.items():
        (tensors if key in tensors else values)[key] = value
    values = {k: v for k, v in values.items() if v is not None}
    outside = TensorProto.FLOAT if elem_type == TensorProto.BFLOAT16 else elem_type
    nodes = [helper.make_node(operator, ["A_in", *tensors], ["Y_out"], name="node", domain="mxort", **values)]
    nodes.insert(0, helper.make_node("Cast", ["A"], ["A_in"], to=elem_type))
    nodes.append(helper.make_node("Cast", ["Y_out"], ["Y"], to=outside))
    graph = helper.make_graph(
        nodes,
        "one_node",
        [helper.make_tensor_value_info("A", outside, [*dims, case.K])],
        [helper.make_tensor_value_info("Y", outside, [None] * (len(dims) + 1))],
        [numpy_helper.from_array(v, k) for k, v in tensors.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("mxort", 1)]
    protos = [functions.function(name, opset) for name in made]
    return helper.make_model(graph, opset_imports=opsets, functions=protos, ir_version=10)


def session(
    proto: onnx.ModelProto, *, library: bool = True, threads: int = 1, optimized: str = ""
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.optimized_model_filepath = optimized
    if library:
        options.register_custom_ops_library(get_library_path())
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
