"""The simulator stops what a GPU would let pass: each guard fires, and the correct twin does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hipsim import harness
from hipsim.snippet import run_lanes

LANE = np.arange(64, dtype=np.uint32)


def expect(
    sim: harness.Sim,
    body: str,
    message: str,
    outputs: tuple[str, ...] = ("v100",),
    lds: int = 0,
    waves: int = 1,
) -> str:
    with pytest.raises(harness.SimFault, match=message) as caught:
        run_lanes(sim, body, [LANE], outputs, lds=lds, waves=waves)
    return str(caught.value)


# ---- waits -------------------------------------------------------------------------------------------------

LOADS = {
    "global": "global_load_dword v100, v1, s[4:5]\n{wait}\nv_add_u32 v100, 1, v100",
    "lds": (
        "v_mov_b32 v101, 7\nds_write_b32 v1, v101\ns_waitcnt lgkmcnt(0)\n"
        "ds_read_b32 v100, v1\n{wait}\nv_add_u32 v100, 1, v100"
    ),
    "scalar": "s_load_dword s20, s[4:5], 0x0\n{wait}\ns_add_u32 s20, s20, 1\nv_mov_b32 v100, s20",
    "bpermute": "ds_bpermute_b32 v100, v1, v10\n{wait}\nv_add_u32 v100, 1, v100",
}
ENOUGH = {"global": "vmcnt(0)", "lds": "lgkmcnt(0)", "scalar": "lgkmcnt(0)", "bpermute": "lgkmcnt(0)"}


@pytest.mark.parametrize("kind", LOADS)
def test_missing_wait(sim: harness.Sim, kind: str) -> None:
    expect(sim, LOADS[kind].format(wait="s_nop 0"), "not waited for", lds=256)


@pytest.mark.parametrize("kind", LOADS)
def test_sufficient_wait(sim: harness.Sim, kind: str) -> None:
    run_lanes(sim, LOADS[kind].format(wait=f"s_waitcnt {ENOUGH[kind]}"), [LANE], ["v100"], lds=256)


def test_counted_vmcnt(sim: harness.Sim) -> None:
    two = (
        "global_load_dword v100, v1, s[4:5]\nglobal_load_dword v101, v1, s[4:5]\n"
        "s_waitcnt vmcnt(1)\nv_mov_b32 v102, v{n}"
    )
    run_lanes(sim, two.format(n=100) + "\ns_waitcnt vmcnt(0)", [LANE], ["v102"])
    expect(sim, two.format(n=101), "v101 is read although the load")


def test_overwriting_a_pending_register(sim: harness.Sim) -> None:
    expect(
        sim,
        "global_load_dword v100, v1, s[4:5]\nv_mov_b32 v100, 0\ns_waitcnt vmcnt(0)",
        "v100 is overwritten although",
    )


def test_stores_count_on_vmcnt(sim: harness.Sim) -> None:
    body = (
        "global_load_dword v100, v1, s[4:5]\nglobal_store_dword v1, v10, s[6:7]\n"
        "s_waitcnt vmcnt({n})\nv_mov_b32 v101, v100"
    )
    run_lanes(sim, body.format(n=1), [LANE], ["v101"])


def test_scalar_loads_return_in_any_order(sim: harness.Sim) -> None:
    body = (
        "s_load_dword s20, s[4:5], 0x0\ns_load_dword s21, s[4:5], 0x4\n"
        "s_waitcnt lgkmcnt(1)\nv_mov_b32 v100, s20"
    )
    expect(sim, body, "s20 is read although the s_load")


def test_lds_returns_in_order(sim: harness.Sim) -> None:
    body = (
        "ds_write_b32 v1, v10\nds_read_b32 v100, v1\nds_read_b32 v101, v1\n"
        "s_waitcnt lgkmcnt({n})\nv_mov_b32 v102, v100\n"
        "s_waitcnt lgkmcnt(0)"
    )
    run_lanes(sim, body.format(n=1), [LANE], ["v102"], lds=256)
    expect(sim, body.format(n=2), "v100 is read", lds=256)


def test_scalar_load_among_lds(sim: harness.Sim) -> None:
    """One s_load among LDS reads: a count above 0 promises the reads before it, never the s_load."""
    body = (
        "ds_write_b32 v1, v10\nds_read_b32 v100, v1\ns_load_dword s20, s[4:5], 0x0\n"
        "s_waitcnt lgkmcnt(0)\nv_mov_b32 v101, s20"
    )
    run_lanes(sim, body, [LANE], ["v101"], lds=256)
    expect(sim, body.replace("lgkmcnt(0)", "lgkmcnt(1)"), "s20 is read", lds=256)


# ---- LDS between waves -------------------------------------------------------------------------------------

# Each wave writes its own 256 bytes and reads the other wave's.
EXCHANGE = """
v_and_b32 v20, 63, v0
v_lshlrev_b32 v21, 2, v0
v_xor_b32 v22, 0x100, v21
{write}
{wait}
{barrier}
ds_read_b32 v100, v22
s_waitcnt lgkmcnt(0)
{tail}
v_lshlrev_b32 v1, 2, v20
"""
WRITE = "ds_write_b32 v21, v21"
DIRECT = (
    "v_readfirstlane_b32 s20, v21\ns_mov_b32 m0, s20\nv_mov_b32 v23, 0\n"
    "v_lshlrev_b32 v23, 2, v20\nglobal_load_lds_dword v23, s[4:5]"
)


def exchange(**parts: str) -> str:
    base = {"write": WRITE, "wait": "s_waitcnt lgkmcnt(0) vmcnt(0)", "barrier": "s_barrier", "tail": ""}
    return EXCHANGE.format(**{**base, **parts})


@pytest.mark.parametrize("write", [WRITE, DIRECT], ids=["ds_write", "direct"])
@pytest.mark.parametrize("seed", range(4))
def test_exchange_is_fine(write: str, seed: int) -> None:
    run_lanes(harness.Sim(seed=seed), exchange(write=write), [LANE], ["v100"], lds=512, waves=2)


@pytest.mark.parametrize("seed", range(4))
def test_missing_barrier(seed: int) -> None:
    expect(harness.Sim(seed=seed), exchange(barrier="s_nop 0"), "LDS race|nobody wrote", lds=512, waves=2)


@pytest.mark.parametrize("seed", range(4))
def test_missing_wait_before_barrier(seed: int) -> None:
    expect(harness.Sim(seed=seed), exchange(wait="s_nop 0"), "LDS race", lds=512, waves=2)


@pytest.mark.parametrize("seed", range(4))
def test_direct_load_not_waited_for(seed: int) -> None:
    expect(
        harness.Sim(seed=seed),
        exchange(write=DIRECT, wait="s_nop 0"),
        "direct-to-LDS load to it was not waited for",
        lds=512,
        waves=2,
    )


@pytest.mark.parametrize("seed", range(4))
def test_direct_load_without_barrier(seed: int) -> None:
    expect(
        harness.Sim(seed=seed),
        exchange(write=DIRECT, barrier="s_nop 0"),
        "LDS race|nobody wrote|not waited",
        lds=512,
        waves=2,
    )


@pytest.mark.parametrize("seed", range(4))
def test_overwrite_after_read_without_barrier(seed: int) -> None:
    expect(harness.Sim(seed=seed), exchange(tail=WRITE), "LDS race", lds=512, waves=2)
    run_lanes(
        harness.Sim(seed=seed), exchange(tail=f"s_barrier\n{WRITE}"), [LANE], ["v100"], lds=512, waves=2
    )


def test_read_not_waited_for_before_the_buffer_is_reused() -> None:
    late = exchange().replace(
        "ds_read_b32 v100, v22\ns_waitcnt lgkmcnt(0)",
        f"ds_read_b32 v100, v22\ns_barrier\n{WRITE}\ns_waitcnt lgkmcnt(0)",
    )
    for seed in range(4):
        expect(harness.Sim(seed=seed), late, "LDS race", lds=512, waves=2)
    run_lanes(harness.Sim(strict_war=0), late, [LANE], ["v100"], lds=512, waves=2)


def test_direct_load_over_an_own_read_not_waited_for(sim: harness.Sim) -> None:
    body = (
        "s_mov_b32 m0, 0\nds_write_b32 v1, v10\ns_waitcnt lgkmcnt(0)\nds_read_b32 v100, v1\n{wait}\n"
        "global_load_lds_dword v1, s[4:5]\ns_waitcnt vmcnt(0) lgkmcnt(0)"
    )
    run_lanes(sim, body.format(wait="s_waitcnt lgkmcnt(0)"), [LANE], ["v100"], lds=256)
    expect(sim, body.format(wait="s_nop 0"), "may not have reached yet", lds=256)


# ---- bounds ------------------------------------------------------------------------------------------------


def test_global_out_of_bounds(sim: harness.Sim) -> None:
    assert "offset 256" in expect(
        sim,
        "v_add_u32 v2, 0x100, v1\nglobal_load_dword v100, v2, s[4:5]\ns_waitcnt vmcnt(0)",
        "lane 0: read of 4 bytes.*out of bounds",
    )
    expect(
        harness.Sim(),
        "global_store_dword v1, v10, s[6:7] offset:4",
        "lane 63: write of 4 bytes.*out of bounds",
    )


def test_wild_address(sim: harness.Sim) -> None:
    expect(
        sim,
        "v_mov_b32 v20, 0\nv_mov_b32 v21, 0\nglobal_load_dword v100, v[20:21], off\ns_waitcnt vmcnt(0)",
        "outside of every allocation",
    )


def test_scalar_load_out_of_bounds(sim: harness.Sim) -> None:
    expect(sim, "s_load_dwordx2 s[20:21], s[4:5], 0xfc\ns_waitcnt lgkmcnt(0)", "out of bounds")


def test_use_after_free(sim: harness.Sim) -> None:
    body = (
        "s_load_dwordx2 s[4:5], s[0:1], 0x0\nv_lshlrev_b32 v1, 2, v0\n"
        "s_waitcnt lgkmcnt(0)\nglobal_load_dword v2, v1, s[4:5]\ns_waitcnt vmcnt(0)"
    )
    module = sim.load(harness.assemble(harness.kernel_asm(body)))
    a = sim.to_device(LANE)
    module.launch("k", (1,), (64,), [a, a])
    a.free()
    with pytest.raises(harness.SimFault, match="use after free"):
        module.launch("k", (1,), (64,), [a, a])


def test_lds_out_of_bounds(sim: harness.Sim) -> None:
    expect(
        sim,
        "ds_write_b32 v1, v10 offset:4\ns_waitcnt lgkmcnt(0)",
        "lane 63: LDS write of 4 bytes at 0x100 is out of bounds",
        lds=256,
    )
    expect(harness.Sim(), "ds_read_b32 v100, v1\ns_waitcnt lgkmcnt(0)", "out of bounds", lds=0)


def test_direct_load_beyond_lds(sim: harness.Sim) -> None:
    body = "s_mov_b32 m0, 0\nv_lshlrev_b32 v20, 2, v1\nglobal_load_lds_dwordx4 v1, s[4:5]\ns_waitcnt vmcnt(0)"
    expect(sim, body, "out of bounds", lds=256)


DESCRIPTOR = (
    "s_mov_b32 s20, s4\ns_and_b32 s21, s5, 0xffff\ns_mov_b32 s22, {records}\ns_mov_b32 s23, 0x00020000"
)


def test_buffer_bounds_read_zero(sim: harness.Sim) -> None:
    for soffset, expected in (("0", 32), ("s24", 28)):  # soffset counts in the range check
        body = DESCRIPTOR.format(records=128) + (
            f"\ns_mov_b32 s24, 16\nbuffer_load_dword v100, v1, s[20:23], {soffset} offen\ns_waitcnt vmcnt(0)"
        )
        got = run_lanes(sim, body, [LANE + 1], ["v100"])[0]
        want = np.roll(LANE + 1, 0 if soffset == "0" else -4)
        want[expected:] = 0
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("stride", ["0x40000", "0x3fff0000", "0x40040000"], ids=["4", "16383", "4 and cache"])
def test_buffer_with_a_stride_is_a_raw_one(sim: harness.Sim, stride: str) -> None:
    """As long as nothing indexes or swizzles: num_records counts bytes still."""
    body = DESCRIPTOR.format(records=128) + (
        f"\ns_or_b32 s21, s21, {stride}\nbuffer_load_dword v100, v1, s[20:23], 0 offen\ns_waitcnt vmcnt(0)"
    )
    want = LANE + 1
    want[32:] = 0
    np.testing.assert_array_equal(run_lanes(sim, body, [LANE + 1], ["v100"])[0], want)


@pytest.mark.parametrize(
    "bit", ["s_bitset1_b32 s21, 31", "s_bitset1_b32 s23, 23"], ids=["swizzle", "add_tid"]
)
def test_swizzled_buffer_is_refused(sim: harness.Sim, bit: str) -> None:
    body = DESCRIPTOR.format(records=128) + f"\n{bit}\nbuffer_load_dword v100, v1, s[20:23], 0 offen"
    expect(sim, body, "swizzle or add_tid_enable")


def test_buffer_dwords_are_checked_one_by_one(sim: harness.Sim) -> None:
    body = DESCRIPTOR.format(records=24) + (
        "\nv_lshlrev_b32 v20, 2, v1\n"
        "buffer_load_dwordx4 v[100:103], v20, s[20:23], 0 offen\ns_waitcnt vmcnt(0)"
    )
    got = run_lanes(sim, body, [LANE + 1], ["v100", "v101", "v102", "v103"])
    np.testing.assert_array_equal(got[:, 0], [1, 2, 3, 4])
    np.testing.assert_array_equal(got[:, 1], [5, 6, 0, 0])
    assert not got[:, 2:].any()


def test_buffer_store_beyond_is_dropped(sim: harness.Sim) -> None:
    text = (
        DESCRIPTOR.replace("s4", "s6").replace("s5", "s7").format(records=128)
        + "\nbuffer_store_dword v10, v1, s[20:23], 0 offen\nv_mov_b32 v100, 0"
    )
    run_lanes(sim, text, [LANE], ["v100"])


def test_buffer_beyond_its_allocation(sim: harness.Sim) -> None:
    body = (
        DESCRIPTOR.format(records="0x1000")
        + "\nbuffer_load_dword v100, v1, s[20:23], 0 offen offset:256\ns_waitcnt vmcnt(0)"
    )
    expect(sim, body, "out of bounds of the allocation")


# ---- values that nobody wrote ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("v_add_u32 v100, v50, v10", "which nobody wrote, is stored"),
        ("v_mov_b32 v100, v50", "which nobody wrote, is stored"),
        ("v_mov_b32 v100, s50", "which nobody wrote, is stored"),
        ("global_load_dword v100, v50, s[4:5]\ns_waitcnt vmcnt(0)", "address that nobody wrote"),
        ("s_load_dword s20, s[50:51], 0x0\ns_waitcnt lgkmcnt(0)", "address that nobody wrote"),
        ("s_cmp_lg_u32 s50, 0\ns_cbranch_scc1 .Lx\n.Lx:\nv_mov_b32 v100, 0", "branch on SCC"),
        ("v_cmp_lg_u32 vcc, v50, v10\ns_cbranch_vccnz .Lx\n.Lx:\nv_mov_b32 v100, 0", "branch on VCC"),
        ("v_cmp_eq_u32 vcc, v50, v10\ns_and_saveexec_b64 s[20:21], vcc", "EXEC is computed"),
        ("ds_read_b32 v100, v1\ns_waitcnt lgkmcnt(0)", "which nobody wrote, is stored"),
        ("ds_write_b32 v50, v10", "LDS address that nobody wrote"),
        ("global_load_dword v100, v1, s[6:7]\ns_waitcnt vmcnt(0)", "which nobody wrote, is stored"),
        ("global_atomic_add v1, v50, s[6:7]", "operand of an atomic that nobody wrote"),
        ("global_atomic_add v1, v10, s[6:7]", "atomic on memory that nobody wrote"),
        ("global_load_lds_dword v1, s[4:5]", "M0 .* nobody wrote"),
        ("v_mfma_f32_16x16x16_f16 v[100:103], v[50:51], v[50:51], 0", "which nobody wrote, is stored"),
    ],
)
def test_poison(sim: harness.Sim, body: str, message: str) -> None:
    expect(sim, body.replace("v_cmp_lg_u32", "v_cmp_ne_u32"), message, lds=256)


@pytest.mark.parametrize(
    "body",
    [
        "v_and_b32 v100, 0, v50",
        "v_and_b32 v20, 0xffff, v50\nv_mov_b32 v100, 1\nv_lshrrev_b32 v20, 16, v20\nv_or_b32 v100, v100, v20",
        "v_mov_b32 v20, v50\nv_mov_b32 v100, 3",
        "v_cvt_scalef32_pk_fp4_f32 v100, v10, v10, 1.0\n"
        "v_cvt_scalef32_pk_fp4_f32 v100, v10, v10, 1.0 op_sel:[0,0,1,0]\n"
        "v_cvt_scalef32_pk_fp4_f32 v100, v10, v10, 1.0 op_sel:[0,0,0,1]\n"
        "v_cvt_scalef32_pk_fp4_f32 v100, v10, v10, 1.0 op_sel:[0,0,1,1]",
        "s_mov_b32 s20, 0x07060504\nv_perm_b32 v100, v10, v50, s20",
        "v_cmp_gt_u32 vcc, 64, v0\nv_cndmask_b32 v100, v50, v10, vcc",
    ],
    ids=["and", "mask", "unused", "bytes", "perm", "select"],
)
def test_no_false_poison(sim: harness.Sim, body: str) -> None:
    run_lanes(sim, body, [LANE], ["v100"])


def test_poisoned_matrix_row_stays_in_its_row(sim: harness.Sim) -> None:
    """Rows that a tail leaves unloaded spoil their own results only."""
    body = """
    s_mov_b64 exec, 0x1
    v_mov_b32 v20, v50
    s_mov_b64 exec, -1
    v_mfma_f32_16x16x16_f16 v[100:103], v[20:21], v[10:11], 0
    {after}"""
    load = "v_mov_b32 v20, v10\nv_mov_b32 v21, v10\nv_mov_b32 v11, v10\n"
    skip_row_0 = "v_cmp_gt_u32 vcc, 16, v0\nv_mov_b32 v30, 0\nv_cndmask_b32 v100, v100, v30, vcc"
    run_lanes(sim, load + body.format(after=skip_row_0), [LANE], ["v100", "v101", "v102", "v103"])
    expect(sim, load + body.format(after=""), "nobody wrote")


def test_output_that_was_not_written(sim: harness.Sim) -> None:
    with pytest.raises(harness.SimFault, match="never written"):
        sim.empty(4).numpy()


# ---- other stops -------------------------------------------------------------------------------------------


def test_unknown_opcode(sim: harness.Sim) -> None:
    text = expect(sim, "v_mqsad_pk_u16_u8 v[100:101], v[10:11], v12, v[14:15]", "unknown opcode")
    assert "v_mqsad_pk_u16_u8 v[100:101], v[10:11], v12, v[14:15]" in text
    assert "kernel 'k'" in text
    assert "pc 0x" in text


def test_scratch(sim: harness.Sim) -> None:
    source = """extern "C" __attribute__((global)) void k(const int* a, int* o) {
      volatile int x[64]; for (int i = 0; i < 64; i++) x[i] = a[i]; o[0] = x[a[0]]; }"""
    module = sim.load(harness.compile_hip(source))
    a = sim.to_device(np.zeros(64, np.int32))
    with pytest.raises(harness.SimFault, match="scratch"):
        module.launch("k", (1,), (1,), [a, a])


def test_flushing_denormals_is_refused(sim: harness.Sim) -> None:
    text = harness.kernel_asm("s_nop 0").replace("denorm_mode_32 3", "denorm_mode_32 0")
    with pytest.raises(harness.SimFault, match="flushes denormals"):
        sim.load(harness.assemble(text)).launch("k", (1,), (64,), [None, None])


def test_counts_of_instructions() -> None:
    """Two waves; the branch is taken by the second only, so what it jumps over runs once."""
    body = (
        "v_readfirstlane_b32 s10, v0\ns_cmp_lg_u32 s10, 0\ns_cbranch_scc1 .Lx\nv_mov_b32 v5, 1\n"
        ".Lx:\ns_branch .Ly\nv_mov_b32 v5, 2\n.Ly:"
    )
    code = harness.assemble(harness.kernel_asm(body))
    expected = {"s_cmp_lg_u32": 2, "v_mov_b32_e32 v5, 1": 1, "v_mov_b32_e32 v5, 2": 0, "s_endpgm": 2}
    for counting in (1, 0):
        module = harness.Sim(counts=counting).load(code)
        module.launch("k", (1,), (128,), [None, None])
        counts = module.counts("k")
        assert [pc for _, pc, _ in counts] == sorted(pc for _, pc, _ in counts)
        for start, count in expected.items():
            assert [n for n, _, text in counts if text.startswith(start)] == [count * counting], start
    assert module.counts("another") == []


def test_endless_loop() -> None:
    expect(harness.Sim(max_steps=10000), ".Lx:\ns_nop 0\ns_branch .Lx", "endless loop")


def test_fault_stays_until_reset(sim: harness.Sim) -> None:
    expect(sim, "ds_read_b32 v100, v1", "out of bounds")
    with pytest.raises(harness.SimFault) as caught:
        sim.empty(4)
    assert caught.value.code == 719


def test_host_must_not_touch_device_memory() -> None:
    program = (
        "import sys, ctypes\n"
        f"sys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r})\n"
        "from hipsim import harness\n"
        "a = harness.Sim().to_device(b'x' * 8)\n"
        "print('before', flush=True)\n"
        "ctypes.string_at(a.ptr, 1)\n"
    ).replace("b'x' * 8", "[1, 2]")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "before" in done.stdout
    assert done.returncode == -11  # SIGSEGV


def test_registers_beyond_the_allocation(sim: harness.Sim) -> None:
    text = harness.kernel_asm("v_mov_b32 v40, 0").replace("next_free_vgpr 512", "next_free_vgpr 32")
    text = text.replace("accum_offset 256", "accum_offset 32")
    with pytest.raises(harness.SimFault, match=r"allocates 32 VGPRs and 0 AGPRs but has .*v40"):
        sim.load(harness.assemble(text))


def test_abort_on_fault_and_lost_device() -> None:
    program = (
        f"import sys\nsys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r})\n"
        "from hipsim import harness\n"
        "sim = harness.Sim()\nmodule = sim.load(harness.assemble(harness.kernel_asm('s_nop 0')))\n"
        "a = sim.empty(4)\n"
        "for n in range(3):\n    module.launch('k', (1,), (64,), [a, a])\n    print(n, flush=True)\n"
    )
    for variables, output, code in (
        ({"HIPSIM_LOST_AFTER": "2"}, ["0", "1"], 1),
        ({"HIPSIM_LOST_AFTER": "0", "HIPSIM_ON_FAULT": "abort"}, [], -6),
    ):
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **variables},
        )
        assert done.stdout.split() == output
        assert done.returncode == code
        assert "device lost" in done.stderr
