"""Conversions between wide and small formats, exhaustively where the input is small."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hipsim import harness
from hipsim.snippet import as_f32, f32_bits, run_lanes
from mxort import formats

rng = np.random.default_rng(21)
SMALL = {
    "fp4": formats.E2M1,
    "fp8": formats.E4M3,
    "bf8": formats.E5M2,
    "fp6": formats.E2M3,
    "bf6": formats.E3M2,
}


def bf16_bits(x: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Round to nearest even in integers: an independent statement of the rule."""
    b = x.view(np.uint32).astype(np.uint64)
    return (((b + 0x7FFF + (b >> 16 & 1)) >> 16) & 0xFFFF).astype(np.uint32)


def wide_pattern(x: NDArray[np.float32], kind: str) -> NDArray[np.uint32]:
    return {
        "f32": f32_bits(x),
        "f16": np.clip(x, -65504, 65504).astype(np.float16).view(np.uint16).astype(np.uint32),
        "bf16": bf16_bits(x),
    }[kind]


def wide_value(x: NDArray[np.float32], kind: str) -> NDArray[np.float64]:
    if kind == "f16":
        return x.astype(np.float16).astype(np.float64)
    return ((bf16_bits(x) << 16).view(np.float32) if kind == "bf16" else x).astype(np.float64)


def numbers(fmt: formats.ElementFormat, scale: float) -> NDArray[np.float32]:
    """Codes, midpoints between codes (ties), and random values within range."""
    m = fmt.magnitudes
    mid = (m[1:] + m[:-1]) / 2
    pool = np.concatenate(
        [m, -m, mid, -mid, rng.uniform(-fmt.max, fmt.max, 40), rng.standard_normal(24) * fmt.max / 64]
    )
    return (np.resize(rng.permutation(pool), 128) * scale).astype(np.float32)


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("name", ["fp4", "fp8", "bf8"])
@pytest.mark.parametrize("exponent", [-5, 0, 3])
def test_narrow(sim: harness.Sim, name: str, kind: str, exponent: int) -> None:
    """Division by the scale's power of two, nearest even; low half first; every position."""
    fmt, scale = SMALL[name], 2.0**exponent
    x = numbers(fmt, scale)
    if kind == "f16":
        x = np.clip(x, -60000, 60000)
    first, second = x[:64], x[64:]
    scale_bits = f32_bits(np.full(64, scale * 1.5))  # the mantissa does not count
    if kind == "f32":
        rows, sources = [f32_bits(first), f32_bits(second), scale_bits], "v10, v11, v12"
    else:
        rows, sources = [wide_pattern(first, kind) | wide_pattern(second, kind) << 16, scale_bits], "v10, v11"
    positions = [(0, 0), (1, 0), (0, 1), (1, 1)] if name == "fp4" else [(0, 0), (0, 1)]
    code = "v_mov_b32 v100, 0\n"
    for n, (low, high) in enumerate(positions):
        select = (
            f"op_sel:[0,0,{low},{high}]"
            if name == "fp4"
            else f"op_sel:[{'0,0,0,' if kind == 'f32' else '0,0,'}{high}]"
        )
        code += f"v_mov_b32 v{100 + n}, -1\nv_cvt_scalef32_pk_{name}_{kind} v{100 + n}, {sources} {select}\n"
    got = run_lanes(sim, code, rows, [f"v{100 + n}" for n in range(len(positions))])
    bits = fmt.bits
    want = (
        fmt.encode(wide_value(first, kind) / scale).astype(np.uint32)
        | fmt.encode(wide_value(second, kind) / scale).astype(np.uint32) << bits
    )
    mask = (1 << (2 * bits)) - 1
    for n in range(len(positions)):
        shift = (8 if name == "fp4" else 16) * n
        np.testing.assert_array_equal(got[n] >> shift & mask, want)
        keep = 0xFFFFFFFF & ~(mask << shift)
        np.testing.assert_array_equal(got[n] & keep, keep)


