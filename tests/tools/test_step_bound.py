"""The bound of a step against figures worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tools import step_bound


def test_llama_decodes_by_its_bytes() -> None:
    """Weights of a layer: 4096 x (6144 + 4096 + 3 x 14336) in 4.25 bits; the head 4096 x 128256 in 8.25; a cache of
    32 x 2 x 8 x 128 x 4096 float16. Seven launches a layer (four products, two of which
    normalise, and three of attention), and the embedding, a norm and the head, prepared apart."""
    result = step_bound.bound(step_bound.works_of(step_bound.SHAPES["Llama-3.1-8B"], 1, 4096, "float16"))
    weights = 32 * 4096 * (6144 + 4096 + 3 * 14336) * 4.25 / 8 + 4096 * 128256 * 8.25 / 8
    assert result["bytes"] == pytest.approx(weights + 32 * 2 * 8 * 128 * 4096 * 2)
    assert result["bound_by"] == "bytes"
    assert result["launches"] == 32 * (1 + 3 + 1 + 1 + 1) + 1 + 1 + 2
    assert result["bound_ms"] == pytest.approx(result["bytes"] / 8e9)


def test_a_prompt_is_bound_by_matrix_instructions() -> None:
    """28.7 TFLOP of 2,048 tokens at two FP6 terms and AMD's 10.07 PFLOP/s, attention apart."""
    result = step_bound.bound(step_bound.works_of(step_bound.SHAPES["Llama-3.1-8B"], 2048, 2048, "float16"))
    assert result["bound_by"] == "matrix instructions"
    products = 2 * 2048 * 32 * 4096 * (6144 + 4096 + 3 * 14336) * 2 / 10.07e15
    assert products < result["bound_ms"] / 1e3 < 1.3 * products


def test_experts_that_nobody_chose_are_not_read() -> None:
    for rows, of_a_layer in ((1, 4), (64, 7)):
        works = step_bound.works_of(step_bound.SHAPES["gpt-oss-20b"], rows, 4096, "float16")
        assert (
            sum(work.launches * work.count for work in works if work.operator == "MoEMXFP4")
            == 24 * of_a_layer
        )


def test_a_file(tmp_path, capsys) -> None:
    weight = numpy_helper.from_array(np.zeros((64, 96), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 96])],
        [weight],
    )
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    assert step_bound.main([str(tmp_path / "m.onnx"), "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out).values()
    assert (result["bytes"], result["launches"]) == (64 * 96 * 4, 3)
    assert step_bound.main([str(tmp_path / "absent.onnx")]) == 2
    assert "absent.onnx" in capsys.readouterr().err
