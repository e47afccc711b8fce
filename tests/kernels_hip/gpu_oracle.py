"""What the GPU kernels must compute: plain numpy, in double where sums are concerned. Nothing here knows a layout."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import device
from device import Spec
from mxort import formats, scales

FP32_EPSILON = 2.0**-24
OUTPUT_EPSILON = {"float": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
FLOAT16_TINY = 2.0**-25  # half the smallest subnormal


def quantized(x: NDArray[np.float32], fmt: formats.ElementFormat) -> NDArray[np.float64]:
    """Values [M, blocks * 32] after Q."""
    codes, exponents = scales.quantize_blocks(formats.to_blocks(x), fmt, "even")
    values = fmt.decode(codes).astype(np.float64) * formats.scale_value(exponents)[..., None].astype(
        np.float64
    )
    return values.reshape(len(x), -1)


def round_bfloat16(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return device.from_bytes(device.to_bytes(x, "bfloat16"), "bfloat16")


def operand(spec: Spec, plan: dict[str, Any], a: NDArray[np.float32]) -> NDArray[np.float64]:
    """The numbers that the plan's kernels multiply, [M, blocks * 32]."""
    x = formats.hadamard_rotate(a, spec.rotation)
    fmt = formats.ACTIVATION_FORMATS[spec.activation_format]
    if fmt is not None:
        return quantized(x, fmt)
    padded = formats.to_blocks(x).reshape(len(x), -1)
    if plan["prepare"] == "prepare_e2m3x2":
        first = quantized(x, formats.E2M3)
        rest = (padded.astype(np.float64) - first).astype(np.float32)  # exact
        return first + quantized(rest, formats.E2M3)
    if plan["terms"] == 1:
        return round_bfloat16(padded).astype(np.float64)
    return padded.astype(np.float64)  # terms enough to hold every value


class Problem:
    """A MatMulMXFP4 with random operands, its exact result and the error that float accumulation allows."""

    def __init__(self, spec: Spec, seed: int = 0):
        rng = np.random.default_rng([seed, spec.m, spec.k, spec.n])
        blocks = formats.blocks_of(spec.k)
        self.spec = spec
        a = rng.standard_normal((spec.m, spec.k)) * np.exp2(rng.integers(-3, 4, (spec.m, 1)))
        self.a = device.to_bytes(a.astype(np.float32), spec.dtype)
        self.weights = formats.WEIGHT_FORMATS[spec.weights]
        codes = rng.integers(0, 1 << self.weights.bits, (spec.n, blocks * 32)).astype(np.uint8)
        codes[np.isnan(self.weights.values[codes])] = 1
        codes[:, spec.k :] = 0  # the operator's tail
        self.codes = formats.pack_codes(codes, self.weights)
        self.scales = rng.integers(112, 128, (spec.n, blocks)).astype(np.uint8)
        self.column_scale = rng.uniform(0.5, 2, spec.n).astype(np.float32)
        self.bias = rng.standard_normal(spec.n).astype(np.float32)

    def run(self, machine: device.Device, kernel: str = "", splits: int | None = None) -> NDArray[np.float32]:
        return machine.matmul(
            self.spec, self.a, self.codes, self.scales, self.column_scale, self.bias, kernel, splits
        )

    def exact(self, plan: dict[str, Any] | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(result, sum of magnitudes) with the plan's operands, or (None) with A itself."""
        spec = self.spec
        a = device.from_bytes(self.a, spec.dtype)
        if plan is None:
            x = formats.hadamard_rotate(a, spec.rotation)
            x = formats.to_blocks(x).reshape(len(x), -1).astype(np.float64)
        else:
            x = operand(spec, plan, a)
        w = formats.dequantize(self.codes, self.scales, x.shape[1], self.weights).astype(np.float64)
        y = (x @ w.T) * self.column_scale + self.bias
        return y, np.abs(x) @ np.abs(w).T * np.abs(self.column_scale) + np.abs(self.bias)

    def tolerance(self, y: NDArray[np.float64], magnitude: NDArray[np.float64]) -> NDArray[np.float64]:
        """A float accumulator rounds once for each addition it makes: at most one for each four k of a bf16
        instruction and one for each block of a scaled one, so K/4 roundings of at most epsilon times the sum of
        magnitudes bound it; random signs keep the true error far below. Then the result is rounded to its type."""
        additions = self.spec.k / 4 + 8
        rounding = OUTPUT_EPSILON[self.spec.dtype] * np.abs(y) * 1.01 + (
            FLOAT16_TINY if self.spec.dtype == "float16" else 0
        )
        return additions * FP32_EPSILON * magnitude + rounding

    def check(self, y: NDArray[np.float32], kernel: str = "") -> None:
        plan = device.plan(self.spec, kernel)
        exact, magnitude = self.exact(plan)
        error = np.abs(y.astype(np.float64) - exact)
        allowed = self.tolerance(exact, magnitude)
        worst = np.unravel_index(np.argmax(error / allowed), error.shape)
        assert (error <= allowed).all(), (
            f"{self.spec} {kernel}: {np.sum(error > allowed)} of {error.size} outputs beyond the tolerance, "
            f"worst at {tuple(map(int, worst))}: got {y[worst]}, "
            f"expected {exact[worst]}, allowed error {allowed[worst]}"
        )