@pytest.mark.parametrize("name", ["fp4", "fp6", "bf6"])
def test_fp4_and_fp6_saturate(sim: harness.Sim, name: str) -> None:
    fmt = SMALL[name]
    x = np.array([fmt.max * 1.01, fmt.max * 100, np.inf, -np.inf] * 16, np.float32)
    if name == "fp4":
        got = (
            run_lanes(
                sim,
                "v_mov_b32 v100, 0\nv_cvt_scalef32_pk_fp4_f32 v100, v10, v10, 1.0",
                [f32_bits(x)],
                ["v100"],
            )[0]
            & 15
        )
    else:
        got = (
            run_lanes(
                sim,
                moves(32) + f"v_cvt_scalef32_2xpk16_{name}_f32 v[100:105], v[40:55], v[56:71], 1.0",
                [f32_bits(x)],
                ["v100"],
            )[0]
            & 63
        )
    limit = fmt.encode(fmt.max)
    np.testing.assert_array_equal(got, np.where(np.signbit(x), limit | fmt.sign_bit, limit))


def moves(n: int) -> str:
    return "".join(f"v_mov_b32 v{40 + k}, v10\n" for k in range(n))


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("name", ["fp4", "fp8", "bf8"])
def test_widen(sim: harness.Sim, name: str, kind: str) -> None:
    """Every code, at every position, times the scale's power of two."""
    fmt = SMALL[name]
    bits = fmt.bits
    codes = (
        np.arange(128, dtype=np.uint32) % (1 << bits)
        if bits == 4
        else np.arange(128, dtype=np.uint32) * 2 + (np.arange(128) % 2)
    )
    positions = [(0, 0), (1, 0), (0, 1), (1, 1)] if bits == 4 else [(0, 0), (1, 0)]
    for n, (low, high) in enumerate(positions):
        word = (codes[:64] | codes[64:] << bits) << ((8 if bits == 4 else 16) * n)
        select = f"op_sel:[{low},{high},0]" if bits == 4 else f"op_sel:[{low},0,0]"
        d = "v[100:101]" if kind == "f32" else "v100"
        got = run_lanes(
            sim,
            f"v_cvt_scalef32_pk_{kind}_{name} {d}, v10, v11 {select}",
            [word, f32_bits(np.full(64, 8.0))],
            ["v100", "v101"] if kind == "f32" else ["v100"],
        )
        if kind == "f32":
            pair = [as_f32(got[0]), as_f32(got[1])]
        else:
            halves = [got[0] & 0xFFFF, got[0] >> 16]
            pair = [
                (h << 16).view(np.float32)
                if kind == "bf16"
                else h.astype(np.uint16).view(np.float16).astype(np.float32)
                for h in halves
            ]
        with np.errstate(over="ignore"):
            for p, c in zip(pair, (codes[:64], codes[64:]), strict=True):
                want = fmt.values[c] * 8
                np.testing.assert_array_equal(
                    p, want.astype(np.float16).astype(np.float32) if kind == "f16" else want
                )


@pytest.mark.parametrize("name", ["fp6", "bf6"])
@pytest.mark.parametrize("kind", ["f16", "bf16", "f32"])
def test_thirty_two_at_once(sim: harness.Sim, name: str, kind: str) -> None:
    """32 numbers to 192 bits, code k at bit 6k; the f32 form interleaves its two sources. And back."""
    fmt = SMALL[name]
    x = (
        (np.resize(numbers(fmt, 4.0), 64 * 32) * rng.choice([1.0, 0.5], 64 * 32))
        .astype(np.float32)
        .reshape(64, 32)
    )
    if kind == "f32":
        rows = [f32_bits(x[:, k]) for k in (*range(0, 32, 2), *range(1, 32, 2))]
        narrow = f"v_cvt_scalef32_2xpk16_{name}_f32 v[100:105], v[10:25], v[26:41], 4.0"
    else:
        rows = [wide_pattern(x[:, k], kind) | wide_pattern(x[:, k + 1], kind) << 16 for k in range(0, 32, 2)]
        narrow = f"v_cvt_scalef32_pk32_{name}_{kind} v[100:105], v[10:25], 4.0"
    registers = 32 if kind == "f32" else 16
    widen = f"v_cvt_scalef32_pk32_{kind}_{name} v[110:{109 + registers}], v[100:105], 4.0"
    got = run_lanes(
        sim, f"{narrow}\n{widen}", rows, [f"v{k}" for k in (*range(100, 106), *range(110, 110 + registers))]
    )
    stream = np.unpackbits(np.ascontiguousarray(got[:6].T).view(np.uint8), axis=1, bitorder="little").reshape(
        64, 32, 6
    )
    codes = np.packbits(stream, axis=2, bitorder="little")[:, :, 0]
    want = fmt.encode(np.stack([wide_value(x[:, k], kind) for k in range(32)], axis=1) / 4)
    np.testing.assert_array_equal(codes, want)
    if kind == "f32":
        back = as_f32(got[6:]).T
    else:
        halves = np.stack([got[6:] & 0xFFFF, got[6:] >> 16], axis=1).reshape(32, 64).T
        back = (
            (halves << 16).view(np.float32)
            if kind == "bf16"
            else halves.astype(np.uint16).view(np.float16).astype(np.float32)
        )
    np.testing.assert_array_equal(back, fmt.values[want] * 4)


