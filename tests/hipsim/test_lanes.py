"""Instructions that move data between lanes: DPP, readlane, permlane swaps, bpermute, swizzle, mbcnt."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from hipsim import harness
from hipsim.snippet import run_lanes

LANE = np.arange(64, dtype=np.uint32)
X = LANE * 1000 + 7


def row(lane: int) -> int:
    return lane & ~15


# control -> source lane (None: none)
DPP: dict[str, Callable[[int], int | None]] = {
    "quad_perm:[1,0,3,2]": lambda n: n ^ 1,
    "quad_perm:[2,2,0,0]": lambda n: (n & ~3) + (2, 2, 0, 0)[n & 3],
    "row_shl:1": lambda n: n + 1 if n % 16 < 15 else None,
    "row_shl:8": lambda n: n + 8 if n % 16 < 8 else None,
    "row_shr:1": lambda n: n - 1 if n % 16 else None,
    "row_shr:4": lambda n: n - 4 if n % 16 >= 4 else None,
    "row_ror:4": lambda n: row(n) + (n - 4) % 16,
    "row_ror:12": lambda n: row(n) + (n - 12) % 16,
    "row_mirror": lambda n: row(n) + 15 - n % 16,
    "row_half_mirror": lambda n: (n & ~7) + 7 - n % 8,
    "row_bcast:15": lambda n: row(n) - 1 if n >= 16 else None,
    "row_bcast:31": lambda n: 31 if n >= 32 else None,
    "row_newbcast:3": lambda n: row(n) + 3,
    "wave_shr:1": lambda n: n - 1 if n else None,
}


@pytest.mark.parametrize("control", DPP)
@pytest.mark.parametrize("bound_ctrl", [False, True])
def test_dpp(sim: harness.Sim, control: str, bound_ctrl: bool) -> None:
    """Without bound_ctrl a lane without source keeps its old value; with it the source reads 0."""
    code = (
        "v_mov_b32 v100, 5\n"
        f"v_mov_b32_dpp v100, v10 {control} row_mask:0xf bank_mask:0xf{' bound_ctrl:0' if bound_ctrl else ''}"
    )
    got = run_lanes(sim, code, [X], ["v100"])[0]
    want = [(0 if bound_ctrl else 5) if (s := DPP[control](n)) is None else X[s] for n in range(64)]
    assert got.tolist() == [int(w) for w in want]


def test_dpp_masks_and_inactive_sources(sim: harness.Sim) -> None:
    code = "v_mov_b32 v100, 5\nv_add_u32_dpp v100, v10, v11 row_ror:1 row_mask:0xa bank_mask:0x3"
    got = run_lanes(sim, code, [X, X], ["v100"])[0]
    for n in range(64):
        on = (0xA >> n // 16 & 1) and (0x3 >> n // 4 % 4 & 1)
        assert got[n] == (X[row(n) + (n - 1) % 16] + X[n] if on else 5)
    code = (
        "v_mov_b32 v100, 5\ns_mov_b64 exec, 0x5555\n"
        "v_mov_b32_dpp v100, v10 quad_perm:[1,0,3,2] row_mask:0xf bank_mask:0xf bound_ctrl:0"
    )
    got = run_lanes(sim, code, [X], ["v100"])[0]
    assert got[:16].tolist() == [0, 5] * 8


def test_wave_sum_by_dpp(sim: harness.Sim) -> None:
    code = "v_mov_b32 v100, v10\n" + "".join(
        f"v_add_u32_dpp v100, v100, v100 {c} row_mask:{m} bank_mask:0xf bound_ctrl:0\n"
        for c, m in [("row_shr:1", "0xf"), ("row_shr:2", "0xf")]
    )
    got = run_lanes(sim, code, [LANE], ["v100"])[0]
    assert [got[n] for n in (3, 7, 15)] == [sum(range(n - 3, n + 1)) for n in (3, 7, 15)]


def test_readlane(sim: harness.Sim) -> None:
    code = """
    v_readlane_b32 s20, v10, 17
    s_mov_b32 s21, 40
    v_readlane_b32 s22, v10, s21
    s_mov_b64 exec, 0xfff0
    v_readfirstlane_b32 s23, v10
    s_mov_b64 exec, -1
    v_mov_b32 v100, 1
    v_writelane_b32 v100, s20, 3"""
    got = run_lanes(sim, code, [X], ["s20", "s22", "s23", "v100"])
    assert [got[k, 0] for k in range(3)] == [X[17], X[40], X[4]]
    assert got[3].tolist() == [int(X[17]) if n == 3 else 1 for n in range(64)]


@pytest.mark.parametrize("half", [16, 32])
def test_permlane_swap(sim: harness.Sim, half: int) -> None:
    """Lanes 0..h-1 of src0 change places with lanes h..2h-1 of vdst, in each block of 2h lanes."""
    code = f"v_mov_b32 v100, v10\nv_mov_b32 v101, v11\nv_permlane{half}_swap_b32 v100, v101"
    a, b = X, X + 500
    got = run_lanes(sim, code, [a, b], ["v100", "v101"])
    d, s = a.copy(), b.copy()
    for n in range(64):
        if n % (2 * half) < half:
            d[n + half], s[n] = b[n], a[n + half]
    np.testing.assert_array_equal(got, [d, s])


def test_permlane_swap_refuses_a_partial_exec(sim: harness.Sim) -> None:
    with pytest.raises(harness.SimFault, match="inactive lanes"):
        run_lanes(sim, "s_mov_b64 exec, 1\nv_permlane32_swap_b32 v10, v11", [X, X], ["v10"])


def test_bpermute_and_permute(sim: harness.Sim) -> None:
    index = np.random.default_rng(1).permutation(64).astype(np.uint32)
    code = (
        "v_lshlrev_b32 v20, 2, v11\nds_bpermute_b32 v100, v20, v10\n"
        "ds_permute_b32 v101, v20, v10\nds_bpermute_b32 v102, v20, v10 offset:4\n"
        "s_waitcnt lgkmcnt(0)"
    )
    got = run_lanes(sim, code, [X, index], ["v100", "v101", "v102"])
    np.testing.assert_array_equal(got[0], X[index])
    pushed = np.empty_like(X)
    pushed[index] = X
    np.testing.assert_array_equal(got[1], pushed)
    np.testing.assert_array_equal(got[2], X[(index + 1) % 64])


@pytest.mark.parametrize(
    ("control", "source"),
    [
        ("swizzle(SWAP,16)", lambda n: n ^ 16),
        ("swizzle(REVERSE,32)", lambda n: n ^ 31),
        ("swizzle(QUAD_PERM,3,0,1,2)", lambda n: (n & ~3) + (3, 0, 1, 2)[n & 3]),
        ("swizzle(BROADCAST,8,5)", lambda n: (n & ~7) + 5),
    ],
)
def test_swizzle(sim: harness.Sim, control: str, source: Callable[[int], int]) -> None:
    got = run_lanes(sim, f"ds_swizzle_b32 v100, v10 offset:{control}\ns_waitcnt lgkmcnt(0)", [X], ["v100"])[0]
    assert got.tolist() == [int(X[source(n)]) for n in range(64)]


def test_mbcnt(sim: harness.Sim) -> None:
    code = (
        "v_mbcnt_lo_u32_b32 v100, -1, 0\nv_mbcnt_hi_u32_b32 v100, -1, v100\nv_mbcnt_lo_u32_b32 v101, s20, 3"
    )
    got = run_lanes(sim, "s_mov_b32 s20, 0xf0\n" + code, [X], ["v100", "v101"])
    np.testing.assert_array_equal(got[0], LANE)
    assert got[1].tolist() == [3 + bin(0xF0 & ((1 << min(n, 32)) - 1)).count("1") for n in range(64)]
