"""converters/products/einsum.py: onnxruntime's Einsum is the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

import mxort
from same_products import assert_same, exact, model, sum_bound

SIZES = {"a": 2, "b": 3, "c": 8, "d": 16, "e": 32, "f": 4, "g": 5}


def einsum(equation, x="x", w="w"):
    return helper.make_node("Einsum", [x, w], ["y"], name="e", equation=equation)


def random_equation(seed):
    """Letters of the value, of the constant and of the result, each in any order."""
    rng = np.random.default_rng(seed)
    letters = list(rng.permutation(list("abcdfg")))
    summed = ["e", *letters[: rng.integers(0, 2)]]
    rest = [a for a in letters if a not in summed]
    rows, columns = rest[: rng.integers(0, 3)], rest[-rng.integers(1, 3) :]
    x, w, y = (list(rng.permutation(part)) for part in (summed + rows, summed + columns, rows + columns))
    return "".join(x), "".join(w), "".join(y)


@pytest.mark.parametrize("seed", range(60))
def test_any_product(seed):
    rng = np.random.default_rng(seed)
    x_axes, w_axes, y_axes = random_equation(seed)
    x = rng.standard_normal([SIZES[a] for a in x_axes], dtype=np.float32)
    w = exact(rng, *(SIZES[a] for a in w_axes))
    k = int(np.prod([SIZES[a] for a in w_axes if a in x_axes]))
    first = bool(seed % 2)
    equation = f"{w_axes},{x_axes}->{y_axes}" if first else f"{x_axes}, {w_axes} -> {y_axes}"
    proto = model([einsum(equation, *("wx" if first else "xw"))], {"x": x}, {"w": w}, static=bool(seed % 3))
    assert_same(proto, {"x": x}, sum_bound(k, x, w), gone="Einsum")


ABBREVIATED = [
    ("...k,kn", (2, 3, 64), (64, 32)),
    ("...k,kn->...n", (64,), (64, 32)),
    ("i...k,kn->n...i", (2, 3, 4, 64), (64, 32)),
    ("zk,ka", (3, 64), (64, 32)),
    ("k...,kn->...n", (64, 3), (64, 32)),
]


@pytest.mark.parametrize(("equation", "x_shape", "w_shape"), ABBREVIATED)
def test_ellipsis_and_no_result(equation, x_shape, w_shape):
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal(x_shape, dtype=np.float32), exact(rng, *w_shape)
    assert_same(model([einsum(equation)], {"x": x}, {"w": w}), {"x": x}, sum_bound(64, x, w), gone="Einsum")


REASONS = {
    "bk,bkn->bn": ((3, 64), (3, 64, 32), "Einsum 'bk,bkn->bn' is a batch of products"),
    "bk,kn->b": ((3, 64), (64, 32), "Einsum 'bk,kn->b' is no product"),
    "kk,kn->n": ((64, 64), (64, 32), "Einsum 'kk,kn->n' takes a diagonal, which no product does"),
}


@pytest.mark.parametrize("equation", REASONS)
def test_reasons(equation):
    x_shape, w_shape, reason = REASONS[equation]
    w = exact(np.random.default_rng(2), *w_shape)
    proto = model([einsum(equation)], {"x": np.ones(x_shape, np.float32)}, {"w": w})
    (site,) = mxort.convert(proto, min_elements=0).skipped
    assert (site.reason, site.original_bytes) == (reason, w.nbytes)
