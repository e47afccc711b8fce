"""converters/products/batched_experts.py: what torch exports of transformers' experts is one operator afterwards."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import onnx
import pytest
import torch

import checkpoints
import mxort
from mxort.converters import functions
from same_products import expressed, operators, run

TOKENS = np.random.default_rng(3).integers(3, checkpoints.VOCABULARY, (1, 12))
WITH_EXPERTS = {
    "mixtral": {},
    "qwen3_moe, weights as they are": {"norm_topk_prob": False},
    "gpt_oss": {},
}
"""Architecture, and what its configuration says of the weights of a choice."""


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model(input_ids=tokens, use_cache=False).logits


@pytest.fixture(scope="module", params=WITH_EXPERTS)
def exported(request, tmp_path_factory):
    """(torch.onnx's model of a tiny transformers' one in its only form of experts that torch exports, its logits)."""
    folder = tmp_path_factory.mktemp("experts")
    architecture = request.param.split(",")[0]
    tiny = checkpoints.make(folder / "checkpoint", architecture, **WITH_EXPERTS[request.param])
    tiny.model.set_experts_implementation("batched_mm")
    tiny.model.config._attn_implementation = "eager"
    expected = tiny.logits(TOKENS)
    dims = ({1: torch.export.Dim("n", min=2, max=100)},)
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Logits(tiny.model), (torch.from_numpy(TOKENS),), dynamo=True, dynamic_shapes=dims, verbose=False
        )
    logging.disable(logging.NOTSET)
    program.save(folder / "model.onnx")
    return onnx.load(folder / "model.onnx"), expected


def feeds(proto):
    return {proto.graph.input[0].name: TOKENS}


def with_inputs_kept(proto):
    """The model with X of its MoE nodes as outputs too. onnxruntime before 1.32 computes MoE in the place of X where
    nothing else reads that, and where weights are not normalised begins with zeros there."""
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    for node in proto.graph.node:
        if node.op_type == "MoE":
            changed.graph.output.append(onnx.helper.make_empty_tensor_value_info(node.input[0]))
    return changed


def picks(proto):
    """How often the graph picks from constants of three axes."""
    stacks = {t.name for t in proto.graph.initializer if len(t.dims) == 3}
    return sum(n.op_type == "GatherND" and n.input[0] in stacks for n in proto.graph.node)


def test_the_same_in_float(exported):
    """onnxruntime's MoE beside transformers: no stack is picked from any more, and nothing is left of that."""
    proto, expected = exported
    floats, reasons = expressed(proto)
    kinds = operators(floats)
    assert kinds.count("MoE") == 2 and "TopK" not in kinds
    assert picks(proto) == 4 and picks(floats) == 0
    assert not [reason for reason in reasons if "expert" in reason]
    kept = with_inputs_kept(floats)
    got = run(kept, feeds(proto))[0]
    # as in test_importing.py: models that differ in the order of float sums
    assert np.linalg.norm(got - expected) < 2e-5 * np.linalg.norm(expected)
    other = np.random.default_rng(4).integers(3, checkpoints.VOCABULARY, (1, 31))  # of another length
    got, want = (run(m, {proto.graph.input[0].name: other})[0] for m in (kept, proto))
    assert np.linalg.norm(got - want) < 2e-5 * np.linalg.norm(want)


def test_converted(exported):
    proto, expected = exported
    report = mxort.convert(proto, min_elements=0, accuracy_level=1)
    stacks = [site for site in report.converted if site.op_type == "MoE"]
    assert len(stacks) == 4 and all(18 < site.sqnr_db < 25 for site in stacks)
    assert [n.op_type for n in report.model.graph.node].count(functions.EXPERTS) == 2
    assert picks(report.model) == 0
    # Each of the four stacks changes its products by 10^(-18/20) at most, and the residual's sum by less.
    bound = 4 * 10 ** (-18 / 20)
    for library in (True, False):
        (got,) = run(report.model, feeds(proto), library)
        assert np.linalg.norm(got - expected) < bound * np.linalg.norm(expected)


def test_excluded_experts_stay(exported):
    """Where they are not to be converted nothing changes."""
    proto, _ = exported
    floats = expressed(proto, op_types=("MatMul", "Gemm"))[0]
    assert "MoE" not in operators(floats) and picks(floats) == picks(proto) == 4


CHANGED = {
    "weights of another kind": lambda n: n.op_type in ("Div", "Softmax") and setattr(n, "op_type", "Tanh"),
    "another activation": lambda n: n.op_type == "Sigmoid" and setattr(n, "op_type", "Tanh"),
    "another sum": lambda n: n.op_type == "ReduceSum" and setattr(n, "op_type", "ReduceMax"),
}


@pytest.mark.parametrize("what", CHANGED)
def test_other_graphs_stay(what, exported):
    proto = onnx.ModelProto()
    proto.CopyFrom(exported[0])
    for node in proto.graph.node:
        CHANGED[what](node)
    floats = expressed(proto)[0]
    assert "MoE" not in operators(floats) and picks(floats) == picks(proto) == 4


def test_another_choice_stays_before_them(exported):
    """The least likely experts, by the same weights: as the graph computes it that is changed so."""
    proto = onnx.ModelProto()
    proto.CopyFrom(exported[0])
    for node in proto.graph.node:
        if node.op_type == "TopK":
            next(a for a in node.attribute if a.name == "largest").i = 0
    floats = expressed(proto)[0]
    kinds = operators(floats)
    assert kinds.count("MoE") == kinds.count("TopK") == 2 and picks(floats) == 0
    got, want = (run(m, feeds(proto))[0] for m in (floats, proto))
    assert np.linalg.norm(got - want) < 2e-5 * np.linalg.norm(want)
