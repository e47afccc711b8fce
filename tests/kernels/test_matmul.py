"""Every row of the kernel table against the double-precision oracle: formats, rotations, dtypes, tails, extremes."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
from mxort import _native
from mxort.formats import (
    BLOCK_SIZE,
    SCALE_BIAS,
    SCALE_NAN,
    WEIGHT_FORMATS,
    blocks_of,
    hadamard_rotate,
    pack_codes,
)
from oracle import FORMATS_AND_LEVELS, Case, random_case


class Row(NamedTuple):
    """A row of the kernel table with weights that it holds."""

    name: str
    weight_format: str


ROWS_OF_KERNELS = [
    Row(kernel["name"], weight_format)
    for kernel in _native.describe()["kernels"]
    if kernel["available"]
    for weight_format in kernel["weight_formats"]
]
KERNELS = list({row.name: row for row in ROWS_OF_KERNELS}.values())
"""Each kernel with one weight format, for sweeps over what does not depend on the format."""

EMULATED = _native.select_kernel(["avx2_fma", "avx512"], "", "none", 3, 1000) == "avx512_amx"
"""A build with MXORT_EMULATE: its AMX kernel needs no AMX."""
DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]
ROWS = [0, 1, 2, 3, 5, 16, 17, 25, 64, 129]
# (K, N, rotation): one block, tails in K and N, less than one strip, more than one group of blocks, each rotation
SHAPES = [
    (1, 1, 1),
    (32, 16, 1),
    (100, 24, 1),
    (257, 33, 1),
    (160, 17, 32),
    (33, 5, 32),
    (192, 40, 64),
    (384, 31, 128),
]

each_row = pytest.mark.parametrize("kernel", ROWS_OF_KERNELS, ids="-".join)
each_kernel = pytest.mark.parametrize("kernel", KERNELS, ids="-".join)


def case_for(
    kernel: Row,
    rng: np.random.Generator,
    n: int,
    k: int,
    activation_format: str = "none",
    level: int = 0,
    rotation: int = 1,
) -> Case:
    """Random weights of the row's format."""
    attributes = {"activation_format": activation_format, "accuracy_level": level}
    return random_case(rng, n, k, rotation, kernel.weight_format, **attributes)


def make(case: Case, kernel: Row) -> _native.MatMul:
    return _native.MatMul(
        case.codes,
        case.scales,
        case.column_scale,
        case.bias,
        K=case.K,
        rotation=case.rotation,
        activation_format=case.activation_format,
        accuracy_level=case.accuracy_level,
        kernel=kernel.name,
        weight_format=case.weight_format,
    )


def run(case: Case, a: np.ndarray, kernel: Row, threads: int = 1) -> np.ndarray:
    return make(case, kernel)(a, threads)


def check(case: Case, a: np.ndarray, kernel: Row, what: str = "", threads: int = 1) -> None:
    """Runs the kernel, or the one that it leaves so few rows to, and compares with the oracle."""
    node = make(case, kernel)
    ran = node.kernel_for(len(a))
    oracle.assert_close(case, a, node(a, threads), f"{ran} {what}", ran)


