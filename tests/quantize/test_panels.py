"""The steps along a panel of inputs that are native (ep/kernels/solve.h), against NumPy. Without torch."""

from __future__ import annotations

import numpy as np
import pytest

from mxort import _native
from mxort.formats import WEIGHT_FORMATS


def steps_in_numpy(kind, matrix, panel, scale, values, fmt):
    """The panels of ep/kernels/solve.h in NumPy, float32 rounded after every operation -> (panel, values, moves)."""
    panel, values, moves = panel.copy(), values.copy(), np.zeros_like(panel)
    for i in range(len(panel)):
        if kind == "gptq":
            values[i] = fmt.decode(fmt.encode(panel[i] / scale[i]))
            moves[i] = (panel[i] - values[i] * scale[i]) / matrix[i, i]
            later = slice(i + 1, None)
        else:
            old = values[i] * scale[i]
            values[i] = fmt.decode(fmt.encode((old + panel[i] / matrix[i, i]) / scale[i]))
            moves[i] = values[i] * scale[i] - old
            later = slice(None)
        panel[later] -= matrix[i, later, None] * moves[i]
    return panel, values, moves


@pytest.mark.parametrize("name", WEIGHT_FORMATS)
@pytest.mark.parametrize("kind", ["gptq", "descend"])
@pytest.mark.parametrize("shape", [(1, 1), (32, 0), (5, 31), (128, 33), (96, 200)])
def test_native_panels_are_those_of_numpy(name, kind, shape):
    """Bit for bit, with any number of threads, dead inputs (a row of zeros but for the diagonal) included."""
    rng, fmt = np.random.default_rng(7), WEIGHT_FORMATS[name]
    inputs = shape[0]
    x = rng.standard_normal((inputs + 5, inputs))
    x[:, ::7] = 0
    hessian = x.T @ x / len(x) + 0.01 * np.eye(inputs)
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    matrix = np.ascontiguousarray(upper if kind == "gptq" else hessian, np.float32)
    panel = rng.standard_normal(shape).astype(np.float32)
    scale = (rng.lognormal(0, 0.3, shape) / 4).astype(np.float32)
    values = fmt.decode(fmt.encode(panel / scale))
    want = steps_in_numpy(kind, matrix, panel, scale, values, fmt)
    for threads in (1, 2, 8):
        if kind == "gptq":
            got, expected = _native.gptq_panel(matrix, panel, scale, name, threads), want[1:]
        else:
            got, expected = _native.descend_panel(matrix, panel, scale, values, name, threads), want
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_native_panels_refuse_other_shapes():
    square, panel = np.eye(4, dtype=np.float32), np.ones((4, 3), np.float32)
    for matrix, wanted, scale in (
        (square, panel, panel[:3]),
        (square[:3], panel, panel),
        (square, panel[0], panel[0]),
        (np.eye(129, dtype=np.float32), np.ones((129, 1), np.float32), np.ones((129, 1), np.float32)),
    ):
        with pytest.raises(ValueError, match="expected panel, scale and values of one shape"):
            _native.gptq_panel(matrix, wanted, scale)
