"""The scale rules against golden vectors, an exhaustive search, and the native quantiser against numpy bit for bit."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mxort import _native
from mxort.formats import (
    BLOCK_SIZE,
    E2M1,
    ELEMENT_FORMATS,
    SCALE_NAN,
    WEIGHT_FORMATS,
    pack_codes,
    scale_value,
    to_blocks,
)
from mxort.scales import SCALE_RULES, quantize_blocks

VECTORS = Path(__file__).parent / "vectors" / "scales.csv"
with VECTORS.open() as _file:
    ROWS = list(csv.DictReader(_file))


def block_with(absmax: np.float32) -> np.ndarray:
    block = np.zeros((1, BLOCK_SIZE), np.float32)
    block[0, 5] = -absmax
    return block


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r['format']}:{r['rule']}:{r['absmax']}")
def test_golden_scales(row: dict[str, str]) -> None:
    _, scale = quantize_blocks(
        block_with(np.float32(row["absmax"])), ELEMENT_FORMATS[row["format"]], row["rule"]
    )
    assert scale[0] == int(row["scale"]), row["reason"]


def test_mse_is_the_better_of_the_two_candidates() -> None:
    """And nearly always the best of all scales: the two candidates bracket the optimum."""
    blocks = np.random.default_rng(0).standard_normal((500, BLOCK_SIZE)).astype(np.float32)

    def error(scale: np.ndarray) -> np.ndarray:
        value = scale_value(scale).astype(np.float64)[:, None]
        return ((blocks - E2M1.decode(E2M1.encode(blocks / value)) * value) ** 2).sum(axis=1)

    _, chosen = quantize_blocks(blocks, E2M1, "mse")
    _, floor = quantize_blocks(blocks, E2M1, "floor")
    np.testing.assert_array_less(error(chosen), np.minimum(error(floor), error(floor + 1)) * (1 + 1e-12))
    best = np.min(
        [error(floor + np.uint8(d)) for d in (254, 255, 0, 1, 2)], axis=0
    )  # uint8 arithmetic: -2, -1, 0 ...
    assert error(chosen).sum() <= best.sum() * 1.001


@pytest.mark.parametrize(
    ("rule", "sqnr_db"), [("floor", 18.79), ("even", 19.03), ("rceil", 18.76), ("mse", 19.05)]
)
def test_sqnr_of_a_normal_distribution(rule: str, sqnr_db: float) -> None:
    """Published for N(0,1) (see docs/accuracy); 3200 blocks give it within 0.15 dB (three standard errors)."""
    x = np.random.default_rng(1).standard_normal((3200, BLOCK_SIZE)).astype(np.float32)
    codes, scales = quantize_blocks(x, E2M1, rule)
    error = x - E2M1.decode(codes) * scale_value(scales)[:, None]
    assert 10 * np.log10((x**2).sum() / (error**2).sum()) == pytest.approx(sqnr_db, abs=0.15)


def native_matches(w: np.ndarray, rule: str, threads: int = 1) -> None:
    for name, fmt in WEIGHT_FORMATS.items():
        codes, scales = quantize_blocks(to_blocks(w), fmt, rule)
        native_codes, native_scales = _native.quantize_weights(w, rule, name, threads)
        np.testing.assert_array_equal(native_scales, scales)
        np.testing.assert_array_equal(native_codes, pack_codes(codes, fmt).reshape(native_codes.shape))


@pytest.mark.parametrize("rule", SCALE_RULES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 31), (2, 32), (5, 33), (7, 1000), (0, 64), (4, 0)])
@pytest.mark.parametrize("threads", [1, 3])
def test_native_equals_numpy(rule: str, shape: tuple[int, int], threads: int) -> None:
    rng = np.random.default_rng(2)
    native_matches(
        (rng.standard_normal(shape) * 10.0 ** rng.integers(-5, 5, shape)).astype(np.float32), rule, threads
    )


any_float = st.floats(width=32, allow_nan=True, allow_infinity=True)


@settings(max_examples=400, deadline=None)
@given(
    w=hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 70)), elements=any_float),
    rule=st.sampled_from(sorted(SCALE_RULES)),
)
def test_native_equals_numpy_on_anything(w: np.ndarray, rule: str) -> None:
    """Subnormals, huge values, NaN and infinity included."""
    native_matches(w, rule)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_block_that_is_not_finite_is_all_nan(bad: float) -> None:
    w = np.ones((1, 2 * BLOCK_SIZE), np.float32)
    w[0, 3] = bad
    codes, scales = _native.quantize_weights(w, "mse")
    assert scales[0, 0] == SCALE_NAN
    assert scales[0, 1] != SCALE_NAN
    assert not codes[0, : BLOCK_SIZE // 2].any()


def test_native_refuses_bad_arguments() -> None:
    with pytest.raises(ValueError, match="got 'best', expected one of floor, even, rceil, mse"):
        _native.quantize_weights(np.ones((1, 32), np.float32), "best")
    with pytest.raises(ValueError, match="got rank 1, expected 2"):
        _native.quantize_weights(np.ones(32, np.float32), "mse")
    with pytest.raises(TypeError):
        _native.quantize_weights(np.ones((1, 32), np.float64), "mse")
