"""converters/products/choices.py: routing by sigmoids, corrections and groups, beside shared experts."""

from __future__ import annotations

import importlib
import logging
import warnings
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import mxort
from mxort.converters import functions
from same_products import expressed, operators, run

WIDTH = 64
EXPERTS = {
    "n_routed_experts": 8,
    "num_local_experts": 8,
    "n_group": 4,
    "topk_group": 2,
    "n_shared_experts": 1,
}
BLOCKS = {
    "DeepseekV3MoE": {**EXPERTS, "routed_scaling_factor": 2.5},
    "DeepseekV2Moe": {**EXPERTS, "routed_scaling_factor": 2.0, "topk_method": "group_limited_greedy"},
    "Qwen2MoeSparseMoeBlock": {"num_experts": 8, "shared_expert_intermediate_size": WIDTH},
}
"""transformers' module, and what its configuration says."""
OTHER_CHOICE = ("DeepseekV3MoE", "DeepseekV2Moe")


def made(name: str, settings: dict[str, object]) -> torch.nn.Module:
    """Random weights of about 1 / 10, corrections of the scores too."""
    prefix, folder = {
        "DeepseekV3MoE": ("DeepseekV3", "deepseek_v3"),
        "DeepseekV2Moe": ("DeepseekV2", "deepseek_v2"),
        "Qwen2MoeSparseMoeBlock": ("Qwen2Moe", "qwen2_moe"),
    }[name]
    module = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
    kind = getattr(module, f"{prefix}Config")
    sizes = {"hidden_size": WIDTH, "moe_intermediate_size": WIDTH, "intermediate_size": WIDTH}
    config = kind(**sizes, num_experts_per_tok=2, **settings)
    config._experts_implementation = "batched_mm"
    block = getattr(module, name)(config).eval()
    torch.manual_seed(0)
    for tensor in [*block.parameters(), *block.buffers()]:
        torch.nn.init.normal_(tensor, std=0.1)
    return block


@cache
def exported(name: str) -> tuple[onnx.ModelProto, np.ndarray, np.ndarray]:
    """(the module as torch.onnx writes it, rows, what transformers makes of them)."""
    block = made(name, BLOCKS[name])
    x = torch.randn(1, 12, WIDTH)
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dims = ({1: torch.export.Dim("n", min=2, max=100)},)
        program = torch.onnx.export(block, (x,), dynamo=True, dynamic_shapes=dims, verbose=False)
    logging.disable(logging.NOTSET)
    with torch.no_grad():
        return program.model_proto, x.numpy(), block(x).numpy()


@pytest.fixture(scope="module", params=BLOCKS)
def block(request):
    return request.param, *exported(request.param)


def feeds(proto: onnx.ModelProto, x: np.ndarray) -> dict[str, np.ndarray]:
    return {proto.graph.input[0].name: x}


def relative(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def test_the_same_in_float(block):
    """onnxruntime's MoE beside transformers, of this length and another."""
    name, proto, x, expected = block
    floats, reasons = expressed(proto)
    assert operators(floats).count("MoE") == 1 and not reasons
    assert ("Log" in operators(floats)) == (name in OTHER_CHOICE)
    # as in test_importing.py: models that differ in the order of float sums; log and exp of weights from e^-7 to 1
    # add 7 roundings to each
    assert relative(run(floats, feeds(proto, x))[0], expected) < 2e-5
    other = np.random.default_rng(4).standard_normal((1, 31, WIDTH), dtype=np.float32)
    got, want = (run(m, feeds(proto, other))[0] for m in (floats, proto))
    assert relative(got, want) < 2e-5


def test_converted(block):
    name, proto, x, expected = block
    report = mxort.convert(proto, min_elements=0, accuracy_level=1)
    assert [n.op_type for n in report.model.graph.node].count(functions.EXPERTS) == 1
    kinds = [site.op_type for site in report.converted]
    shared = 4 if name.startswith("Qwen2") else 3  # with a gate of one column
    assert kinds.count("MoE") == 2 and kinds.count("MatMul") + kinds.count("Gemm") == shared
    assert sum("router" in site.reason for site in report.skipped) == 1, [s.reason for s in report.skipped]
    library, function = (run(report.model, feeds(proto, x), of)[0] for of in (True, False))
    assert relative(library, function) < 2e-5
    assert relative(library, expected) < 4 * 10 ** (-18 / 20)  # as in test_batched_experts.py


def changed(op_type: str, becomes: str) -> onnx.ModelProto:
    """DeepSeek's, the operator on the way from the router to the weights another."""
    proto = onnx.ModelProto()
    proto.CopyFrom(exported("DeepseekV3MoE")[0])
    router = next(n for n in proto.graph.node if any(name.endswith("gate.weight") for name in n.input))
    of_router = [
        n
        for n in proto.graph.node
        if n.op_type == op_type and (op_type == "Div" or router.output[0] in n.input)
    ]
    for node in of_router:
        node.op_type = becomes
    assert len(of_router) == 1
    return proto


@pytest.mark.parametrize("weight", [-4.0, -1000.0])
def test_weights_that_are_all_zero(weight):
    """Sigmoids of far negative logits, not divided by their sum: the shared expert alone is left, as in the graph as it
    was."""
    proto, x = changed("Div", "Add"), np.abs(exported("DeepseekV3MoE")[1])
    (router,) = [t for t in proto.graph.initializer if t.name.endswith("gate.weight")]
    router.CopyFrom(numpy_helper.from_array(np.full((8, WIDTH), weight, np.float32), router.name))
    floats = expressed(proto)[0]
    got, want = (run(m, feeds(proto, x))[0] for m in (floats, proto))
    assert "MoE" in operators(floats) and relative(got, want) < 2e-5


@pytest.mark.parametrize(
    ("op_type", "becomes"), [("Sigmoid", "Tanh"), ("Sigmoid", "Identity"), ("Div", "Sub")]
)
def test_weights_that_may_be_negative_stay(op_type, becomes):
    assert "MoE" not in operators(expressed(changed(op_type, becomes))[0])
