"""Round to nearest against the formats' readable truth."""

from __future__ import annotations

import numpy as np
import pytest

from mxort.formats import E2M1, dequantize_mxfp4, pack_nibbles, to_blocks
from mxort.quantize import QuantizedWeight, Settings, dequantize, squared_error
from mxort.quantize.rtn import STEPS_PER_OCTAVE, quantize
from mxort.scales import SCALE_RULES, quantize_blocks


def rows(n=48, k=256, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, k)) * rng.lognormal(0, 2, (n, 1))).astype(np.float32)


@pytest.mark.parametrize("rule", SCALE_RULES)
def test_agrees_with_numpy(rule):
    w = rows()
    got = quantize(w, Settings(rule))
    codes, scales = quantize_blocks(to_blocks(w), E2M1, rule)
    np.testing.assert_array_equal(got.codes, pack_nibbles(codes).reshape(len(w), -1))
    np.testing.assert_array_equal(got.scales, scales)
    np.testing.assert_array_equal(got.column_scale, np.ones(len(w), np.float32))
    assert (got.codes.dtype, got.scales.dtype, got.column_scale.dtype) == (np.uint8, np.uint8, np.float32)


@pytest.mark.parametrize("multiplier", [False, True])
def test_rows_are_independent(multiplier):
    """The promise that lets weights be quantised in chunks."""
    w, settings = rows(), Settings(column_multiplier=multiplier)
    whole, part = quantize(w, settings), quantize(np.ascontiguousarray(w[7:19]), settings)
    for name in ("codes", "scales", "column_scale"):
        np.testing.assert_array_equal(getattr(whole, name)[7:19], getattr(part, name))


def test_column_multiplier_is_the_best_of_its_steps():
    w = rows(n=24)
    got = quantize(w, Settings(column_multiplier=True))
    candidates = []
    for step in range(STEPS_PER_OCTAVE):
        multiplier = np.float32(2 ** (step / STEPS_PER_OCTAVE))
        codes, scales = quantize_blocks(to_blocks(w / multiplier), E2M1, "mse")
        packed = pack_nibbles(codes).reshape(len(w), -1)
        error = dequantize_mxfp4(packed, scales, w.shape[1]) * np.float64(multiplier) - w
        candidates.append((error**2).sum(axis=1))
    error = (
        dequantize_mxfp4(got.codes, got.scales, w.shape[1]).astype(np.float64) * got.column_scale[:, None] - w
    )
    np.testing.assert_allclose((error**2).sum(axis=1), np.min(candidates, axis=0), rtol=1e-5)
    steps = np.log2(got.column_scale) * STEPS_PER_OCTAVE
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-5)
    assert len(np.unique(np.round(steps))) > 3, "every row has the same multiplier: nothing was searched"


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # 6 * 2**127
def test_dequantize_agrees_with_the_formats():
    """All 256 bytes with all 256 scales."""
    codes = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    scales = np.tile(np.arange(256, dtype=np.uint8)[:, None], (1, 16))
    np.testing.assert_array_equal(dequantize(codes, scales), dequantize_mxfp4(codes, scales, 512))


def test_squared_error():
    w = rows(n=70, k=8192)  # more than one cached part
    quantized = quantize(w, Settings("even"))
    halved = QuantizedWeight(quantized.codes, quantized.scales, np.full(len(w), 0.5, np.float32))
    for q in (quantized, halved):
        exact = dequantize_mxfp4(q.codes, q.scales, w.shape[1]).astype(np.float64) * q.column_scale[:, None]
        np.testing.assert_allclose(squared_error(w, q), ((exact - w) ** 2).sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_finite(bad):
    w = rows()
    assert quantize(w, Settings()).finite
    w[3, 200] = bad
    assert not quantize(w, Settings()).finite
