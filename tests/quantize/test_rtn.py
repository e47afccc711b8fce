"""Round to nearest against the formats' readable truth."""

from __future__ import annotations

import numpy as np
import pytest

from mxort import _native
from mxort.formats import E2M1, WEIGHT_FORMATS, dequantize_mxfp4, pack_codes, pack_nibbles, to_blocks
from mxort.formats import dequantize as dequantize_readably
from mxort.quantize import Settings, dequantize
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


def search(w, multipliers, rule, fmt):
    """The candidates in NumPy: for each multiplier (codes, scales, the sum of squared errors of each row)."""
    found = []
    for multiplier in np.float32(multipliers):
        codes, scales = quantize_blocks(to_blocks(w / multiplier), fmt, rule)
        packed = pack_codes(codes, fmt).reshape(len(w), scales.shape[1] * fmt.block_bytes)
        error = dequantize_readably(packed, scales, w.shape[1], fmt) * np.float64(multiplier) - w
        found.append((packed, scales, (error**2).sum(axis=1)))
    return found


@pytest.mark.parametrize("rule", SCALE_RULES)
@pytest.mark.parametrize("name", WEIGHT_FORMATS)
@pytest.mark.parametrize("shape", [(1, 1), (0, 64), (3, 0), (2, 33), (17, 96), (40, 1000)])
def test_search_is_that_of_numpy(name, rule, shape):
    """The codes are those of one candidate, bit for bit, and none has less error, by any number of threads.

    The block errors are sums in float32 (2**-21 of them), of rows whose quotients were rounded: 2**-24 of a number
    changes an error e by 2 e 2**-24 w, which Cauchy-Schwarz bounds over the row.
    """
    fmt, rng = WEIGHT_FORMATS[name], np.random.default_rng(3)
    w = (rng.standard_normal(shape) * 10.0 ** rng.integers(-4, 4, (shape[0], 1))).astype(np.float32)
    multipliers = [2.0 ** (step / 5) for step in range(5)]
    codes, scales, column_scale = _native.quantize_best(w, multipliers, rule, name, 1)
    candidates = search(w, multipliers, rule, fmt)
    least = np.min([error for _, _, error in candidates], axis=0)
    signal = (w.astype(np.float64) ** 2).sum(axis=1)
    for n in range(len(w)):
        packed, wanted, error = candidates[np.float32(multipliers).tolist().index(column_scale[n])]
        np.testing.assert_array_equal(codes[n], packed[n])
        np.testing.assert_array_equal(scales[n], wanted[n])
        assert error[n] <= least[n] * (1 + 2.0**-19) + 2.0**-21 * np.sqrt(least[n] * signal[n])
    for threads in (2, 8):
        for got, one in zip(
            _native.quantize_best(w, multipliers, rule, name, threads),
            (codes, scales, column_scale),
            strict=True,
        ):
            np.testing.assert_array_equal(got, one)


@pytest.mark.parametrize("exponent", [-149, -140, -126, 100, 126])
@pytest.mark.parametrize("name", WEIGHT_FORMATS)
def test_search_far_from_one(name, exponent):
    """Where float32 has no room for squares, or for quotients: the candidates are still those of NumPy."""
    w = np.ldexp(rows(6, 64, 5) / 256, exponent).astype(np.float32)
    multipliers = [1.0, 2.0**0.5]
    codes, scales, column_scale = _native.quantize_best(w, multipliers, "mse", name)
    candidates = search(w, multipliers, "mse", WEIGHT_FORMATS[name])
    for n in range(len(w)):
        packed, wanted, _ = candidates[int(column_scale[n] != 1)]
        np.testing.assert_array_equal(codes[n], packed[n])
        np.testing.assert_array_equal(scales[n], wanted[n])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_search_leaves_rows_that_are_not_finite(bad):
    w = rows(5, 96)
    w[2, 40] = bad
    codes, scales, column_scale = _native.quantize_best(w, [1.0, 1.25], "mse")
    assert column_scale[2] == 1
    assert (scales == 255).nonzero() == (np.array([2]), np.array([1]))
    assert not codes[2, 16:32].any()


def test_search_refuses_bad_arguments():
    w = rows(2, 32)
    for bad in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match=r"multipliers: got .*, expected finite ones above 0"):
            _native.quantize_best(w, [1.0, bad], "mse")
    packed = _native.quantize_best(w, [1.0], "mse")
    with pytest.raises(ValueError, match="expected the shapes of 2 rows of 32 elements in mxfp8_e4m3"):
        _native.sums_of_rows(w, *packed, "mxfp8_e4m3")


@pytest.mark.parametrize("name", WEIGHT_FORMATS)
@pytest.mark.parametrize("shape", [(0, 32), (1, 7), (70, 1000), (3, 8192)])
def test_sums_of_rows(name, shape):
    """Against the sums in float64; the order of 8192 additions errs by less than 2**-40 of them."""
    w = rows(*shape)
    for multipliers in ([1.0], [0.5], [1.0, 1.3]):
        codes, scales, column_scale = _native.quantize_best(w, multipliers, "even", name)
        exact = dequantize_readably(codes, scales, shape[1], WEIGHT_FORMATS[name]) * np.float64(
            column_scale[:, None]
        )
        for threads in (1, 2, 8):
            noise, signal = _native.sums_of_rows(w, codes, scales, column_scale, name, threads)
            np.testing.assert_allclose(noise, ((exact - w) ** 2).sum(axis=1), rtol=2.0**-40)
            np.testing.assert_allclose(signal, (w.astype(np.float64) ** 2).sum(axis=1), rtol=2.0**-40)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_finite(bad):
    w = rows()
    assert quantize(w, Settings()).finite
    w[3, 200] = bad
    assert not quantize(w, Settings()).finite
