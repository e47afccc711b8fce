"""The operator in double precision, from mxort/formats.py alone, with bounds for what a float kernel may differ by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mxort.formats import (
    ACTIVATION_FORMATS,
    BLOCK_SIZE,
    WEIGHT_FORMATS,
    blocks_of,
    dequantize,
    hadamard_rotate,
    pack_codes,
    scale_value,
    to_blocks,
)
from mxort.scales import quantize_blocks

FLOAT_EPSILON = 2.0**-24
"""Largest relative error of one float32 operation."""

FORMATS_AND_LEVELS = [
    ("none", 1),
    ("none", 3),
    ("none", 4),
    *((f, 0) for f in ACTIVATION_FORMATS if f != "none"),
]

OUTPUT_EPSILON = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
LARGEST = {"float32": 2.0**128, "float16": 65520.0, "bfloat16": 2.0**128}
"""From here on a result may round to infinity."""

SMALLEST_SUBNORMAL = {"float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}

RELATIVE_RMS = {1: 1e-6, 3: 3e-5, 4: 1e-2}
"""Bound of the error by accuracy level. The operator promises 3e-3 for level 3; kernels with two int8 terms or float
arithmetic keep 3e-5, those that round A to bfloat16 (``BFLOAT16_KERNELS``) what the operator promises."""

BFLOAT16_KERNELS = ("avx512_amx", "avx512_amx_mxint8")

TWO_TERMS_KERNEL = "e2m3x2"
"""On gfx950 levels 3 and 4 are two MXFP6-E2M3 terms. A step of the first is at most 1/7.5 of its block's largest
magnitude (3.75 is the least that keeps its scale), so what it leaves is at most 1/15 of that; the second leaves 1/15 of
what is left."""

ROUNDING_OF_KERNEL = {TWO_TERMS_KERNEL: 1 / 225}

LARGEST_ROUNDING = {3: 1 / (127 * 256), 4: 1 / (2 * 127)}
"""What levels 3 and 4 may move a value of A by, in units of its block's largest magnitude (int8_kernel.h): half a
step of one int8 term, or a whole step of the second of two terms where that saturates."""


@dataclass
class Case:
    """A MatMul with its weights: codes uint8 [N, blocks*block_bytes], scales uint8 [N, blocks]."""

    codes: np.ndarray
    scales: np.ndarray
    K: int
    rotation: int = 1
    activation_format: str = "none"
    accuracy_level: int = 0
    column_scale: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    bias: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    weight_format: str = "mxfp4"

    @property
    def N(self) -> int:  # noqa: N802 (the operator's attribute)
        return len(self.codes)

    @property
    def weights(self) -> np.ndarray:
        """float64 [N, blocks*32]."""
        width, fmt = blocks_of(self.K) * BLOCK_SIZE, WEIGHT_FORMATS[self.weight_format]
        elements = dequantize(self.codes, np.full_like(self.scales, 127), width, fmt)
        return (
            to_blocks(elements).astype(np.float64) * scale_value(self.scales).astype(np.float64)[..., None]
        ).reshape(self.N, -1)


def random_case(
    rng: np.random.Generator,
    n: int,
    k: int,
    rotation: int = 1,
    weight_format: str = "mxfp4",
    **attributes: object,
) -> Case:
    """Weights of a normal distribution, quantised with the numpy rules."""
    w = np.zeros((n, blocks_of(k) * BLOCK_SIZE), np.float32)
    w[:, :k] = rng.standard_normal((n, k))
    fmt = WEIGHT_FORMATS[weight_format]
    codes, scales = quantize_blocks(to_blocks(hadamard_rotate(w, rotation)), fmt, "mse")
    columns: dict[str, Any] = {
        "column_scale": rng.random(n, np.float32) + 0.5,
        "bias": rng.standard_normal(n).astype(np.float32),
    }
    columns |= {"weight_format": weight_format, **attributes}
    return Case(pack_codes(codes, fmt).reshape(n, -1), scales, k, rotation, **columns)


def activations(case: Case, a: np.ndarray) -> np.ndarray:
    """A [M, K] of any float dtype -> what the product sees: float64 [M, blocks*32]."""
    x = np.zeros((len(a), blocks_of(case.K) * BLOCK_SIZE), np.float32)
    x[:, : case.K] = a.astype(np.float32)
    x = hadamard_rotate(x, case.rotation)
    fmt = ACTIVATION_FORMATS[case.activation_format]
    if fmt is None:
        return x.astype(np.float64)
    codes, scales = quantize_blocks(to_blocks(x), fmt, "even")
    return (fmt.decode(codes).astype(np.float64) * scale_value(scales).astype(np.float64)[..., None]).reshape(
        x.shape
    )


def rounding_of(case: Case, kernel: str = "") -> float:
    """What may move a value of A without a format, in units of its block's largest magnitude."""
    level = LARGEST_ROUNDING.get(case.accuracy_level or 3, 0.0)
    return level and ROUNDING_OF_KERNEL.get(kernel, level)