def test_to_bf16(sim: harness.Sim) -> None:
    x = np.concatenate(
        [rng.standard_normal(56), [0, -0.0, np.inf, -np.inf, 3.3961776e38, 1e-40, 1.00390625, 1.01171875]]
    ).astype(np.float32)
    got = run_lanes(
        sim,
        "v_cvt_pk_bf16_f32 v100, v10, v11\nv_cvt_f32_bf16 v101, v100",
        [f32_bits(x), f32_bits(x[::-1].copy())],
        ["v100", "v101"],
    )
    np.testing.assert_array_equal(got[0] & 0xFFFF, bf16_bits(x))
    np.testing.assert_array_equal(got[0] >> 16, bf16_bits(x[::-1].copy()))
    np.testing.assert_array_equal(got[1], bf16_bits(x) << 16)


def test_unscaled_fp8(sim: harness.Sim) -> None:
    x = numbers(formats.E4M3, 1.0)
    got = run_lanes(
        sim,
        "v_mov_b32 v100, 0\nv_cvt_pk_fp8_f32 v100, v10, v11\nv_cvt_pk_f32_fp8 v[102:103], v100",
        [f32_bits(x[:64]), f32_bits(x[64:])],
        ["v100", "v102", "v103"],
    )
    a, b = formats.E4M3.encode(x[:64]), formats.E4M3.encode(x[64:])
    np.testing.assert_array_equal(got[0], a.astype(np.uint32) | b.astype(np.uint32) << 8)
    np.testing.assert_array_equal(as_f32(got[1]), formats.E4M3.values[a])
    np.testing.assert_array_equal(as_f32(got[2]), formats.E4M3.values[b])


def test_integers(sim: harness.Sim) -> None:
    x = np.array([0, 1, -1, 2147483647, -2147483648, 16777217, 12345678, -7] * 8, np.int64).astype(np.int32)
    got = run_lanes(
        sim,
        (
            "v_cvt_f32_i32 v100, v10\nv_cvt_f32_u32 v101, v10\nv_cvt_i32_f32 v102, v100\n"
            "v_cvt_f32_ubyte2 v103, v10"
        ),
        [x.view(np.uint32)],
        ["v100", "v101", "v102", "v103"],
    )
    np.testing.assert_array_equal(as_f32(got[0]), x.astype(np.float32))
    np.testing.assert_array_equal(as_f32(got[1]), x.view(np.uint32).astype(np.float32))
    np.testing.assert_array_equal(
        got[2].view(np.int32),
        np.clip(x.astype(np.float32).astype(np.float64), -(2**31), 2**31 - 1).astype(np.int64),
    )
    np.testing.assert_array_equal(as_f32(got[3]), (x.view(np.uint32) >> 16 & 255).astype(np.float32))
    y = f32_bits(np.array([-1.5, 1.5, 2.5, 4.3e9, -4.3e9, np.nan, 1e-3, -0.9] * 8))
    got = run_lanes(sim, "v_cvt_i32_f32 v100, v10\nv_cvt_u32_f32 v101, v10", [y], ["v100", "v101"])
    assert got[0][:8].view(np.int32).tolist() == [-1, 1, 2, 2147483647, -2147483648, 0, 0, 0]
    assert got[1][:8].tolist() == [0, 1, 2, 4294967295, 0, 0, 0, 0]
