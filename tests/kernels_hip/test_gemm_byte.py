"""The GEMM kernels of MXINT8, MXFP8 and MXFP6 weights: all activation formats, types, ragged shapes."""

from __future__ import annotations

import numpy as np
import pytest
from gpu_oracle import Problem

import device
from device import Spec
from mxort import formats

WEIGHTS = ["mxint8", "mxfp8_e4m3", "mxfp6_e2m3", "mxfp6_e3m2"]
KERNELS = {w: "gemm_int8w" if w == "mxint8" else "gemm_fp8w" for w in WEIGHTS}


@pytest.mark.parametrize("tile, m", [("64x64", 69), ("skinny", 7)])
@pytest.mark.parametrize("kind", ["gemm_int8w", "gemm_fp8w"])
@pytest.mark.parametrize("arch", device.ARCHITECTURES)
def test_ragged_shapes_and_every_instruction_runs(counting_machines, arch, kind, tile, m):
    machine, kernel = counting_machines(arch), f"{kind}_{tile}"
    for weights in (w for w in WEIGHTS if KERNELS[w] == kind):
        for dtype in device.TYPES:
            level = 1 if dtype == "float" else 3
            for k, n, rotation in ((32 * 21, 72, 32), (5, 1, 1), (128 * 3 + 32, 75, 1)):
                problem = Problem(Spec(m, k, n, dtype, "none", rotation, level, arch, weights=weights))
                problem.check(problem.run(machine, kernel), kernel)
    for dtype in device.TYPES:
        for n in (72, 75):
            problem = Problem(Spec(m, 32 * 41, n, dtype, "none", arch=arch, weights=weights))
            problem.check(problem.run(machine, kernel, 2), kernel)
    assert machine.unexecuted("gemm_byte", kernel) == []


@pytest.mark.parametrize("tile, m", [("16x16", 7), ("16x64", 3)])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("arch", device.ARCHITECTURES)
def test_few_rows_of_ragged_shapes(machines, arch, weights, tile, m):
    """Their types and other shapes are in test_direct.py."""
    for k, n, rotation in ((32 * 21, 72, 32), (5, 1, 1), (128 * 3 + 32, 75, 1)):
        problem = Problem(Spec(m, k, n, "float", "none", rotation, 1, arch, weights=weights))
        kernel = f"{KERNELS[weights]}_{tile}"
        problem.check(problem.run(machines(arch), kernel), kernel)


@pytest.mark.parametrize("fmt", [f for f in device.FORMATS if f != "none"])
@pytest.mark.parametrize("arch", device.ARCHITECTURES)
def test_quantized_activations(machines, arch, fmt):
    for m in (3, 20):
        problem = Problem(Spec(m, 32 * 9, 40, "float16", fmt, 32, arch=arch, weights="mxint8"))
        problem.check(problem.run(machines(arch)))


@pytest.mark.parametrize("tile", ["64x64", "skinny"])
@pytest.mark.parametrize("weights", ["mxint8", "mxfp8_e4m3"])
def test_split_k(machines, weights, tile):
    kernel = f"{KERNELS[weights]}_{tile}"
    problem = Problem(Spec(7, 32 * 41, 72, "bfloat16", "none", weights=weights))
    for splits in (2, 5):
        problem.check(problem.run(machines("gfx950"), kernel, splits), kernel)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("tile", ["64x64", "skinny", "16x16", "16x64"])
@pytest.mark.parametrize("arch", device.ARCHITECTURES)
def test_every_code_and_scale_is_exact(machines, arch, tile, weights):
    """A is the unit matrix, so that Y is the weights: every code, with every scale that bfloat16 has room for."""
    fmt = formats.WEIGHT_FORMATS[weights]
    lowest = {"mxint8": 7, "mxfp8_e4m3": 10}.get(
        weights, 4
    )  # the least code times the scale is 2^-126 at the least
    scales = [lowest, 60, 127, 200, 253 - fmt.emax, 255]
    problem = Problem(
        Spec(32 if tile == "64x64" else 16, 32, 256, "float", level=1, arch=arch, weights=weights)
    )
    m = problem.spec.m
    problem.a = np.eye(m, 32, dtype=np.float32)
    codes = np.repeat((np.arange(256) % (1 << fmt.bits)).astype(np.uint8)[:, None], 32, axis=1)
    problem.codes = formats.pack_codes(codes, fmt)
    problem.column_scale[:], problem.bias[:] = 1, 0
    for scale in scales:
        problem.scales[:] = scale
        y = problem.run(machines(arch), f"{KERNELS[weights]}_{tile}")
        expected = formats.dequantize(problem.codes, problem.scales, 32, fmt).T[:m]
        # A NaN spoils its whole sum, here a column of equal codes.
        np.testing.assert_array_equal(y, np.where(np.isnan(expected), np.nan, expected))
