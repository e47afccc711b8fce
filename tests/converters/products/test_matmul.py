"""converters/products/matmul.py: onnxruntime's MatMul is the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

import mxort
from same_products import assert_same, exact, expressed, model, run, sum_bound

K, M, N = 64, 40, 48


def product(left, right):
    return helper.make_node("MatMul", [left, right], ["y"], name="p")


@pytest.mark.parametrize("outer", [(), (3,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("static", [False, True])
def test_a_constant_on_the_left(outer, static):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((*outer, K, N), dtype=np.float32), exact(rng, M, K)
    proto = model([product("w", "x")], {"x": x}, {"w": w}, static=static)
    report = assert_same(proto, {"x": x}, sum_bound(K, x, w), gone="none")
    assert [(s.node, s.op_type, s.K, s.N) for s in report.converted] == [("p", "MatMul", K, M)]


def test_a_constant_on_the_left_of_a_vector():
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal(K, dtype=np.float32), exact(rng, M, K)
    assert_same(model([product("w", "x")], {"x": x}, {"w": w}), {"x": x}, sum_bound(K, x, w), gone="none")


SHAPES = [((3, 5, K), (3,)), ((1, 5, K), (3,)), ((5, K), (3,)), ((2, 3, 5, K), (3,)), ((2, 3, 5, K), (1, 3))]
SHAPES += [((2, 1, 5, K), (3,)), ((2, 3, 5, K), (1, 1, 3)[1:])]


@pytest.mark.parametrize(("shape", "batch"), SHAPES)
def test_a_batch_of_constants(shape, batch):
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal(shape, dtype=np.float32), exact(rng, *batch, K, N)
    report = assert_same(
        model([product("x", "w")], {"x": x}, {"w": w}), {"x": x}, sum_bound(K, x, w), gone="none", converted=3
    )
    assert [site.node for site in report.converted] == ["p/0", "p/1", "p/2"]
    assert sum(site.original_bytes for site in report.converted) == w.nbytes


REASONS = {
    "several axes": ((2, 3, 5, K), (2, 3, K, N), True, "is a batch along several axes"),
    "many": ((17, 5, K), (17, K, N), True, "is a batch of more than 16"),
    "unknown": ((3, 5, K), (3, K, N), False, "is a batch, and that of A is unknown"),
    "more axes": ((3, 5, K), (1, 3, K, N), True, "adds dimensions to A of rank 3"),
}


@pytest.mark.parametrize(("shape", "weight", "static", "reason"), REASONS.values(), ids=REASONS)
def test_reasons(shape, weight, static, reason):
    x, w = np.ones(shape, np.float32), exact(np.random.default_rng(3), *weight)
    proto = model([product("x", "w")], {"x": x}, {"w": w}, static=static)
    (site,) = mxort.convert(proto, min_elements=0).skipped
    assert site.reason == f"weight of shape {list(weight)} {reason}"
    assert site.original_bytes == w.nbytes


def test_a_product_that_a_recipe_leaves_is_not_touched():
    x, w = np.ones((3, 5, K), np.float32), exact(np.random.default_rng(4), 3, K, N)
    proto = model([product("x", "w")], {"x": x}, {"w": w})
    made, reasons = expressed(proto, name_reason=lambda name: "no")
    assert reasons == ["no"]
    assert [node.op_type for node in made.graph.node] == ["MatMul"]
    np.testing.assert_array_equal(run(made, {"x": x})[0], run(proto, {"x": x})[0])
