"""Smoothing: the scale by hand, and the choice among alphas against rounding to nearest without it."""

from __future__ import annotations

import numpy as np
import pytest

from mxort.formats import E2M1, WEIGHT_FORMATS, hadamard_rotate, to_blocks
from mxort.quantize import Settings, smoothquant
from mxort.quantize.smoothquant import Layers
from mxort.scales import quantize_blocks

K, FORMATS = 64, ("none", "mxfp8_e4m3", "mxfp4")


def rounded(x, rule, fmt=E2M1):
    """x [n, K] in an MX format by the numpy rules alone, float64."""
    codes, scales = quantize_blocks(to_blocks(x), fmt, rule)
    return (fmt.decode(codes) * np.exp2(scales.astype(np.float64) - 127)[..., None]).reshape(x.shape)


def outliers(rows=200, seed=0):
    """An operand with a few channels far larger than the others, and weights that have outliers elsewhere."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, K)).astype(np.float32)
    x[:, ::16] *= 30
    weights = [rng.standard_normal((n, K)).astype(np.float32) for n in (24, 40)]
    return x, weights


def test_two_channels_by_hand():
    """absmax of x 8 and 2, of the weights' columns 2 and 8. alpha 1/2: sqrt(8/2), sqrt(2/8), whose mean is one."""
    weights = [np.array([[1, -8], [2, 3]], np.float32), np.array([[-1, 1]], np.float32)]
    absmax = np.array([8, 2], np.float32)
    np.testing.assert_allclose(smoothquant.scale_of(absmax, weights, 0.5), [2, 0.5], rtol=1e-6)
    # alpha 1 evens out x: 8/s = 2/s' with s s' = 1; alpha 0 the weights: 2 s = 8 s'.
    np.testing.assert_allclose(smoothquant.scale_of(absmax, weights, 1.0), [2, 0.5], rtol=1e-6)
    np.testing.assert_allclose(smoothquant.scale_of(absmax, weights, 0.0), [2, 0.5], rtol=1e-6)
    # alpha 3/4 of other magnitudes: 16^.75 / 4^.25 = 8 / sqrt(2), 1 / 1 = 1, divided by the root of their product.
    scale = smoothquant.scale_of(np.array([16, 1], np.float32), [np.array([[4, 1]], np.float32)], 0.75)
    np.testing.assert_allclose(scale, [np.sqrt(8 / np.sqrt(2)), 1 / np.sqrt(8 / np.sqrt(2))], rtol=1e-6)


def test_channels_that_say_nothing_keep_their_scale():
    absmax = np.array([4, 0, 1, 1e30], np.float32)
    weight = np.array([[1, 1, 0, 1e-30]], np.float32)
    scale = smoothquant.scale_of(absmax, [weight], 0.5)
    assert scale[1] == scale[2] == 1
    assert (scale >= 1 / smoothquant.LARGEST).all() and (scale <= smoothquant.LARGEST).all()


@pytest.mark.parametrize("activation_format", FORMATS)
@pytest.mark.parametrize("rotation", [1, 32])
def test_nothing_changes_before_rounding(activation_format, rotation):
    """(x / s) (s W) is x W: H is orthogonal, and s cancels."""
    x, weights = outliers()
    scale = smoothquant.scale_of(np.abs(x).max(axis=0), weights, 0.5)
    for weight in weights:
        smooth = hadamard_rotate(x / scale, rotation).astype(np.float64)
        heavy = hadamard_rotate(weight * scale, rotation).astype(np.float64)
        exact = x.astype(np.float64) @ weight.T
        # Each of 64 products is of factors rounded by a division or a multiplication and up to six butterflies.
        bound = 16 * 2.0**-24 * (np.linalg.norm(smooth, axis=1)[:, None] * np.linalg.norm(heavy, axis=1))
        assert (np.abs(smooth @ heavy.T - exact) <= bound).all()


@pytest.mark.parametrize("exponent", [-60, 0, 60])
@pytest.mark.parametrize("formats", [(), ("mxfp6_e2m3", "mxfp6_e2m3"), ("mxfp8_e4m3", "mxfp4")])
def test_error_is_that_of_the_rounded_product(formats, exponent):
    """Each weight in its own format, and where float32 has no room for the squares of products."""
    x, weights = outliers(50)
    x, weights = np.ldexp(x, exponent), [np.ldexp(w, exponent // 2) for w in weights]
    scale = smoothquant.scale_of(np.abs(x).max(axis=0), weights, 0.5)
    settings = Settings("even", column_multiplier=False)
    got = smoothquant.error(x, scale, Layers(weights, 1, "mxfp4", formats), settings)
    parts = []
    for w, name in zip(weights, formats or ("mxfp4", "mxfp4"), strict=True):
        exact = x.astype(np.float64) @ w.T
        product = rounded(x / scale, "even") @ rounded(w * scale, "even", WEIGHT_FORMATS[name]).T
        parts.append(((product - exact) ** 2).sum() / (exact**2).sum())
    # Both products are sums of 64 in float32, off by at most 64 * 2^-24 of |x||w|; the noise is above 1 % of that in
    # norm, so its square is off by less than 2 * 4e-6 / 1e-2.
    assert got == pytest.approx(np.mean(parts), rel=8e-4)


@pytest.mark.parametrize("activation_format", FORMATS)
@pytest.mark.parametrize("rotation", [1, 32])
@pytest.mark.parametrize("seed", range(4))
def test_auto_is_never_worse_than_rtn_and_the_best_of_all(activation_format, rotation, seed):
    x, weights = outliers(seed=seed)
    layers, settings = Layers(weights, rotation, activation_format), Settings()
    absmax = np.abs(x).max(axis=0)
    plain = smoothquant.error(x, np.ones(K, np.float32), layers, settings)
    chosen = smoothquant.choose(x, absmax, layers, settings)
    each = [smoothquant.choose(x, absmax, layers, settings, alpha) for alpha in smoothquant.ALPHAS]
    assert all(s.error_before == plain for s in each)
    best = min(s.error_after for s in each)
    if chosen is None:
        assert best >= plain
    else:
        assert chosen.error_after == best < plain
        assert smoothquant.error(x, chosen.scale, layers, settings) == best


def test_outliers_are_what_it_is_for():
    """A rotation spreads an outlier channel over its whole block; smoothing makes it small first."""
    x, weights = outliers()
    s = smoothquant.choose(x, np.abs(x).max(axis=0), Layers(weights, 32, "mxfp4"), Settings())
    assert s is not None and s.error_after < s.error_before / 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite(bad):
    x, weights = outliers(20)
    weights[1][3, 5] = bad
    assert smoothquant.choose(x, np.abs(x).max(axis=0), Layers(weights, 1, "none"), Settings()) is None


def test_no_rows():
    _, weights = outliers(1)
    x = np.zeros((0, K), np.float32)
    assert smoothquant.choose(x, np.zeros(K, np.float32), Layers(weights, 1, "mxfp4"), Settings()) is None
