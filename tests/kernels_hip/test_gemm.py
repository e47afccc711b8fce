"""Every GEMM kernel, with every activation format and type it serves, on whole and ragged shapes, against numpy."""

import numpy as np
import pytest
from gpu_oracle import Problem

import device
from device import Spec

NATIVE = {0: "mxfp4", 1: "mxfp6_e2m3", 2: "mxfp6_e3m2", 3: "mxfp8_e4m3"}  # Operand -> activation_format
BF16 = 4


def kernels_and_specs():
    """(kernel, format, level, arch) for each row of the table."""
    for row in device.gemm_rows():
        if row["weights"]:
            continue  # test_gemm_byte.py
        for arch in [row["arch"]] if row["arch"] else device.ARCHITECTURES:
            if row["operand"] != BF16:
                yield row, NATIVE[row["operand"]], 3, arch
                if row["operand"] == 1:  # two terms
                    yield row, "none", 3, arch
            else:
                yield row, "none", 1, arch
                if arch == "gfx942":
                    yield row, "none", 3, arch
                    for fmt in NATIVE.values():
                        yield row, fmt, 3, arch


CASES = [
    pytest.param(*c, id=f"{c[3]}-{c[0]['name']}-{c[1]}-level{c[2]}")
    for c in sorted(kernels_and_specs(), key=lambda c: c[3])
]


def shapes(row):
    """(M, K, N): a ragged tile over several stages and an odd step; less than one block; N of any alignment."""
    m = 7 if row["skinny"] else min(row["rows"], 128) + 9
    return [(m, 32 * 37, row["columns"] + 8), (1, 5, 1), (min(m, 33), 128 * 3 + 32, 75)]


@pytest.mark.parametrize("dtype", device.TYPES)
@pytest.mark.parametrize("row, fmt, level, arch", CASES)
def test_gemm_matches_numpy(machines, row, fmt, level, arch, dtype):
    for m, k, n in shapes(row):
        for rotation in (1,) if k % 32 else (1, 32):
            spec = Spec(m, k, n, dtype, fmt, rotation, level, arch)
            problem = Problem(spec)
            problem.check(problem.run(machines(arch), row["name"]), row["name"])


@pytest.mark.parametrize("row, fmt, level, arch", [c for c in CASES if c.values[1] in ("mxfp4", "none")])
def test_split_k_matches_numpy(machines, row, fmt, level, arch):
    spec = Spec(7, 32 * 41, 72, "float16", fmt, 1, level, arch)
    problem = Problem(spec)
    for splits in (2, 5):
        problem.check(problem.run(machines(arch), row["name"], splits), row["name"])


@pytest.mark.parametrize("arch", device.ARCHITECTURES)
@pytest.mark.parametrize("level, bound", [(1, 1e-6), (3, 3e-3), (4, 1e-2)])
@pytest.mark.parametrize("dtype", ["float", "bfloat16"])
@pytest.mark.parametrize("m", [5, 70])
def test_unquantised_accuracy(machines, arch, level, bound, dtype, m):
    """docs/format.md: relative RMS error against the exact product, before Y is rounded to its type."""
    problem = Problem(Spec(m, 512, 72, dtype, "none", 128, level, arch))
    y = problem.run(machines(arch)).astype(np.float64)
    exact, _ = problem.exact(None)
    if dtype == "bfloat16":  # take the rounding of Y away as far as it can be known
        rounding = np.abs(exact) * 2.0**-8
        y = np.where(np.abs(y - exact) <= rounding, exact, y)
    assert np.sqrt(np.mean((y - exact) ** 2) / np.mean(exact**2)) <= bound


# MiniLM: hidden 384, intermediate 1536; a prompt and a single token.
@pytest.mark.parametrize("m, k, n", [(1, 384, 384), (14, 384, 1536), (128, 384, 1536), (128, 1536, 384)])
@pytest.mark.parametrize("fmt", ["mxfp4", "none"])
def test_minilm_shapes(machines, m, k, n, fmt):
    problem = Problem(Spec(m, k, n, "float16", fmt, 32))
    problem.check(problem.run(machines("gfx950")))


def test_large_problem(machines):
    spec = Spec(512, 4096, 4096, "bfloat16", "mxfp4")
    problem = Problem(spec)
    problem.check(problem.run(machines("gfx950"), "gemm_fp4_256x256"), "gemm_fp4_256x256")


@pytest.mark.parametrize(
    "arch, kernel, fmt",
    [
        ("gfx950", "gemm_fp4_64x64", "mxfp4"),
        ("gfx950", "gemm_fp4_skinny", "mxfp4"),
        ("gfx950", "gemm_bf16_64x128", "none"),
        ("gfx942", "gemm_bf16_64x128", "mxfp4"),
    ],
)
def test_nan_scales_reach_exactly_their_outputs(machines, arch, kernel, fmt):
    spec = Spec(5, 256, 70, "float", fmt, level=1, arch=arch)
    problem = Problem(spec)
    problem.scales[[3, 64], [1, 7]] = 255
    problem.a[2, 100] = np.nan
    y = problem.run(machines(arch), kernel)
    nan = np.zeros(y.shape, bool)
    nan[:, [3, 64]] = nan[2] = True
    assert (np.isnan(y) == nan).all()