def evaluate(case: Case, a: np.ndarray, kernel: str = "") -> tuple[np.ndarray, np.ndarray]:
    """(Y, bound), both float64 [M, N]: the exact result and how far each element of a kernel's result may be from it.

    Float accumulation of n terms errs by at most n * epsilon * sum|terms|. No kernel adds more than 32
    products in a row before it adds the blocks' sums, and a handful of multiplications by scales comes on top.
    Levels 3 and 4 may also move each element of A by half a step of its block. The output is rounded once.
    """
    x, w = activations(case, a), case.weights
    with np.errstate(invalid="ignore"):  # NaN times zero is what is wanted
        exact = (x @ w.T) * case.column_scale + case.bias
        magnitude = (np.abs(x) @ np.abs(w).T) * np.abs(case.column_scale) + np.abs(case.bias)
        bound = (BLOCK_SIZE + blocks_of(case.K) + 8) * FLOAT_EPSILON * magnitude
        rounding = rounding_of(case, kernel)
        if case.activation_format == "none" and rounding:
            absmax = np.abs(to_blocks(x.astype(np.float32))).max(axis=-1).astype(np.float64)
            moved = np.repeat(absmax * rounding, BLOCK_SIZE, axis=-1)
            if kernel in BFLOAT16_KERNELS:
                moved = np.abs(x) * OUTPUT_EPSILON["bfloat16"]
            # 4e-3: dividing into steps is itself in float, 127 * 256 steps of 2^-24 relative error each
            bound += (moved * (1 + 4e-3)) @ np.abs(w).T * np.abs(case.column_scale)
    name = str(a.dtype)
    return exact, bound + OUTPUT_EPSILON[name] * np.abs(exact) * 1.0001 + SMALLEST_SUBNORMAL[name]


def assert_close(case: Case, a: np.ndarray, y: np.ndarray, what: str, kernel: str = "") -> None:
    """Every element within its bound, NaN where the oracle has NaN; or infinity where that may round to it."""
    assert y.dtype == a.dtype
    exact, bound = evaluate(case, a, kernel)
    got = y.astype(np.float64)
    assert got.shape == exact.shape, what
    np.testing.assert_array_equal(np.isnan(got), np.isnan(exact), what)
    with np.errstate(invalid="ignore"):
        excess = np.where(np.isfinite(exact), np.abs(got - exact) - bound, 0)
    with np.errstate(invalid="ignore"):
        overflow = np.isinf(got) & (np.sign(got) * exact + bound >= LARGEST[str(a.dtype)])
    excess[overflow] = 0
    worst = np.unravel_index(np.argmax(excess), excess.shape) if excess.size else None
    assert worst is None or excess[worst] <= 0, (
        f"{what}: at {worst} got {got[worst]}, exact {exact[worst]}, bound {bound[worst]}"
    )


def relative_rms(y: np.ndarray, exact: np.ndarray) -> float:
    return float(np.sqrt(((y.astype(np.float64) - exact) ** 2).sum() / (exact**2).sum()))
