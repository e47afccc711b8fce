"""Losses by hand and by their definitions, where outputs are masked, not finite, or both."""

from __future__ import annotations

import numpy as np
import pytest

from mxort.calibration.losses import Divergence, Noise
from mxort.errors import MxortError


def divergence(p, q):
    """KL of logits in float64; the classes of p = 0 left away."""
    total = 0.0
    for x, y in zip(p.astype(np.float64), q.astype(np.float64), strict=True):
        log_p, log_q = x - np.log(np.exp(x).sum()), y - np.log(np.exp(y).sum())
        used = np.exp(log_p) > 0
        total += float((np.exp(log_p[used]) * (log_p[used] - log_q[used])).sum())
    return total / len(p)


def logits(rows=70, classes=12, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, classes)).astype(np.float32) * 2


def loss_of(loss, reference, outputs):
    loss.reference([reference])
    with np.errstate(invalid="ignore", divide="ignore"):
        return loss.of([outputs], 0)


def test_two_classes_by_hand():
    """p = (3/4, 1/4), q = (1/2, 1/2): 3/4 log 3/2 + 1/4 log 1/2."""
    got = loss_of(Divergence(), np.log([[3, 1]]).astype(np.float32), np.zeros((1, 2), np.float32))
    assert got == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5), abs=4 * 2.0**-24)


@pytest.mark.parametrize("masked", [-np.inf, -1e30])
@pytest.mark.parametrize("also", [True, False])
def test_a_masked_class_adds_nothing(masked, also):
    """Whether it is masked in both or in the reference alone (then what q gives it is missing elsewhere)."""
    p, q = logits(), logits(seed=1)
    p[:, 3] = p[5, 1] = masked
    if also:
        q[:, 3] = masked
    expected = divergence(p, q)
    assert expected > 0.5
    # Logits of magnitude 8 at most, twelve to a row, in float32.
    assert loss_of(Divergence(), p, q) == pytest.approx(expected, abs=12 * 8 * 2.0**-24)


def test_nothing_changed_is_no_loss_in_spite_of_masks():
    p = logits()
    p[:, ::2] = -np.inf
    assert loss_of(Divergence(), p, p.copy()) == pytest.approx(0, abs=12 * 8 * 2.0**-24)


def test_a_class_lost_is_an_infinite_loss():
    p, q = logits(), logits(seed=1)
    q[9, 2] = -np.inf
    assert loss_of(Divergence(), p, q) == np.inf


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_longer_finite_is_no_loss_of_zero(bad):
    p, q = logits(), logits(seed=1)
    q[4, 5] = bad
    assert not np.isfinite(loss_of(Divergence(), p, q))
    assert not np.isfinite(loss_of(Noise(), p, q))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_without_a_reference_are_left_out(bad):
    p, q = logits(), logits(seed=1)
    kept = np.setdiff1d(np.arange(70), [0, 64])
    want = [loss_of(loss(), p[kept], q[kept]) for loss in (Divergence, Noise)]
    p[0, 3], p[64, :] = bad, bad
    q[0] = np.nan
    for loss, expected in zip((Divergence(), Noise()), want, strict=True):
        # The rows are the same, their order of summing in float64 and float32 nearly.
        assert loss_of(loss, p, q) == pytest.approx(expected, rel=70 * 12 * 2.0**-24)
        assert loss.left_out == 2


def test_a_row_of_masks_alone_is_left_out():
    p = logits(3)
    p[1] = -np.inf
    loss = Divergence()
    assert loss_of(loss, p, logits(3, seed=1)) == pytest.approx(
        divergence(p[[0, 2]], logits(3, seed=1)[[0, 2]]), abs=12 * 8 * 2.0**-24
    )
    assert loss.left_out == 1


@pytest.mark.parametrize("exponent", [-120, 0, 120])
def test_noise_has_no_magnitude(exponent):
    """(1 + 4) / (9 + 16), at any power of two; a scalar output is one row."""
    reference, outputs = np.array([[3, 4]], np.float32), np.array([[4, 6]], np.float32)
    assert loss_of(Noise(), np.ldexp(reference, exponent), np.ldexp(outputs, exponent)) == 5 / 25
    assert loss_of(Noise(), np.float32(2), np.float32(3)) == 1 / 4


def test_no_finite_row():
    for loss in (Noise(), Divergence()):
        with pytest.raises(MxortError, match="no finite row"):
            loss.reference([np.full((2, 3), np.nan, np.float32)])