@each_row
@pytest.mark.parametrize(("activation_format", "level"), FORMATS_AND_LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_oracle(kernel: Row, activation_format: str, level: int, dtype: type) -> None:
    rng = np.random.default_rng(0)
    for k, n, rotation in SHAPES:
        case = case_for(kernel, rng, n, k, activation_format, level, rotation)
        for m in ROWS:
            a = rng.standard_normal((m, k)).astype(dtype)
            what = f"{kernel} {activation_format} level {level} K={k} N={n} rotation={rotation} M={m}"
            check(case, a, kernel, what, threads=1 + m % 3)


@each_row
def test_more_rows_than_a_kernel_takes_at_once(kernel: Row) -> None:
    rng = np.random.default_rng(1)
    case = case_for(kernel, rng, 70, 160, "none", 3)
    check(case, rng.standard_normal((300, 160)).astype(np.float32), kernel, threads=2)


@each_kernel
@pytest.mark.parametrize("distribution", ["normal", "laplace"])
@pytest.mark.parametrize("level", [1, 3, 4])
def test_relative_rms_of_each_accuracy_level(kernel: Row, distribution: str, level: int) -> None:
    rng = np.random.default_rng(3)
    case = random_case(rng, 96, 1024, accuracy_level=level, weight_format=kernel.weight_format)
    case.bias[:] = 0
    a = getattr(rng, distribution)(size=(40, 1024)).astype(np.float32)
    exact, _ = oracle.evaluate(case, a)
    promised = {1: 1e-6, 3: 3e-3, 4: 1e-2}
    bound = (
        promised if make(case, kernel).kernel_for(len(a)) in oracle.BFLOAT16_KERNELS else oracle.RELATIVE_RMS
    )
    assert oracle.relative_rms(run(case, a, kernel), exact) <= bound[level]


def unit_weights(k: int, weight_format: str, **attributes: object) -> Case:
    """Y = A . H: each output column picks one k."""
    fmt = WEIGHT_FORMATS[weight_format]
    codes = pack_codes(fmt.encode(np.eye(k)), fmt)
    scales, one = np.full((k, k // BLOCK_SIZE), SCALE_BIAS, np.uint8), np.ones(k, np.float32)
    return Case(codes, scales, k, column_scale=one, bias=one * 0, weight_format=weight_format, **attributes)  # type: ignore[arg-type]


@each_kernel
@pytest.mark.parametrize("rotation", [32, 64, 128])
def test_rotation_is_the_same_bits_everywhere(kernel: Row, rotation: int) -> None:
    rng = np.random.default_rng(rotation)
    a = (rng.standard_normal((40, 128)) * 10.0 ** rng.integers(-6, 6, (40, 128))).astype(np.float32)
    y = run(unit_weights(128, kernel.weight_format, rotation=rotation, accuracy_level=1), a, kernel)
    np.testing.assert_array_equal(y, hadamard_rotate(a, rotation))


@each_kernel
@pytest.mark.parametrize("level", [1, 3, 4])
def test_how_far_a_value_moves(kernel: Row, level: int) -> None:
    """With unit weights Y is A itself: no value may move further than its level allows, and no block as a whole."""
    case = unit_weights(256, kernel.weight_format, accuracy_level=level)
    a = np.random.default_rng(11).laplace(size=(200, 256)).astype(np.float32)
    if make(case, kernel).kernel_for(len(a)) in oracle.BFLOAT16_KERNELS:
        pytest.skip("rounds each value to bfloat16 instead: its own bound is in test_oracle")
    moved = (run(case, a, kernel).astype(np.float64) - a).reshape(-1, BLOCK_SIZE)
    absmax = np.abs(a).reshape(-1, BLOCK_SIZE).max(axis=1, keepdims=True)
    step = absmax * oracle.LARGEST_ROUNDING.get(level, 2.0**-24)
    assert np.abs(moved / step).max() <= 1.004
    assert abs((moved / step).mean()) < 0.02


@each_row
def test_every_code_and_scale(kernel: Row) -> None:
    """One-hot A picks single weights: all codes times all 256 scales, exact in float; NaN takes its whole column."""
    fmt = WEIGHT_FORMATS[kernel.weight_format]
    every_code = np.arange(1 << fmt.bits, dtype=np.uint8)
    if fmt.bits == 4:
        every_code = np.concatenate([every_code, every_code[::-1]])
    rows = every_code.reshape(-1, BLOCK_SIZE)
    n = 256 * len(rows)
    case = Case(
        np.tile(pack_codes(rows, fmt), (256, 1)),
        np.repeat(np.arange(256, dtype=np.uint8), len(rows))[:, None],
        32,
        accuracy_level=1,
        column_scale=np.ones(n, np.float32),
        bias=np.zeros(n, np.float32),
        weight_format=kernel.weight_format,
    )
    y = run(case, np.eye(32, dtype=np.float32), kernel)
    with np.errstate(over="ignore"):
        expected = case.weights.T.astype(np.float32)
    expected[:, np.isnan(expected).any(axis=0)] = np.nan
    np.testing.assert_array_equal(y, expected)


@each_kernel
@pytest.mark.parametrize(("activation_format", "level"), FORMATS_AND_LEVELS)
@pytest.mark.parametrize("byte", [0, 1, 2, 62, 63, 126, 143, 144, 200, 252, 253, 254])
def test_extreme_weight_scales(kernel: Row, activation_format: str, level: int, byte: int) -> None:
    rng = np.random.default_rng(byte)
    case = case_for(kernel, rng, 20, 96, activation_format, level)
    case.scales[:] = byte
    a = (rng.standard_normal((3, 96)) * 2.0 ** np.clip(126 - byte, -100, 100)).astype(np.float32)
    check(case, a, kernel, f"{kernel} scale {byte}")


@each_kernel
@pytest.mark.parametrize(("activation_format", "level"), FORMATS_AND_LEVELS)
@pytest.mark.parametrize("exponent", [-149, -140, -126, -115, -100, 90, 99, 110, 126])
def test_extreme_activations(kernel: Row, activation_format: str, level: int, exponent: int) -> None:
    """Magnitudes from float's smallest subnormals to its largest numbers, with weight scales that bring them back."""
    rng = np.random.default_rng(exponent + 200)
    case = case_for(kernel, rng, 20, 96, activation_format, level)
    case.scales[:] = np.clip(127 - exponent, 1, 252)
    case.bias[:] = 0
    a = np.ldexp(rng.uniform(-1.9, 1.9, (4, 96)), exponent).astype(np.float32)
    a[2, 40:] = 0
    check(case, a, kernel, f"{kernel} 2^{exponent}")


@each_kernel
@pytest.mark.parametrize(("activation_format", "level"), FORMATS_AND_LEVELS)
@pytest.mark.parametrize("byte", [63, 127, 143])
@pytest.mark.parametrize("exponent", [-80, -63, -56, -54, -52, -45, -20, 60, 98])
def test_small_and_large_activations(
    kernel: Row, activation_format: str, level: int, byte: int, exponent: int
) -> None:
    """Around the ranges within which the integer kernels add exponents (63 to 143 of weights); zeros beside them."""
    if exponent + byte - SCALE_BIAS < -130:
        pytest.skip("results are subnormal: their spacing is no error of the kernel")
    rng = np.random.default_rng(exponent + byte + 100)
    case = case_for(kernel, rng, 20, 96, activation_format, level)
    case.scales[:] = byte
    case.bias[:] = 0
    a = np.ldexp(rng.uniform(-1.9, 1.9, (4, 96)), exponent).astype(np.float32)
    a[1, :32], a[2, 64:] = 0, np.ldexp(a[2, 64:], -8)
    check(case, a, kernel, f"{kernel} 2^{exponent} scale {byte}")


@each_kernel
@pytest.mark.parametrize(("activation_format", "level"), FORMATS_AND_LEVELS)
def test_nan_and_infinity(kernel: Row, activation_format: str, level: int) -> None:
    """NaN in a row of A makes that row NaN and no other; a NaN scale makes that column NaN and no other."""
    rng = np.random.default_rng(5)
    case = case_for(kernel, rng, 18, 64, activation_format, level)
    a = rng.standard_normal((5, 64)).astype(np.float32)
    a[1, 3], a[3, 40] = np.nan, np.inf
    case.scales[7, 1] = SCALE_NAN  # the integer kernels leave such weights to the float kernels
    y = run(case, a, kernel)
    assert np.isnan(y[1]).all()
    assert np.isnan(y[:, 7]).all()
    assert not np.isfinite(
        y[3]
    ).any()  # infinity times any weight: infinity, or NaN for a zero weight or inside Q
    keep = np.ix_([0, 2, 4], [c for c in range(18) if c != 7])
    assert np.isfinite(y[keep]).all()
    check(case, a, kernel)


@each_kernel
def test_a_nan_scale_of_a_zero_block_is_nan(kernel: Row) -> None:
    case = case_for(kernel, np.random.default_rng(6), 3, 32)
    case.codes[1], case.scales[1] = 0, SCALE_NAN
    y = run(case, np.zeros((1, 32), np.float32), kernel)
    np.testing.assert_array_equal(np.isnan(y[0]), [False, True, False])


@each_kernel
def test_unaligned_inputs_and_outputs(kernel: Row) -> None:
    rng = np.random.default_rng(7)
    case = case_for(kernel, rng, 37, 100)
    for offset in (1, 3, 7):
        buffer = np.empty(5 * 100 + offset, np.float32)
        a = buffer[offset:].reshape(5, 100)
        a[:] = rng.standard_normal((5, 100))
        check(case, a, kernel, f"{kernel} offset {offset}")


@each_kernel
def test_threads_do_not_change_a_bit(kernel: Row) -> None:
    rng = np.random.default_rng(8)
    case = case_for(kernel, rng, 700, 512)
    a = rng.standard_normal((33, 512)).astype(np.float32)
    one = run(case, a, kernel)
    for threads in (2, 3, 8):
        np.testing.assert_array_equal(run(case, a, kernel, threads), one)


@each_kernel
@pytest.mark.parametrize(("activation_format", "level"), [("none", 1), ("none", 3), ("mxfp4", 0)])
def test_many_rows_are_computed_as_few_are(kernel: Row, activation_format: str, level: int) -> None:
    """More rows than are prepared at once: the same bits as of pieces that are. 120 rows are whole panels of 4, 8, 10
    or 12 rows, and kernels with panels of other heights compute a row in the same way in each of them."""
    if kernel.name == "reference":
        pytest.skip("prepares nothing")
    rng = np.random.default_rng(12)
    case = case_for(kernel, rng, 18, 16384, activation_format, level)
    a = rng.standard_normal((480, 16384)).astype(np.float32)
    a[[1, 300]] *= 2.0**120  # computed apart: too large
    a[-1, 5] = np.nan
    y = run(case, a, kernel, threads=2)
    pieces = [run(case, piece, kernel) for piece in np.split(a, 4)]
    np.testing.assert_array_equal(y, np.concatenate(pieces))
    some = [0, 1, 119, 250, 300, 478, 479]
    oracle.assert_close(case, a[some], y[some], f"{kernel}", make(case, kernel).kernel_for(len(a)))


RESIDENT = Path("/proc/self/statm")


def resident_bytes() -> int:
    return int(RESIDENT.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not RESIDENT.exists(), reason="reads Linux's count of resident pages")
@each_kernel
def test_memory_of_a_large_product_is_given_back(kernel: Row) -> None:
    """What stays is the workspace of matmul.cc, 4 MiB, and a row of float; 4 MiB more are the allocator's own."""
    if kernel.name == "reference":
        pytest.skip("prepares nothing")
    case = case_for(kernel, np.random.default_rng(13), 16, 4096)
    node = make(case, kernel)
    node(np.zeros((1, 4096), np.float32))
    before = resident_bytes()
    node(np.zeros((12000, 4096), np.float32))
    assert resident_bytes() - before < 8 << 20


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kernel=st.sampled_from(ROWS_OF_KERNELS),
    shape=st.tuples(st.integers(0, 40), st.integers(1, 80), st.integers(1, 300)),
    rotation=st.sampled_from([1, 32]),
    attributes=st.sampled_from(FORMATS_AND_LEVELS),
    dtype=st.sampled_from(DTYPES),
    spread=st.integers(0, 60),
)
def test_random_problems(
    seed: int,
    kernel: Row,
    shape: tuple[int, int, int],
    rotation: int,
    attributes: tuple[str, int],
    dtype: type,
    spread: int,
) -> None:
    """Any shape; blocks whose magnitudes differ by up to 2^spread; random codes and scales, not quantised ones."""
    rng = np.random.default_rng(seed)
    m, n, k = shape
    case = case_for(kernel, rng, n, k, attributes[0], attributes[1], rotation)
    fmt = WEIGHT_FORMATS[kernel.weight_format]
    codes = rng.integers(0, 1 << fmt.bits, (n, blocks_of(k) * BLOCK_SIZE), dtype=np.uint8)
    if rotation == 1:
        codes[:, k:] = 0  # the padded tail
    case.codes[:] = pack_codes(codes, fmt)
    case.scales[:] = rng.integers(127 - spread, 128 + spread, case.scales.shape)
    with np.errstate(over="ignore"):
        a = (rng.standard_normal((m, k)) * 2.0 ** rng.integers(-spread, spread + 1, (m, k))).astype(dtype)
    check(case, a, kernel, f"{kernel} {shape}", threads=seed % 3 + 1)


# (what the CPU has, kernel for "none" level 3 and for level 1), by an example of each kind
CPUS = {
    "anything": ([], "portable", "portable"),
    "Zen 3": (["avx2_fma"], "avx2_int8", "avx2"),
    "Alder Lake": (["avx2_fma", "avx_vnni"], "avx_vnni", "avx2"),
    "Skylake server": (["avx2_fma", "avx512"], "avx512_bw", "avx512"),
    "Cascade Lake": (["avx2_fma", "avx512", "avx512_vnni"], "avx512_vnni_bw", "avx512"),
    "Zen 4": (["avx2_fma", "avx512", "avx512_vnni", "avx512_vnni_vbmi"], "avx512_vnni", "avx512"),
}


@pytest.mark.parametrize("cpu", CPUS)
def test_what_each_cpu_runs(cpu: str) -> None:
    features, level_3, level_1 = CPUS[cpu]
    if EMULATED and level_3 == "avx_vnni":
        pytest.skip("this build encodes AVX-VNNI as AVX-512 does and asks for that")
    select = partial(_native.select_kernel, features, "")
    assert select("none", 3, 1) == select("none", 4, 1) == select("mxfp4", 0, 1) == level_3
    assert select("none", 1, 1) == select("mxfp8_e4m3", 0, 1) == level_1


@pytest.mark.skipif(EMULATED, reason="this build asks for less")
def test_what_this_cpu_has() -> None:
    """As the kernel of the operating system, which reads the same bits, lists it."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    needs = {
        "avx2_fma": {"avx2", "fma", "f16c"},
        "avx_vnni": {"avx2", "avx_vnni"},
        "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
        "avx512_vnni": {"avx512f", "avx512_vnni"},
        "avx512_vnni_vbmi": {"avx512_vnni", "avx512vbmi"},
        "amx_bf16": {"amx_tile", "amx_bf16"},
    }
    assert _native.describe()["cpu"] == {name: need <= flags for name, need in needs.items()}


def test_selection_is_a_pure_function_of_features() -> None:
    """A kernel that the CPU lacks is never chosen, whatever is asked for."""
    order = [k["name"] for k in _native.describe()["kernels"]]
    assert order[-1] == "reference"
    needs = {
        "avx2": {"avx2_fma"},
        "avx2_int8": {"avx2_fma"},
        "avx_vnni": {"avx_vnni"},
        "avx512": {"avx512"},
        "avx512_bw": {"avx512"},
        "avx512_vnni_bw": {"avx512_vnni"},
        "avx512_vnni": {"avx512_vnni_vbmi"},
        "avx512_amx": {"avx512", "amx_bf16"},
        "portable": set(),
    }
    if EMULATED:  # such a build asks for less
        needs |= {"avx512_amx": {"avx512"}, "avx_vnni": {"avx512_vnni"}}
    features = list(_native.describe()["cpu"])
    for has in itertools.chain.from_iterable(
        itertools.combinations(features, n) for n in range(len(features) + 1)
    ):
        for (activation_format, level), rows in itertools.product(FORMATS_AND_LEVELS, (1, 16, 1000)):
            chosen = _native.select_kernel(list(has), "", activation_format, level, rows)
            assert needs[chosen] <= set(has), chosen
    for activation_format, level in FORMATS_AND_LEVELS:
        assert _native.select_kernel(features, "", activation_format, level, 12) == "avx512_amx"
    for activation_format, level in (("none", 3), ("none", 4), ("mxfp4", 0), ("mxfp6_e2m3", 0)):  # int8 terms
        assert _native.select_kernel(features, "", activation_format, level, 11) == "avx512_vnni"
    assert _native.select_kernel(features, "", "none", 4, 12, "mxint8") == "avx512_amx_mxint8"
    assert _native.select_kernel(features, "", "none", 4, 11, "mxint8") == "avx512_vnni_mxint8"
    assert _native.select_kernel(features, "avx2", "none", 3, 1000) == "avx2"
    for count, name in enumerate(["portable", "avx2", "avx512"]):
        for weight_format in ("mxfp6_e2m3", "mxfp6_e3m2", "mxfp8_e4m3"):
            has = ["avx2_fma", "avx512"][:count]
            assert _native.select_kernel(has, "", "none", 3, 16, weight_format) == f"{name}_byte"
    with pytest.raises(ValueError, match="this CPU cannot run it"):
        _native.select_kernel(["avx2_fma"], "avx512", "none", 3)
    with pytest.raises(ValueError, match="unknown kernel 'sse9', expected one of avx512_amx, avx512_vnni"):
        _native.select_kernel(features, "sse9", "none", 3)


@pytest.mark.parametrize("threads", [-1, -(2**31)])
def test_fewer_than_no_threads_are_refused(threads: int) -> None:
    case = random_case(np.random.default_rng(14), 4, 32)
    node = _native.MatMul(case.codes, case.scales, case.column_scale, case.bias, K=32)
    with pytest.raises(ValueError, match=f"^threads: got {threads}, expected 0 or more$"):
        node(np.zeros((2, 32), np.float32), threads)
    with pytest.raises(ValueError, match=f"^threads: got {threads}, expected 0 or more$"):
        _native.quantize_weights(np.zeros((4, 32), np.float32), "even", threads=threads)


def test_override_variable() -> None:
    code = (
        "import numpy as np; from mxort import _native as n; o = np.ones(1, np.float32);"
        "print(n.MatMul(np.zeros((1, 16), np.uint8), np.zeros((1, 1), np.uint8), o, o, K=32).kernel)"
    )

    def chosen(value: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "MXORT_KERNEL": value}
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )

    assert chosen("portable").stdout.strip() == "portable"
    assert "unknown kernel 'nonsense', expected one of" in chosen("nonsense").stderr


def test_packed_weights_are_shared_by_content() -> None:
    case = random_case(np.random.default_rng(9), 64, 512)
    args = (case.column_scale, case.bias)
    first = _native.MatMul(case.codes, case.scales, *args, K=512)
    second = _native.MatMul(case.codes.copy(), case.scales.copy(), *args, K=512)
    other_codes = case.codes.copy()
    other_codes[0, 0] ^= 1
    other = _native.MatMul(other_codes, case.scales, *args, K=512)
    assert first.packed_address == second.packed_address
    assert first.packed_address != other.packed_address


def test_bad_arguments() -> None:
    case = random_case(np.random.default_rng(10), 4, 32)

    def make(**changes: object) -> object:
        values: dict[str, object] = {
            "codes": case.codes,
            "scales": case.scales,
            "column_scale": case.column_scale,
        }
        values |= {"bias": case.bias, "K": 32} | changes
        return _native.MatMul(**values)

    with pytest.raises(ValueError, match=r"input B: got shape \[4,15\], expected \[4,16\]"):
        make(codes=np.zeros((4, 15), np.uint8))
    with pytest.raises(ValueError, match=r"input B_scale: got shape \[4,2\], expected \[4,1\]"):
        make(scales=np.zeros((4, 2), np.uint8))
    with pytest.raises(ValueError, match="attribute rotation: got 7, expected 1, 32, 64 or 128"):
        make(rotation=7)
    with pytest.raises(
        ValueError, match=r"attribute rotation: got 64 with K=32, expected a divisor of .* 32"
    ):
        make(rotation=64)
    with pytest.raises(ValueError, match="attribute accuracy_level: got 2, expected 0, 1, 3 or 4"):
        make(accuracy_level=2)
    with pytest.raises(
        ValueError, match="attribute activation_format: got 'int8', expected one of none, mxfp8_e4m3"
    ):
        make(activation_format="int8")
    node = make()
    with pytest.raises(ValueError, match=r"input A: got shape \[1,31\], expected \[..., 32\]"):
        node(np.zeros((1, 31), np.float32))  # type: ignore[operator]
    with pytest.raises(ValueError, match="A: got dtype float64, expected float32, float16 or bfloat16"):
        node(np.zeros((1, 32)))  # type: ignore[operator]
