"""Every GEMM kernel, with every activation format and type it serves, on whole and ragged shapes, against numpy."""

import numpy as np
import pytest
from gpu_oracle import Problem

import device
from device import Spec

NATIVE = {0: "mxfp4", 1: "mxfp6_e2m3", 2: "mxfp6_e3m2", 3: "mxfp8_e4m3"}  # Operand -> activation_format
BF16 = 4


def operands(row, arch):
    """(activation_format, accuracy level) that a row of the table multiplies on an architecture."""
    if row["operand"] != BF16:
        yield NATIVE[row["operand"]], 3
        if row["operand"] == 1:  # two terms
            yield "none", 3
        return
    yield "none", 1
    if arch == "gfx942":
        yield "none", 3
        yield from ((fmt, 3) for fmt in NATIVE.values())


KERNELS = [
    pytest.param(row, arch, id=f"{arch}-{row['name']}")
    for row in device.gemm_rows()
    if not row["weights"] and not row["direct"]  # those are in test_gemm_byte.py and test_direct.py
    for arch in ([row["arch"]] if row["arch"] else device.ARCHITECTURES)
]


def shapes(row, dtype):
    """(M, K, N, splits or None for the plan's own): a ragged tile over several stages and an odd step, whose last
    columns fill one store; less than one block; N of any alignment; the narrow stores of the last rows; more steps than
    a skinny kernel has in flight; partial sums."""
    wide = row["columns"] + (12 if dtype == "float" else 8)
    if row["skinny"]:
        return [(7, 32 * 33, wide, None), (1, 5, 1, None), (13, 128 * 33, 75, 1), (7, 32 * 41, 72, 5)]
    return [
        (min(row["rows"], 128) + 9, 32 * 33, wide, None),
        (1, 5, 1, None),
        (33, 128 * 3 + 32, 75, None),
        (row["rows"] - 3, 32 * 35, row["columns"] + 11, None),
        (7, 32 * 41, 72, 2),
        (7, 32 * 41, 72, 5),
    ]


@pytest.mark.parametrize("row, arch", KERNELS)
def test_kernel_matches_numpy_and_every_instruction_runs(counting_machines, row, arch):
    """What no shape executes has been tested by nobody."""
    machine = counting_machines(arch)
    name = row["name"]
    for dtype in device.TYPES:
        for fmt, level in operands(row, arch):
            for m, k, n, splits in shapes(row, dtype):
                for rotation in (1,) if k % 32 or splits else (1, 32):
                    problem = Problem(Spec(m, k, n, dtype, fmt, rotation, level, arch))
                    problem.check(problem.run(machine, name, splits), name)
    assert machine.unexecuted(device.plan(problem.spec, name)["object"], name) == []


def test_order_of_many_tiles(machines):
    """More than eight rows of tiles: they are taken in bands (OrderTiles)."""
    spec = Spec(64 * 9 + 3, 32, 64 * 17, "float16", "mxfp4")
    problem = Problem(spec)
    problem.check(problem.run(machines("gfx950"), "gemm_fp4_64x64"), "gemm_fp4_64x64")


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
