"""Scalar ALU: values and SCC, from the ISA's definitions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from hipsim import harness
from hipsim.snippet import run_lanes

M32, M64 = 2**32 - 1, 2**64 - 1
VALUES = [
    (0, 0),
    (1, 2),
    (5, 3),
    (0x80000000, 1),
    (0xFFFFFFFF, 1),
    (0x7FFFFFFF, 0x7FFFFFFF),
    (0x12345678, 0x9ABCDEF0),
    (0x00FF00FF, 36),
]


def s32(x: int) -> int:
    x &= M32
    return x - 2**32 if x >> 31 else x


def bfe(a: int, b: int) -> int:
    return a >> (b & 31) & ((1 << min(b >> 16 & 127, 32)) - 1)


# instruction on s20, s21 (or pairs s[20:21] = a | b << 32) -> (result, SCC or None for unchanged)
CASES: list[tuple[str, Callable[[int, int], tuple[int, int | None]]]] = [
    ("s_mov_b32 s30, s20", lambda a, b: (a, None)),
    ("s_not_b32 s30, s20", lambda a, b: (~a, (~a & M32) != 0)),
    ("s_add_u32 s30, s20, s21", lambda a, b: (a + b, a + b > M32)),
    ("s_sub_u32 s30, s20, s21", lambda a, b: (a - b, a < b)),
    ("s_add_i32 s30, s20, s21", lambda a, b: (a + b, s32(a) + s32(b) != s32(a + b))),
    ("s_sub_i32 s30, s20, s21", lambda a, b: (a - b, s32(a) - s32(b) != s32(a - b))),
    ("s_min_i32 s30, s20, s21", lambda a, b: (min(s32(a), s32(b)), s32(a) < s32(b))),
    ("s_max_u32 s30, s20, s21", lambda a, b: (max(a, b), a > b)),
    ("s_mul_i32 s30, s20, s21", lambda a, b: (a * b, None)),
    ("s_mul_hi_u32 s30, s20, s21", lambda a, b: (a * b >> 32, None)),
    ("s_mul_hi_i32 s30, s20, s21", lambda a, b: (s32(a) * s32(b) >> 32, None)),
    ("s_and_b32 s30, s20, s21", lambda a, b: (a & b, (a & b) != 0)),
    ("s_or_b32 s30, s20, s21", lambda a, b: (a | b, (a | b) != 0)),
    ("s_xor_b32 s30, s20, s21", lambda a, b: (a ^ b, (a ^ b) != 0)),
    ("s_andn2_b32 s30, s20, s21", lambda a, b: (a & ~b, (a & ~b) != 0)),
    ("s_nand_b32 s30, s20, s21", lambda a, b: (~(a & b), (~(a & b) & M32) != 0)),
    ("s_lshl_b32 s30, s20, s21", lambda a, b: (a << (b & 31), (a << (b & 31) & M32) != 0)),
    ("s_lshr_b32 s30, s20, s21", lambda a, b: (a >> (b & 31), a >> (b & 31) != 0)),
    ("s_ashr_i32 s30, s20, s21", lambda a, b: (s32(a) >> (b & 31), s32(a) >> (b & 31) != 0)),
    ("s_bfe_u32 s30, s20, 0x80004", lambda a, b: (bfe(a, 0x80004), bfe(a, 0x80004) != 0)),
    ("s_bfe_i32 s30, s20, 0x80004", lambda a, b: ((bfe(a, 0x80004) ^ 128) - 128, bfe(a, 0x80004) != 0)),
    ("s_bfm_b32 s30, s20, s21", lambda a, b: (((1 << (a & 31)) - 1) << (b & 31), None)),
    ("s_lshl2_add_u32 s30, s20, s21", lambda a, b: ((a << 2) + b, (a << 2) + b > M32)),
    ("s_pack_ll_b32_b16 s30, s20, s21", lambda a, b: ((a & 0xFFFF) | b << 16, None)),
    ("s_pack_hh_b32_b16 s30, s20, s21", lambda a, b: (a >> 16 | (b & 0xFFFF0000), None)),
    ("s_abs_i32 s30, s20", lambda a, b: (abs(s32(a)), a != 0)),
    ("s_sext_i32_i8 s30, s20", lambda a, b: (((a & 255) ^ 128) - 128, None)),
    ("s_bcnt1_i32_b32 s30, s20", lambda a, b: (a.bit_count(), a != 0)),
    ("s_ff1_i32_b32 s30, s20", lambda a, b: ((a & -a).bit_length() - 1, None)),
    ("s_flbit_i32_b32 s30, s20", lambda a, b: (32 - a.bit_length() if a else -1, None)),
    ("s_brev_b32 s30, s20", lambda a, b: (int(f"{a:032b}"[::-1], 2), None)),
    ("s_absdiff_i32 s30, s20, s21", lambda a, b: (abs(s32(a) - s32(b)), a != b)),
    ("s_movk_i32 s30, 0x8001", lambda a, b: (-32767, None)),
    (
        "s_mov_b32 s30, s20\ns_addk_i32 s30, 0x7fff",
        lambda a, b: (a + 0x7FFF, s32(a) + 0x7FFF != s32(a + 0x7FFF)),
    ),
    ("s_mov_b32 s30, s20\ns_mulk_i32 s30, 0xfffe", lambda a, b: (a * -2, None)),
    (
        "s_add_u32 s30, s20, s21\ns_addc_u32 s30, s21, s21",
        lambda a, b: (2 * b + (a + b > M32), 2 * b + (a + b > M32) > M32),
    ),
    ("s_sub_u32 s30, s20, s21\ns_subb_u32 s30, s20, s21", lambda a, b: (a - b - (a < b), a < b + (a < b))),
    (
        "s_cmp_lt_i32 s20, s21\ns_cselect_b32 s30, s20, s21",
        lambda a, b: (min(s32(a), s32(b)), s32(a) < s32(b)),
    ),
    ("s_cmp_ge_u32 s20, s21\ns_cselect_b32 s30, 7, 9", lambda a, b: (7 if a >= b else 9, a >= b)),
    ("s_cmpk_gt_i32 s20, 0x4\ns_cselect_b32 s30, 1, 0", lambda a, b: (s32(a) > 4, s32(a) > 4)),
    ("s_bitcmp1_b32 s20, 3\ns_cselect_b32 s30, 1, 0", lambda a, b: (a >> 3 & 1, a >> 3 & 1)),
    ("s_mov_b64 s[30:31], s[20:21]", lambda a, b: (a | b << 32, None)),
    ("s_not_b64 s[30:31], s[20:21]", lambda a, b: (~(a | b << 32), (~(a | b << 32) & M64) != 0)),
    ("s_and_b64 s[30:31], s[20:21], 0x7f", lambda a, b: (a & 0x7F, (a & 0x7F) != 0)),
    ("s_or_b64 s[30:31], s[20:21], -4", lambda a, b: ((a | b << 32) | (M64 - 3), 1)),
    ("s_lshl_b64 s[30:31], s[20:21], 9", lambda a, b: ((a | b << 32) << 9, ((a | b << 32) << 9 & M64) != 0)),
    (
        "s_lshr_b64 s[30:31], s[20:21], s21",
        lambda a, b: ((a | b << 32) >> (b & 63), (a | b << 32) >> (b & 63) != 0),
    ),
    ("s_bcnt1_i32_b64 s30, s[20:21]", lambda a, b: ((a | b << 32).bit_count(), (a | b << 32) != 0)),
    ("s_cmp_eq_u64 s[20:21], s[20:21]\ns_cselect_b64 s[30:31], -1, 0", lambda a, b: (-1, 1)),
]


@pytest.mark.parametrize(("code", "f"), CASES, ids=[c.replace("\n", "; ") for c, _ in CASES])
def test_scalar(sim: harness.Sim, code: str, f: Callable[[int, int], tuple[int, int | None]]) -> None:
    body, outputs = "", []
    wide = "s[30:31]" in code
    for n, (a, b) in enumerate(VALUES):
        body += (
            f"s_mov_b32 s20, {a:#x}\ns_mov_b32 s21, {b:#x}\ns_cmp_eq_u32 0, {n % 2}\n{code}\n"
            "s_cselect_b32 s32, 1, 0\n"
        )
        body += (
            f"v_mov_b32 v{100 + 3 * n}, s30\n"
            f"v_mov_b32 v{101 + 3 * n}, {'s31' if wide else '0'}\n"
            f"v_mov_b32 v{102 + 3 * n}, s32\n"
        )
        outputs += [f"v{100 + 3 * n + k}" for k in range(3)]
    got = run_lanes(sim, body, np.zeros((1, 64), np.uint32), outputs)[:, 0].reshape(-1, 3)
    for n, (a, b) in enumerate(VALUES):
        value, scc = f(a, b)
        assert int(got[n, 0]) | int(got[n, 1]) << 32 == value & (M64 if wide else M32), (hex(a), hex(b))
        assert got[n, 2] == (n % 2 == 0 if scc is None else bool(scc)), ("SCC", hex(a), hex(b))


def test_branches_and_exec(sim: harness.Sim) -> None:
    code = """
    s_mov_b32 s20, 0
    v_mov_b32 v100, 0
    .Lloop:
    v_cmp_lt_u32 vcc, s20, v0
    s_and_saveexec_b64 s[22:23], vcc
    s_cbranch_execz .Lskip
    v_add_u32 v100, 1, v100
    .Lskip:
    s_or_b64 exec, exec, s[22:23]
    s_addk_i32 s20, 1
    s_cmp_lt_u32 s20, 10
    s_cbranch_scc1 .Lloop
    s_getpc_b64 s[24:25]
    .Lhere:
    s_add_u32 s24, s24, .Lend_of_test-.Lhere
    s_addc_u32 s25, s25, 0
    s_setpc_b64 s[24:25]
    v_mov_b32 v100, 77
    .Lend_of_test:"""
    got = run_lanes(sim, code, np.zeros((1, 64), np.uint32), ["v100"])[0]
    np.testing.assert_array_equal(got, np.minimum(np.arange(64), 10))


def test_literals_of_64_bits(sim: harness.Sim) -> None:
    code = (
        "s_mov_b64 s[20:21], 1.0\ns_mov_b64 s[22:23], -1\n"
        "s_mov_b64 s[24:25], 0x12345678\nv_mov_b32 v100, s21\nv_mov_b32 v101, s23\n"
        "v_mov_b32 v102, s24\nv_mov_b32 v103, s25"
    )
    got = run_lanes(sim, code, np.zeros((1, 64), np.uint32), ["v100", "v101", "v102", "v103"])[:, 0]
    assert got.tolist() == [0x3FF00000, 0xFFFFFFFF, 0x12345678, 0]
