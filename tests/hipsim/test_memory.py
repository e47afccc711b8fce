"""LDS, global, buffer and direct-to-LDS accesses, transposing reads, atomics, scalar loads."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hipsim import harness
from hipsim.snippet import as_f32, f32_bits, run_lanes

rng = np.random.default_rng(5)
LANE = np.arange(64, dtype=np.uint32)
DATA = rng.integers(0, 2**32, (4, 64), dtype=np.uint32)
DESCRIPTOR = "s_mov_b32 s20, s4\ns_and_b32 s21, s5, 0xffff\ns_mov_b32 s22, 0x400\ns_mov_b32 s23, 0x00020000\n"


def rows(n: int, first: int = 100) -> list[str]:
    return [f"v{first + k}" for k in range(n)]


@pytest.mark.parametrize("dwords", [1, 2, 3, 4])
def test_lds_widths(sim: harness.Sim, dwords: int) -> None:
    d = "v10" if dwords == 1 else f"v[10:{9 + dwords}]"
    o = "v100" if dwords == 1 else f"v[100:{99 + dwords}]"
    code = (
        f"v_lshlrev_b32 v20, 4, v0\nds_write_b{32 * dwords} v20, {d} offset:64\n"
        "s_waitcnt lgkmcnt(0)\nv_xor_b32 v20, 16, v20\n"
        f"ds_read_b{32 * dwords} {o}, v20 offset:64\ns_waitcnt lgkmcnt(0)"
    )
    got = run_lanes(sim, code, DATA, rows(dwords), lds=2048)
    np.testing.assert_array_equal(got, DATA[:dwords, LANE ^ 1])


def test_lds_bytes_and_halves(sim: harness.Sim) -> None:
    code = """
    ds_write_b32 v1, v10
    ds_write_b8 v1, v11 offset:1
    ds_write_b16 v1, v12 offset:2
    ds_write_b8_d16_hi v1, v13 offset:256
    ds_write_b16_d16_hi v1, v13 offset:258
    v_mov_b32 v104, -1
    v_mov_b32 v105, -1
    ds_read_b32 v100, v1
    ds_read_u8 v101, v1 offset:1
    ds_read_i8 v102, v1 offset:1
    ds_read_i16 v103, v1 offset:2
    ds_read_u16_d16 v104, v1
    ds_read_u16_d16_hi v105, v1
    ds_read_u8 v106, v1 offset:256
    ds_read_u16 v107, v1 offset:258
    s_waitcnt lgkmcnt(0)"""
    got = run_lanes(sim, code, DATA, rows(8), lds=600)
    a, b, c, d = DATA
    word = (a & 0xFF) | (b & 0xFF) << 8 | (c & 0xFFFF) << 16
    np.testing.assert_array_equal(got[0], word)
    np.testing.assert_array_equal(got[1], b & 0xFF)
    np.testing.assert_array_equal(got[2].view(np.int32), (b & 0xFF).astype(np.uint8).view(np.int8))
    np.testing.assert_array_equal(got[3].view(np.int32), (c & 0xFFFF).astype(np.uint16).view(np.int16))
    np.testing.assert_array_equal(got[4], 0xFFFF0000 | (word & 0xFFFF))
    np.testing.assert_array_equal(got[5], 0xFFFF | (word & 0xFFFF) << 16)
    np.testing.assert_array_equal(got[6], d >> 16 & 0xFF)
    np.testing.assert_array_equal(got[7], d >> 16)


def test_lds_pairs(sim: harness.Sim) -> None:
    code = """
    ds_write2_b32 v1, v10, v11 offset0:2 offset1:70
    ds_write2st64_b32 v1, v12, v13 offset0:4 offset1:6
    v_lshlrev_b32 v20, 3, v0
    ds_read2_b32 v[100:101], v1 offset0:2 offset1:70
    ds_read2st64_b32 v[102:103], v1 offset0:4 offset1:6
    ds_write2_b64 v20, v[10:11], v[12:13] offset0:8 offset1:72
    ds_read2_b64 v[104:107], v20 offset0:8 offset1:72
    s_waitcnt lgkmcnt(0)"""
    got = run_lanes(sim, code, DATA, rows(8), lds=4096)
    np.testing.assert_array_equal(got[:4], DATA)
    np.testing.assert_array_equal(got[4:], DATA)


def transposed(tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[64 lanes, n elements] -> the same by groups of 16 lanes: a group is an n x 16 matrix in row order of
    its lanes, and lane i receives column i."""
    n = tile.shape[1]
    return tile.reshape(4, n, 16).transpose(0, 2, 1).reshape(64, n)


