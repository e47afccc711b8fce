"""Vector ALU opcodes: expected values from the ISA's definitions, written in numpy or plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from hipsim import harness
from hipsim.snippet import as_f32, f32_bits, run_lanes

U = NDArray[np.uint32]
rng = np.random.default_rng(7)
EDGES = np.array(
    [
        0,
        1,
        2,
        31,
        32,
        33,
        0x7F,
        0x80,
        0xFF,
        0x100,
        0x7FFF,
        0x8000,
        0xFFFF,
        0x10000,
        0x7FFFFFFF,
        0x80000000,
        0xFFFFFFFF,
    ],
    np.uint32,
)


def ints(seed: int) -> U:
    r = np.random.default_rng(seed)
    return np.concatenate([r.permutation(EDGES), r.integers(0, 2**32, 64 - len(EDGES), dtype=np.uint32)])


A, B, C = ints(1), ints(2), ints(3)
M32 = 0xFFFFFFFF


def s32(x: int) -> int:
    return x - 2**32 if x & 0x80000000 else x


def saturated(x: int) -> int:
    return max(-(2**31), min(2**31 - 1, x))


def s16(x: int) -> int:
    x &= 0xFFFF
    return x - 2**16 if x & 0x8000 else x


def bfe(a: int, o: int, n: int, signed: bool) -> int:
    o, n = o & 31, n & 31
    v = a >> o & ((1 << n) - 1)
    if signed and n:
        if o + n >= 32:
            return s32(a) >> o
        v -= (v >> (n - 1) & 1) << n
    return v


def perm(a: int, b: int, sel: int) -> int:
    data = (a << 32 | b).to_bytes(8, "little")
    out = 0
    for k in range(4):
        c = sel >> 8 * k & 255
        byte = (
            data[c]
            if c < 8
            else (0xFF if data[(1, 3, 5, 7)[c - 8]] & 0x80 else 0)
            if c < 12
            else 0
            if c == 12
            else 0xFF
        )
        out |= byte << 8 * k
    return out


INTEGER: list[tuple[str, Callable[[int, int, int], int]]] = [
    ("v_mov_b32 v100, v10", lambda a, b, c: a),
    ("v_not_b32 v100, v10", lambda a, b, c: ~a),
    ("v_and_b32 v100, v10, v11", lambda a, b, c: a & b),
    ("v_or_b32 v100, v10, v11", lambda a, b, c: a | b),
    ("v_xor_b32 v100, v10, v11", lambda a, b, c: a ^ b),
    ("v_xnor_b32 v100, v10, v11", lambda a, b, c: ~(a ^ b)),
    ("v_lshlrev_b32 v100, v10, v11", lambda a, b, c: b << (a & 31)),
    ("v_lshrrev_b32 v100, v10, v11", lambda a, b, c: b >> (a & 31)),
    ("v_ashrrev_i32 v100, v10, v11", lambda a, b, c: s32(b) >> (a & 31)),
    ("v_add_u32 v100, v10, v11", lambda a, b, c: a + b),
    ("v_sub_u32 v100, v10, v11", lambda a, b, c: a - b),
    ("v_subrev_u32 v100, v10, v11", lambda a, b, c: b - a),
    ("v_add_i32 v100, v10, v11", lambda a, b, c: a + b),
    ("v_sub_i32 v100, v10, v11", lambda a, b, c: a - b),
    ("v_add_i32 v100, v10, v11 clamp", lambda a, b, c: saturated(s32(a) + s32(b))),
    ("v_sub_i32 v100, v10, v11 clamp", lambda a, b, c: saturated(s32(a) - s32(b))),
    ("v_add_u32 v100, -16, v11", lambda a, b, c: b - 16),
    ("v_add_u32 v100, 0x12345, v11", lambda a, b, c: b + 0x12345),
    ("v_mul_lo_u32 v100, v10, v11", lambda a, b, c: a * b),
    ("v_mul_hi_u32 v100, v10, v11", lambda a, b, c: a * b >> 32),
    ("v_mul_hi_i32 v100, v10, v11", lambda a, b, c: s32(a) * s32(b) >> 32),
    ("v_mul_u32_u24 v100, v10, v11", lambda a, b, c: (a & 0xFFFFFF) * (b & 0xFFFFFF)),
    ("v_mad_u32_u24 v100, v10, v11, v12", lambda a, b, c: (a & 0xFFFFFF) * (b & 0xFFFFFF) + c),
    ("v_min_u32 v100, v10, v11", lambda a, b, c: min(a, b)),
    ("v_max_u32 v100, v10, v11", lambda a, b, c: max(a, b)),
    ("v_min_i32 v100, v10, v11", lambda a, b, c: min(s32(a), s32(b))),
    ("v_max_i32 v100, v10, v11", lambda a, b, c: max(s32(a), s32(b))),
    ("v_min3_u32 v100, v10, v11, v12", lambda a, b, c: min(a, b, c)),
    ("v_max3_i32 v100, v10, v11, v12", lambda a, b, c: max(s32(a), s32(b), s32(c))),
    ("v_med3_i32 v100, v10, v11, v12", lambda a, b, c: sorted((s32(a), s32(b), s32(c)))[1]),
    ("v_med3_u32 v100, v10, v11, v12", lambda a, b, c: sorted((a, b, c))[1]),
    ("v_add3_u32 v100, v10, v11, v12", lambda a, b, c: a + b + c),
    ("v_lshl_add_u32 v100, v10, v11, v12", lambda a, b, c: (a << (b & 31)) + c),
    ("v_add_lshl_u32 v100, v10, v11, v12", lambda a, b, c: ((a + b) & M32) << (c & 31)),
    ("v_lshl_or_b32 v100, v10, v11, v12", lambda a, b, c: (a << (b & 31)) | c),
    ("v_and_or_b32 v100, v10, v11, v12", lambda a, b, c: (a & b) | c),
    ("v_or3_b32 v100, v10, v11, v12", lambda a, b, c: a | b | c),
    ("v_xad_u32 v100, v10, v11, v12", lambda a, b, c: (a ^ b) + c),
    ("v_bfi_b32 v100, v10, v11, v12", lambda a, b, c: (a & b) | (~a & c)),
    ("v_bfe_u32 v100, v10, v11, v12", lambda a, b, c: bfe(a, b, c, False)),
    ("v_bfe_i32 v100, v10, v11, v12", lambda a, b, c: bfe(a, b, c, True)),
    ("v_bfe_u32 v100, v10, 4, 2", lambda a, b, c: a >> 4 & 3),
    ("v_bfm_b32 v100, v10, v11", lambda a, b, c: ((1 << (a & 31)) - 1) << (b & 31)),
    ("v_bfrev_b32 v100, v10", lambda a, b, c: int(f"{a:032b}"[::-1], 2)),
    ("v_ffbh_u32 v100, v10", lambda a, b, c: 32 - a.bit_length() if a else -1),
    ("v_ffbl_b32 v100, v10", lambda a, b, c: (a & -a).bit_length() - 1),
    ("v_bcnt_u32_b32 v100, v10, v11", lambda a, b, c: a.bit_count() + b),
    ("v_alignbit_b32 v100, v10, v11, v12", lambda a, b, c: (a << 32 | b) >> (c & 31)),
    ("v_alignbyte_b32 v100, v10, v11, v12", lambda a, b, c: (a << 32 | b) >> 8 * (c & 3)),
    ("v_perm_b32 v100, v10, v11, v12", perm),
    ("v_prng_b32 v100, v10", lambda a, b, c: a << 1 ^ (197 if a >> 31 else 0)),
    ("v_bitop3_b32 v100, v10, v11, v12 bitop3:0xca", lambda a, b, c: (a & b) | (~a & c)),
    ("v_bitop3_b32 v100, v10, v11, v12 bitop3:0x96", lambda a, b, c: a ^ b ^ c),
    ("v_bitop3_b32 v100, v10, v11, v12 bitop3:0xe8", lambda a, b, c: (a & b) | (a & c) | (b & c)),
    ("v_add_u16 v100, v10, v11", lambda a, b, c: (a + b) & 0xFFFF),
    ("v_mul_lo_u16 v100, v10, v11", lambda a, b, c: (a & 0xFFFF) * (b & 0xFFFF) & 0xFFFF),
    ("v_lshlrev_b16 v100, v10, v11", lambda a, b, c: b << (a & 15) & 0xFFFF),
    ("v_ashrrev_i16 v100, v10, v11", lambda a, b, c: s16(b) >> (a & 15) & 0xFFFF),
    ("v_max_i16 v100, v10, v11", lambda a, b, c: max(s16(a), s16(b)) & 0xFFFF),
    (
        "v_pk_add_u16 v100, v10, v11",
        lambda a, b, c: ((a + b) & 0xFFFF) | ((a >> 16) + (b >> 16) & 0xFFFF) << 16,
    ),
    (
        "v_pk_mul_lo_u16 v100, v10, v11 op_sel_hi:[1,0]",
        lambda a, b, c: (a * (b & 0xFFFF) & 0xFFFF) | ((a >> 16) * (b & 0xFFFF) & 0xFFFF) << 16,
    ),
    (
        "v_pk_lshlrev_b16 v100, 4, v11 op_sel_hi:[0,1]",
        lambda a, b, c: (b << 4 & 0xFFFF) | ((b >> 16) << 4 & 0xFFFF) << 16,
    ),
    (
        "v_pk_max_i16 v100, v10, v11",
        lambda a, b, c: (max(s16(a), s16(b)) & 0xFFFF) | (max(s16(a >> 16), s16(b >> 16)) & 0xFFFF) << 16,
    ),
    ("v_cvt_pk_u16_u32 v100, v10, v11", lambda a, b, c: min(a, 65535) | min(b, 65535) << 16),
    (
        "v_cvt_pk_i16_i32 v100, v10, v11",
        lambda a, b, c: (
            (max(-32768, min(32767, s32(a))) & 0xFFFF) | (max(-32768, min(32767, s32(b))) & 0xFFFF) << 16
        ),
    ),
    ("v_pack_b32_f16 v100, v10, v11 op_sel:[1,0,0]", lambda a, b, c: a >> 16 | (b & 0xFFFF) << 16),
    (
        "v_ashr_pk_i8_i32 v100, v10, v11, 3",
        lambda a, b, c: (
            (max(-128, min(127, s32(a) >> 3)) & 255) | (max(-128, min(127, s32(b) >> 3)) & 255) << 8
        ),
    ),
    ("v_accvgpr_write_b32 a5, v10\nv_accvgpr_read_b32 v100, a5", lambda a, b, c: a),
    # SDWA: selected bytes and words, kept or cleared rest
    (
        (
            "v_mov_b32 v100, v12\n"
            "v_or_b32_sdwa v100, v10, v11 dst_sel:WORD_1 dst_unused:UNUSED_PRESERVE "
            "src0_sel:BYTE_1 src1_sel:WORD_0"
        ),
        lambda a, b, c: (c & 0xFFFF) | ((a >> 8 & 255) | (b & 0xFFFF)) << 16,
    ),
    (
        "v_add_u32_sdwa v100, v10, v11 dst_sel:BYTE_2 dst_unused:UNUSED_PAD src0_sel:BYTE_3 src1_sel:BYTE_0",
        lambda a, b, c: ((a >> 24) + (b & 255) & 255) << 16,
    ),
    (
        "v_add_u32_sdwa v100, sext(v10), v11 dst_sel:DWORD src0_sel:BYTE_0 src1_sel:DWORD",
        lambda a, b, c: ((a & 255) ^ 128) - 128 + b,
    ),
    (
        "v_lshlrev_b32_sdwa v100, v10, v11 dst_sel:DWORD src0_sel:BYTE_0 src1_sel:WORD_1",
        lambda a, b, c: (b >> 16) << (a & 31),
    ),
    # 64 bits
    ("v_lshlrev_b64 v[100:101], 5, v[10:11]", lambda a, b, c: (a | b << 32) << 5),
    ("v_lshrrev_b64 v[100:101], 5, v[10:11]", lambda a, b, c: (a | b << 32) >> 5),
    (
        "v_lshl_add_u64 v[100:101], v[10:11], 3, v[10:11]",
        lambda a, b, c: ((a | b << 32) << 3) + (a | b << 32),
    ),
    ("v_mad_u64_u32 v[100:101], vcc, v10, v12, v[10:11]", lambda a, b, c: a * c + (a | b << 32)),
    ("v_mad_i64_i32 v[100:101], vcc, v10, v12, v[10:11]", lambda a, b, c: s32(a) * s32(c) + (a | b << 32)),
    ("v_mov_b64 v[100:101], v[10:11]", lambda a, b, c: a | b << 32),
    # carries and masks
    (
        "v_add_co_u32 v100, vcc, v10, v11\nv_addc_co_u32 v101, vcc, v11, v12, vcc",
        lambda a, b, c: (a + b & M32) | (b + c + (a + b >> 32)) << 32,
    ),
    (
        "v_sub_co_u32 v100, vcc, v10, v11\nv_subb_co_u32 v101, vcc, v11, v12, vcc",
        lambda a, b, c: (a - b & M32) | (b - c - (a < b)) << 32,
    ),
    ("v_cmp_lt_u32 vcc, v10, v11\nv_cndmask_b32 v100, v10, v12, vcc", lambda a, b, c: c if a < b else a),
    (
        "v_cmp_ge_i32_e64 s[20:21], v10, v11\nv_cndmask_b32 v100, v10, v12, s[20:21]",
        lambda a, b, c: c if s32(a) >= s32(b) else a,
    ),
    (
        "v_cmp_ne_u16 vcc, v10, v11\nv_cndmask_b32 v100, 0, 1, vcc",
        lambda a, b, c: (a & 0xFFFF) != (b & 0xFFFF),
    ),
    (
        (
            "v_mov_b32 v20, v11\nv_mov_b32 v21, v12\nv_cmp_gt_u64 vcc, v[10:11], v[20:21]\n"
            "v_cndmask_b32 v100, 0, 1, vcc"
        ),
        lambda a, b, c: (a | b << 32) > (b | c << 32),
    ),
]


@pytest.mark.parametrize(("code", "f"), INTEGER, ids=[code.replace("\n", "; ") for code, _ in INTEGER])
def test_integer(sim: harness.Sim, code: str, f: Callable[[int, int, int], int]) -> None:
    two = "v[100:101]" in code or "v101" in code
    code = code.replace("v_cndmask_b32 v100, 0, 1, vcc", "v_mov_b32 v20, 1\nv_cndmask_b32 v100, 0, v20, vcc")
    got = run_lanes(sim, code, [A, B, C], ["v100", "v101"] if two else ["v100"])
    for lane in range(64):
        want = int(f(int(A[lane]), int(B[lane]), int(C[lane])))
        value = int(got[0, lane]) | (int(got[1, lane]) << 32 if two else 0)
        assert value == want & (2**64 - 1 if two else M32), (lane, hex(A[lane]), hex(B[lane]), hex(C[lane]))


SPECIAL = np.array(
    [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-40, -1e-45, 3.4e38, 0.5, 1.5, 2.5, -2.5, 1e10, -1e10],
    np.float32,
)
FA = np.concatenate([SPECIAL, rng.standard_normal(48).astype(np.float32)])
FB = np.concatenate([rng.permutation(SPECIAL), (rng.standard_normal(48) * 100).astype(np.float32)])
FC = np.concatenate([rng.permutation(SPECIAL), rng.standard_normal(48).astype(np.float32)])


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return np.array(
        [
            math.nan if not all(map(math.isfinite, (x, y, z))) else np.float32(x * y + z)
            for x, y, z in zip(*(v.astype(float) for v in (a, b, c)), strict=True)
        ]
    )


def f64(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64)


FLOAT: list[tuple[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]]] = [
    ("v_add_f32 v100, v10, v11", lambda a, b, c: a + b),
    ("v_sub_f32 v100, v10, v11", lambda a, b, c: a - b),
    ("v_mul_f32 v100, v10, v11", lambda a, b, c: a * b),
    ("v_mul_f32 v100, -v10, |v11|", lambda a, b, c: -a * abs(b)),
    ("v_mul_f32 v100, 2.0, v11", lambda a, b, c: 2 * b),
    ("v_mul_f32 v100, 0x40490fdb, v11", lambda a, b, c: np.float32(np.pi) * b),
    ("v_mul_f32_e64 v100, v10, v11 mul:2", lambda a, b, c: 2 * (a * b)),
    (
        "v_add_f32_e64 v100, v10, v11 clamp",
        lambda a, b, c: np.where(np.isnan(a + b), 0, np.clip(a + b, 0, 1)),
    ),
    ("v_max_f32 v100, v10, v11", np.vectorize(lambda a, b, c: np.fmax(a, b))),
    ("v_min_f32 v100, v10, v11", np.vectorize(lambda a, b, c: np.fmin(a, b))),
    ("v_max3_f32 v100, v10, v11, v12", np.vectorize(lambda a, b, c: np.fmax(np.fmax(a, b), c))),
    ("v_maximum3_f32 v100, v10, v11, v12", lambda a, b, c: np.maximum(np.maximum(a, b), c)),
    ("v_minimum3_f32 v100, v10, v11, v12", lambda a, b, c: np.minimum(np.minimum(a, b), c)),
    ("v_rcp_f32 v100, v10", lambda a, b, c: (1 / f64(a)).astype(np.float32)),
    ("v_sqrt_f32 v100, v10", lambda a, b, c: np.sqrt(a)),
    ("v_rsq_f32 v100, v10", lambda a, b, c: (1 / np.sqrt(f64(a))).astype(np.float32)),
    ("v_exp_f32 v100, v10", lambda a, b, c: np.exp2(f64(a)).astype(np.float32)),
    ("v_log_f32 v100, v10", lambda a, b, c: np.log2(f64(a)).astype(np.float32)),
    ("v_floor_f32 v100, v10", lambda a, b, c: np.floor(a)),
    ("v_rndne_f32 v100, v10", lambda a, b, c: np.rint(a)),
    ("v_trunc_f32 v100, v10", lambda a, b, c: np.trunc(a)),
    ("v_ldexp_f32 v100, v10, 7", lambda a, b, c: a * 128),
    ("v_pk_add_f32 v[100:101], v[10:11], v[12:13]", lambda a, b, c: a + c),
    ("v_pk_mul_f32 v[100:101], v[10:11], v[12:13] op_sel:[1,0] op_sel_hi:[0,1]", lambda a, b, c: b * c),
    ("v_pk_mul_f32 v[100:101], v[10:11], v[12:13] neg_lo:[1,0]", lambda a, b, c: -a * c),
    ("v_pk_mov_b32 v[100:101], v[10:11], v[12:13] op_sel:[1,0]", lambda a, b, c: b),
    (
        "v_cvt_f32_f16 v20, v10\nv_cvt_f16_f32 v20, v10\nv_cvt_f32_f16 v100, v20",
        lambda a, b, c: a.astype(np.float16).astype(np.float32),
    ),
]


@pytest.mark.parametrize(("code", "f"), FLOAT, ids=[code.replace("\n", "; ") for code, _ in FLOAT])
def test_float(sim: harness.Sim, code: str, f: Callable[..., np.ndarray]) -> None:
    got = as_f32(run_lanes(sim, code, [f32_bits(FA), f32_bits(FB), f32_bits(FC), f32_bits(FC)], ["v100"])[0])
    with np.errstate(all="ignore"):
        want = np.asarray(f(FA, FB, FC), np.float32)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    "name",
    [
        "v_fma_f32 v100, v10, v11, v12",
        "v_mov_b32 v100, v12\nv_fmac_f32 v100, v10, v11",
        "v_mov_b32 v20, v11\nv_pk_fma_f32 v[100:101], v[10:11], v[20:21], v[12:13] op_sel_hi:[0,0,0]",
    ],
)
def test_fma_has_one_rounding(sim: harness.Sim, name: str) -> None:
    a, b, c = (rng.standard_normal(64).astype(np.float32) for _ in range(3))
    c = (-(a * b)).astype(np.float32)  # the difference of the two roundings is all that is left
    got = as_f32(run_lanes(sim, name, [f32_bits(x) for x in (a, b, c, c)], ["v100"])[0])
    np.testing.assert_array_equal(got, fma(a, b, c).astype(np.float32))
    assert np.count_nonzero(got)


def test_signed_zeros_of_min_and_max(sim: harness.Sim) -> None:
    a, b = f32_bits(np.full(64, 0.0)), f32_bits(np.full(64, -0.0))
    got = run_lanes(sim, "v_max_f32 v100, v10, v11\nv_min_f32 v101, v10, v11", [a, b], ["v100", "v101"])
    assert (got[0] == 0).all()
    assert (got[1] == 0x80000000).all()


def test_division(sim: harness.Sim) -> None:
    """The sequence that compilers emit for an IEEE division."""
    n, d = FA[16:] * np.float32(1e20), FB[16:] * np.float32(1e-18)
    n, d = np.resize(n, 64).astype(np.float32), np.resize(d, 64).astype(np.float32)
    # Denominators whose reciprocal is denormal, with quotients that are normal, denormal and zero.
    d[48:] = np.float32(2.0**126) * np.linspace(1, 3.99, 16, dtype=np.float32)
    n[48:] = np.resize(np.array([1e30, 3.0, 1e-3, 1e-20], np.float32), 16)
    code = """
    v_div_scale_f32 v20, s[20:21], v11, v11, v10
    v_div_scale_f32 v21, vcc, v10, v11, v10
    v_rcp_f32 v22, v20
    v_fma_f32 v23, -v20, v22, 1.0
    v_fmac_f32 v22, v23, v22
    v_mul_f32 v24, v21, v22
    v_fma_f32 v25, -v20, v24, v21
    v_fmac_f32 v24, v25, v22
    v_fma_f32 v26, -v20, v24, v21
    v_div_fmas_f32 v27, v26, v22, v24
    v_div_fixup_f32 v100, v27, v11, v10"""
    got = as_f32(run_lanes(sim, code, [f32_bits(n), f32_bits(d)], ["v100"])[0])
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got, n / d)


@pytest.mark.parametrize(
    ("name", "f"),
    [
        ("lt", np.less),
        ("eq", np.equal),
        ("le", np.less_equal),
        ("gt", np.greater),
        ("ge", np.greater_equal),
        ("neq", np.not_equal),
        ("nlt", lambda a, b: ~np.less(a, b)),
        ("nge", lambda a, b: ~np.greater_equal(a, b)),
        ("u", lambda a, b: np.isnan(a) | np.isnan(b)),
        ("o", lambda a, b: ~(np.isnan(a) | np.isnan(b))),
    ],
)
def test_float_comparisons(sim: harness.Sim, name: str, f: Callable[..., np.ndarray]) -> None:
    got = run_lanes(
        sim,
        f"v_cmp_{name}_f32 vcc, v10, v11\nv_mov_b32 v20, 1\nv_cndmask_b32 v100, 0, v20, vcc",
        [f32_bits(FA), f32_bits(FB)],
        ["v100"],
    )[0]
    np.testing.assert_array_equal(got.astype(bool), f(FA, FB))


def test_class(sim: harness.Sim) -> None:
    x = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1.0, -1.0, 1e-40] * 8, np.float32)
    got = run_lanes(
        sim,
        (
            "v_mov_b32 v20, 0x207\nv_cmp_class_f32 vcc, v10, v20\nv_mov_b32 v20, 1\n"
            "v_cndmask_b32 v100, 0, v20, vcc"
        ),
        [f32_bits(x)],
        ["v100"],
    )[0]
    np.testing.assert_array_equal(got.astype(bool), ~np.isfinite(x))


def test_exec_masks_results(sim: harness.Sim) -> None:
    code = (
        "v_mov_b32 v100, 5\ns_mov_b64 exec, 0xff00\nv_mov_b32 v100, v10\n"
        "v_cmp_eq_u32 vcc, v10, v10\ns_mov_b64 exec, -1\nv_mov_b32 v101, vcc_lo\n"
        "v_mov_b32 v102, vcc_hi"
    )
    got = run_lanes(sim, code, [A], ["v100", "v101", "v102"])
    want = np.full(64, 5, np.uint32)
    want[8:16] = A[8:16]
    np.testing.assert_array_equal(got[0], want)
    assert (got[1] == 0xFF00).all()
    assert (got[2] == 0).all()


HALVES = np.concatenate(
    [
        np.array([0, -0.0, 1, -2, 65504, 6e-8, np.inf, np.nan], np.float16),
        rng.standard_normal(120).astype(np.float16),
    ]
)
HA, HB = HALVES.view(np.uint32), HALVES[::-1].copy().view(np.uint32)


@pytest.mark.parametrize(
    ("code", "f"),
    [
        ("v_pk_add_f16 v100, v10, v11", np.add),
        ("v_pk_mul_f16 v100, v10, v11", np.multiply),
        ("v_pk_max_f16 v100, v10, v11", np.fmax),
    ],
)
def test_packed_half(sim: harness.Sim, code: str, f: Callable[..., np.ndarray]) -> None:
    got = run_lanes(sim, code, [HA, HB], ["v100"])[0].view(np.float16)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(got, f(HA.view(np.float16), HB.view(np.float16)))


def test_double(sim: harness.Sim) -> None:
    x, y = rng.standard_normal(64), rng.standard_normal(64)
    rows = [p for v in (x, y) for p in v.view(np.uint32).reshape(64, 2).T]
    code = (
        "v_add_f64 v[100:101], v[10:11], v[12:13]\n"
        "v_fma_f64 v[102:103], v[10:11], v[12:13], 1.0\nv_cvt_f32_f64 v104, v[10:11]\n"
        "v_cvt_f64_f32 v[106:107], v104\n"
        "v_add_f64 v[108:109], v[10:11], -v[12:13]\nv_mul_f64 v[110:111], -|v[10:11]|, v[12:13]"
    )
    got = run_lanes(
        sim, code, rows, [f"v{k}" for k in (100, 101, 102, 103, 104, 106, 107, 108, 109, 110, 111)]
    )

    def double(k: int) -> np.ndarray:
        return np.ascontiguousarray(got[k : k + 2].T).view(np.float64)[:, 0]

    np.testing.assert_array_equal(double(0), x + y)
    np.testing.assert_allclose(double(2), x * y + 1, rtol=0, atol=2.0**-53 * (2 * np.abs(x * y) + 1).max())
    np.testing.assert_array_equal(as_f32(got[4]), x.astype(np.float32))
    np.testing.assert_array_equal(double(5), x.astype(np.float32).astype(float))
    np.testing.assert_array_equal(double(7), x - y)
    np.testing.assert_array_equal(double(9), -np.abs(x) * y)


# ---- signalling NaN ----------------------------------------------------------------------------------------

# bits of a value's significand, and of its whole
SIGNIFICANDS = {"f16": (10, 16), "f32": (23, 32), "f64": (52, 64)}


def quieted(x: int, kind: str) -> int | None:
    """What a signalling NaN becomes: its highest significand bit set; None for any other value."""
    significand, width = SIGNIFICANDS[kind]
    fraction = x & ((1 << significand) - 1)
    exponent = (x >> significand) & ((1 << (width - 1 - significand)) - 1)
    signals = exponent == (1 << (width - 1 - significand)) - 1 and 0 < fraction < 1 << (significand - 1)
    return x | 1 << (significand - 1) if signals else None


def special_pairs(kind: str) -> list[tuple[int, int]]:
    significand, width = SIGNIFICANDS[kind]
    infinity = ((1 << (width - 1 - significand)) - 1) << significand
    one = ((1 << (width - 2 - significand)) - 1) << significand
    quiet, signalling = infinity | 1 << (significand - 1), infinity | 5
    negative = signalling | 1 << (width - 1)
    values = [one, infinity, quiet, signalling, negative]
    return [(a, b) for a in values for b in values if signalling in (a, b) or negative in (a, b)]


@pytest.mark.parametrize("ieee", [True, False])
@pytest.mark.parametrize("name", ["min", "max"])
@pytest.mark.parametrize("kind", SIGNIFICANDS)
def test_signalling_nan(sim: harness.Sim, kind: str, name: str, ieee: bool) -> None:
    """In IEEE mode (the default of kernels) it is quieted and wins, the first operand's first; else it is passed over
    as a quiet one is, for whatever the other operand holds unless that is a NaN too."""
    pairs = special_pairs(kind)
    columns = np.array((pairs * 64)[:64], np.uint64).T
    mode = "" if ieee else "s_setreg_imm32_b32 hwreg(HW_REG_MODE, 9, 1), 0\n"
    if kind == "f64":
        inputs = [(x >> s).astype(np.uint32) for x in columns for s in (0, 32)]
        body = f"v_{name}_f64 v[100:101], v[10:11], v[12:13]"
        low, high = run_lanes(sim, mode + body, inputs, ["v100", "v101"])
        got = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
    else:
        inputs = [x.astype(np.uint32) for x in columns]
        got = run_lanes(sim, f"{mode}v_{name}_{kind} v100, v10, v11", inputs, ["v100"])[0]
        if kind == "f16":
            packed = run_lanes(sim, f"{mode}v_pk_{name}_f16 v100, v10, v11", inputs, ["v100"])[0]
            np.testing.assert_array_equal(packed & 0xFFFF, got)
    significand, _ = SIGNIFICANDS[kind]
    for (a, b), result in zip(pairs, got.tolist(), strict=False):
        quiet = [quieted(a, kind), quieted(b, kind)]
        if ieee:
            assert result == (quiet[0] if quiet[0] is not None else quiet[1]), (hex(a), hex(b))
        elif None in quiet and (other := (a, b)[quiet.index(None)]) & (1 << (significand - 1)) == 0:
            assert result == other, (hex(a), hex(b))


def test_signalling_nan_among_three(sim: harness.Sim) -> None:
    """Two operations one after the other: the first quiets it, the second passes over what is quiet now."""
    signalling, one, two = (np.full(64, x, np.uint32) for x in (0x7F800005, 0x3F800000, 0x40000000))
    got = run_lanes(
        sim,
        "v_max3_f32 v100, v10, v11, v12\nv_max3_f32 v101, v11, v12, v10\nv_med3_f32 v102, v10, v11, v12",
        [signalling, one, two],
        ["v100", "v101", "v102"],
    )[:, 0].tolist()
    assert got == [0x40000000, 0x7FC00005, 0x40000000]
