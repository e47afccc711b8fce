"""Whole weights: the same result in any number of chunks, with an honest SQNR."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mxort.converters.functions import ROTATIONS
from mxort.formats import dequantize_mxfp4, hadamard_rotate, packed_bytes
from mxort.quantize import (
    Settings,
    chunks,
    fitting_rotation,
    quantize_weight,
    rtn,
    sums_of_rows,
)


def weight(n, k, seed=1):
    return np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)


def reader(w):
    width = -(-w.shape[1] // 32) * 32
    padded = np.pad(w, ((0, 0), (0, width - w.shape[1])))
    return lambda start, stop: np.ascontiguousarray(padded[start:stop])


@pytest.mark.parametrize("rotation", [1, 32])
@pytest.mark.parametrize("chunk", [1, 100, 10_000, 1 << 24])
def test_chunks_change_nothing(monkeypatch, chunk, rotation):
    w = weight(37, 100)
    expected, sqnr = quantize_weight(reader(w), 37, 100, rtn.quantize, Settings(), rotation)
    monkeypatch.setattr(chunks, "_CHUNK_BYTES", chunk)
    got, again = quantize_weight(reader(w), 37, 100, rtn.quantize, Settings(), rotation)
    for name in ("codes", "scales", "column_scale"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
    assert again == pytest.approx(sqnr, abs=1e-6)
    assert got.codes.nbytes + got.scales.nbytes == packed_bytes(37, 100)


@pytest.mark.parametrize("rotation", [r for r in ROTATIONS if r <= 64])
@pytest.mark.parametrize("k", [64, 128, 192])
def test_sqnr_is_that_of_the_weight(k, rotation):
    """Measured after the rotation, which is orthogonal: rotating back gives the same number."""
    w = weight(16, k)
    q, sqnr = quantize_weight(reader(w), 16, k, rtn.quantize, Settings(), rotation)
    restored = hadamard_rotate(dequantize_mxfp4(q.codes, q.scales, k), rotation)
    exact = w.astype(np.float64)
    assert sqnr == pytest.approx(
        10 * math.log10((exact**2).sum() / ((restored - exact) ** 2).sum()), abs=1e-3
    )
    assert 18 < sqnr < 20, "MXFP4 of normal numbers"


def test_sqnr_of_special_weights():
    exact = np.full((4, 64), 1.5, np.float32)
    assert quantize_weight(reader(exact), 4, 64, rtn.quantize, Settings(), 1)[1] == math.inf
    zero = np.zeros((4, 64), np.float32)
    assert quantize_weight(reader(zero), 4, 64, rtn.quantize, Settings(), 1)[1] == math.inf


def test_overflow_in_the_rotation_is_not_finite():
    """32 numbers near the end of float32 add up to infinity, which no code can say."""
    w = np.full((4, 64), 3e38, np.float32)
    assert quantize_weight(reader(w), 4, 64, rtn.quantize, Settings(), 1)[0].finite
    assert not quantize_weight(reader(w), 4, 64, rtn.quantize, Settings(), 32)[0].finite


@pytest.mark.parametrize(
    ("k", "wanted", "expected"),
    [(128, 128, 128), (96, 128, 32), (40, 64, 64), (64, 32, 32), (1, 64, 32), (33, 1, 1)],
)
def test_fitting_rotation(k, wanted, expected):
    assert fitting_rotation(k, wanted, ROTATIONS) == expected


@pytest.mark.parametrize("multiplier", [False, True])
@pytest.mark.parametrize("exponent", [-118, -80, -60, 60, 63, 80, 118])
def test_weights_far_from_one_lose_what_they_lose_at_one(exponent, multiplier):
    """A power of two moves the scales alone, also where float32 has no room for the squares."""
    w, settings = weight(20, 96), Settings(column_multiplier=multiplier)
    near, sqnr = quantize_weight(reader(w), 20, 96, rtn.quantize, settings, 32)
    far, same = quantize_weight(reader(np.ldexp(w, exponent)), 20, 96, rtn.quantize, settings, 32)
    assert same == pytest.approx(sqnr, abs=1e-9)
    np.testing.assert_array_equal(far.codes, near.codes)
    np.testing.assert_array_equal(far.scales, near.scales + np.int64(exponent))
    np.testing.assert_array_equal(far.column_scale, near.column_scale)


def test_rows_of_any_magnitude_in_one_weight():
    """What is lost is what the largest row loses, in float64."""
    w = np.ldexp(weight(3, 64), np.array([[-100], [0], [100]]))
    q, sqnr = quantize_weight(reader(w), 3, 64, rtn.quantize, Settings(), 1)
    exact = w.astype(np.float64)
    error = dequantize_mxfp4(q.codes, q.scales, 64).astype(np.float64) - exact
    assert sqnr == pytest.approx(10 * math.log10((exact**2).sum() / (error**2).sum()), abs=1e-3)
    np.testing.assert_allclose(sums_of_rows(w, q)[0], (error**2).sum(axis=1), rtol=64 * 2.0**-24)


def test_smaller_than_any_scale_is_lost_whole():
    w = np.full((2, 32), 2.0**-140, np.float32)
    assert quantize_weight(reader(w), 2, 32, rtn.quantize, Settings(), 1)[1] == 0.0