@pytest.mark.parametrize(
    ("name", "bits"), [("b64_tr_b8", 8), ("b64_tr_b4", 4), ("b96_tr_b6", 6), ("b64_tr_b16", 16)]
)
def test_transposing_read(sim: harness.Sim, name: str, bits: int) -> None:
    dwords = 3 if bits == 6 else 2
    n = 32 * dwords // bits
    elements = rng.integers(0, 1 << bits, (64, n))
    stream = (elements[..., None] >> np.arange(bits) & 1).astype(np.uint8).reshape(64, -1)
    words = np.packbits(stream, axis=1, bitorder="little").view("<u4").T.copy()
    code = (
        f"v_lshlrev_b32 v20, 4, v0\nds_write_b{32 * dwords} v20, v[10:{9 + dwords}]\n"
        f"ds_read_{name} v[100:{99 + dwords}], v20\ns_waitcnt lgkmcnt(0)"
    )
    got = run_lanes(sim, code, words, rows(dwords), lds=1024)
    back = np.unpackbits(np.ascontiguousarray(got.T).view(np.uint8), axis=1, bitorder="little").reshape(
        64, n, bits
    )
    np.testing.assert_array_equal((back.astype(int) << np.arange(bits)).sum(axis=2), transposed(elements))


def test_transposing_read_b8_is_the_documented_formula(sim: harness.Sim) -> None:
    """out[lane i][byte j] = in[lane 2j + i/8][byte i % 8] within 16 lanes."""
    data = rng.integers(0, 256, (64, 8), dtype=np.uint8)
    code = (
        "v_lshlrev_b32 v20, 3, v0\nds_write_b64 v20, v[10:11]\n"
        "ds_read_b64_tr_b8 v[100:101], v20\ns_waitcnt lgkmcnt(0)"
    )
    got = np.ascontiguousarray(run_lanes(sim, code, data.view("<u4").T.copy(), rows(2), lds=512).T).view(
        np.uint8
    )
    for lane in range(64):
        base, i = lane & ~15, lane & 15
        assert got[lane].tolist() == [int(data[base + 2 * j + i // 8, i % 8]) for j in range(8)]


def test_lds_atomics(sim: harness.Sim) -> None:
    code = """
    v_mov_b32 v20, 0
    v_mov_b32 v21, 1.0
    v_mov_b32 v22, 4
    ds_write_b32 v20, v20
    ds_write_b32 v22, v20
    ds_add_u32 v20, v10
    ds_add_f32 v22, v21
    ds_max_rtn_u32 v100, v20, v20
    ds_read_b32 v101, v22
    s_waitcnt lgkmcnt(0)"""
    got = run_lanes(sim, code, [LANE], rows(2), lds=8)
    assert (got[0] == LANE.sum()).all()
    assert (as_f32(got[1]) == 64).all()


def test_global_widths(sim: harness.Sim) -> None:
    code = """
    v_lshlrev_b32 v20, 4, v0
    global_load_dwordx4 v[100:103], v20, s[4:5]
    global_load_ubyte v104, v1, s[4:5] offset:3
    global_load_sshort v105, v1, s[4:5] offset:2
    v_mov_b32 v106, -1
    s_waitcnt vmcnt(0)
    global_load_short_d16_hi v106, v1, s[4:5]
    v_mov_b32 v21, 0
    v_lshl_add_u64 v[22:23], s[4:5], 0, v[20:21]
    global_load_dwordx3 v[107:109], v[22:23], off offset:4
    flat_load_dword v110, v[22:23]
    s_waitcnt vmcnt(0) lgkmcnt(0)"""
    code = (
        code.replace("v[107:109]", "v[108:110]")
        .replace("v110, v[22", "v111, v[22")
        .replace("v_mov_b32 v21, 0", "v_mov_b32 v21, 0\nv_mov_b32 v107, 0")
    )
    got = run_lanes(sim, code, DATA, rows(12))
    flat = DATA.reshape(-1)
    np.testing.assert_array_equal(got[:4].T.reshape(-1), flat)
    np.testing.assert_array_equal(got[4], flat[:64] >> 24)
    np.testing.assert_array_equal(got[5].view(np.int32), (flat[:64] >> 16).astype(np.uint16).view(np.int16))
    np.testing.assert_array_equal(got[6], 0xFFFF | (flat[:64] & 0xFFFF) << 16)
    np.testing.assert_array_equal(got[8:11].T, flat.reshape(64, 4)[:, 1:])
    np.testing.assert_array_equal(got[11], flat.reshape(64, 4)[:, 0])


def test_stores(sim: harness.Sim) -> None:
    """Bytes, halves and wide stores to the output itself, rows 0 to 3."""
    code = """
    v_lshlrev_b32 v20, 4, v0
    global_store_dwordx4 v20, v[10:13], s[6:7]
    global_store_byte v20, v11, s[6:7] offset:1
    global_store_short v20, v12, s[6:7] offset:6
    global_store_short_d16_hi v20, v13, s[6:7] offset:8
    s_waitcnt vmcnt(0)
    global_load_dwordx4 v[100:103], v20, s[6:7]
    s_waitcnt vmcnt(0)"""
    got = run_lanes(sim, code, DATA, rows(4))
    a, b, c, d = DATA
    np.testing.assert_array_equal(got[0], (a & 0xFFFF00FF) | (b & 0xFF) << 8)
    np.testing.assert_array_equal(got[1], (b & 0xFFFF) | (c & 0xFFFF) << 16)
    np.testing.assert_array_equal(got[2], (c & 0xFFFF0000) | d >> 16)
    np.testing.assert_array_equal(got[3], d)


def test_buffer_offsets_add_up(sim: harness.Sim) -> None:
    code = DESCRIPTOR + (
        "s_mov_b32 s24, 256\nbuffer_load_dword v100, v1, s[20:23], s24 offen offset:256\n"
        "buffer_load_dword v101, off, s[20:23], 0 offset:12\ns_waitcnt vmcnt(0)"
    )
    got = run_lanes(sim, code, DATA, rows(2))
    np.testing.assert_array_equal(got[0], DATA[2])
    assert (got[1] == DATA[0, 3]).all()


@pytest.mark.parametrize("form", ["buffer_x4", "global_x4", "buffer_x1", "global_x1"])
def test_direct_to_lds(sim: harness.Sim, form: str) -> None:
    """LDS side: M0 + instruction offset + lane * size, whatever the global addresses are (here reversed)."""
    wide = form.endswith("x4")
    size, dwords = (16, 4) if wide else (4, 1)
    suffix = "dwordx4" if wide else "dword"
    load = (
        f"buffer_load_{suffix} v20, s[20:23], 0 offen offset:64 lds"
        if form.startswith("buffer")
        else f"global_load_lds_{suffix} v20, s[4:5] offset:64"
    )
    code = (
        DESCRIPTOR
        + f"""
    v_sub_u32 v20, 63, v0
    v_mul_u32_u24 v20, {size}, v20
    v_subrev_u32 v20, 64, v20
    v_max_i32 v20, 0, v20
    s_mov_b32 m0, 128
    {load}
    s_waitcnt vmcnt(0)
    v_mul_u32_u24 v21, {size}, v0
    ds_read_b{8 * size} {"v[100:103]" if wide else "v100"}, v21 offset:192
    s_waitcnt lgkmcnt(0)"""
    )
    got = run_lanes(sim, code, DATA, rows(dwords), lds=2048)
    source = np.maximum((63 - LANE.astype(int)) * size - 64, 0) + 64
    flat = DATA.reshape(-1)
    want = np.stack([flat[source // 4 + k] for k in range(dwords)])
    np.testing.assert_array_equal(got, want)


def test_direct_to_lds_out_of_range_writes_zero_and_inactive_lanes_nothing(sim: harness.Sim) -> None:
    code = (
        DESCRIPTOR.replace("0x400", "0x80")
        + """
    v_mov_b32 v20, 9
    ds_write_b32 v1, v20
    s_waitcnt lgkmcnt(0)
    s_mov_b32 m0, 0
    s_mov_b32 exec_hi, 0xff
    buffer_load_dword v1, s[20:23], 0 offen lds
    s_mov_b64 exec, -1
    s_waitcnt vmcnt(0)
    ds_read_b32 v100, v1
    s_waitcnt lgkmcnt(0)"""
    )
    got = run_lanes(sim, code, DATA, ["v100"], lds=256)[0]
    np.testing.assert_array_equal(got[:32], DATA[0, :32])
    assert (got[32:40] == 0).all()
    assert (got[40:] == 9).all()


def test_atomics(sim: harness.Sim) -> None:
    """All lanes add to one place; the value returned is the one before."""
    code = """
    v_mov_b32 v20, 0
    v_mov_b32 v21, 1.0
    v_cmp_eq_u32 vcc, 0, v0
    s_and_saveexec_b64 s[20:21], vcc
    global_store_dwordx2 v20, v[20:21], s[6:7]
    v_mov_b32 v22, 0
    global_store_dword v20, v22, s[6:7] offset:8
    s_mov_b64 exec, -1
    s_waitcnt vmcnt(0)
    global_atomic_add v20, v10, s[6:7]
    global_atomic_add_f32 v20, v21, s[6:7] offset:4
    v_mov_b32 v23, 0x3f803f80
    global_atomic_pk_add_bf16 v20, v23, s[6:7] offset:8
    global_atomic_umax v100, v20, v20, s[6:7] sc0
    global_load_dword v101, v20, s[6:7] offset:4
    global_load_dword v102, v20, s[6:7] offset:8
    s_waitcnt vmcnt(0)"""
    got = run_lanes(sim, code, [LANE], rows(3))
    assert (got[0] == LANE.sum()).all()
    assert (as_f32(got[1]) == 65).all()
    assert (got[2] == 0x42804280).all()


def test_split_k_by_atomics_over_threads() -> None:
    sim = harness.Sim(threads=2)
    source = """extern "C" __attribute__((global)) void k(const float* a, float* o) {
      typedef __attribute__((address_space(1))) float Global;
      Global* p = (Global*)o + __builtin_amdgcn_workitem_id_x();
      __builtin_amdgcn_global_atomic_fadd_f32(p, a[__builtin_amdgcn_workgroup_id_x()]); }"""
    module = sim.load(harness.compile_hip(source))
    a, o = sim.to_device(np.arange(200, dtype=np.float32)), sim.to_device(np.zeros(64, np.float32))
    module.launch("k", (200,), (64,), [a, o])
    assert (o.numpy() == 19900).all()


def test_scalar_loads(sim: harness.Sim) -> None:
    code = """
    s_load_dwordx16 s[20:35], s[4:5], 0x10
    s_movk_i32 s40, 0x40
    s_load_dwordx2 s[36:37], s[4:5], s40
    s_waitcnt lgkmcnt(0)
    v_mov_b32 v100, s20
    v_mov_b32 v101, s35
    v_mov_b32 v102, s37"""
    got = run_lanes(sim, code, DATA, rows(3))
    assert got[:, 0].tolist() == DATA[0, [4, 19, 17]].tolist()


def test_nothing_moves_through_an_empty_exec(sim: harness.Sim) -> None:
    code = (
        "v_mov_b32 v100, 3\ns_mov_b64 exec, 0\nglobal_load_dword v100, v50, s[4:5]\n"
        "ds_write_b32 v50, v50\nglobal_store_dword v50, v50, s[6:7]\n"
        "s_waitcnt vmcnt(0) lgkmcnt(0)"
    )
    assert (run_lanes(sim, code, [f32_bits(LANE)], ["v100"]) == 3).all()
