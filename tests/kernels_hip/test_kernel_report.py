"""The analyser on hand-made snippets with known answers."""

import json

import pytest

from hipsim import harness
from tools.kernel_report import isa, model
from tools.kernel_report.__main__ import main


def code(*lines: str) -> list[isa.Instruction]:
    return [isa.Instruction(4 * n, text) for n, text in enumerate(lines)]


def mfma(accumulator: str, a: str = "v[0:3]", b: str = "v[4:7]", cbsz: int = 4, blgp: int = 4) -> str:
    operands = f"{accumulator}, {a}, {b}, {accumulator}, v8, v9"
    return f"v_mfma_scale_f32_16x16x128_f8f6f4 {operands} op_sel_hi:[0,0,0] cbsz:{cbsz} blgp:{blgp}"


@pytest.mark.parametrize(
    "text, clocks",
    [
        (mfma("v[10:13]"), 16),
        (mfma("v[10:13]", cbsz=4, blgp=2), 16),
        (mfma("v[10:13]", cbsz=4, blgp=0), 32),
        (
            "v_mfma_scale_f32_16x16x128_f8f6f4 v[10:13], v[0:7], v[4:7], v[10:13], v8, v9 op_sel_hi:[0,0,0] blgp:4",
            32,
        ),
        (
            "v_mfma_scale_f32_32x32x64_f8f6f4 a[0:15], v[0:3], v[4:7], a[0:15], v8, v9 op_sel_hi:[0,0,0] cbsz:4 blgp:4",
            32,
        ),
        ("v_mfma_f32_16x16x32_bf16 v[10:13], v[0:3], v[4:7], v[10:13]", 16),
        ("v_add_f32_e32 v0, v1, v2", 0),
    ],
)
def test_matrix_clocks(text, clocks):
    assert model.matrix_clocks(code(text)[0]) == clocks


@pytest.mark.parametrize(
    "text, size",
    [
        ("ds_read_b128 v[0:3], v9 offset:16", 1024), ("ds_read_b64 v[0:1], v9", 512), ("ds_read_b32 v0, v9", 256),
        ("ds_read_u8 v0, v9", 64), ("ds_read2st64_b32 v[0:1], v9 offset1:17", 512),
        ("buffer_load_dwordx4 v1, s[0:3], s4 offen offset:256 lds", 1024), ("global_load_ushort v1, v[2:3], off", 128),
    ],
)  # fmt: skip
def test_access_bytes(text, size):
    assert model.access_bytes(code(text)[0]) == size


def test_registers_and_destinations():
    assert isa.registers_of("v[2:3]") == {"v2", "v3"}
    assert isa.registers_of("a7") == {"a7"}
    assert isa.registers_of("s[0:3]") == frozenset()
    load, to_lds, store = code(
        "buffer_load_dword v1, v2, s[0:3], 0 offen",
        "buffer_load_dword v1, s[0:3], 0 offen lds",
        "ds_write_b32 v1, v2",
    )
    assert load.has_destination and not to_lds.has_destination and not store.has_destination
    assert to_lds.is_lds_load and to_lds.reads(frozenset({"v1"})) and not load.reads(frozenset({"v1"}))


def test_distance_from_a_read_to_its_use_goes_around_the_loop():
    loop = code("ds_read_b128 v[0:3], v20", mfma("v[10:13]", "v[24:27]"), mfma("v[14:17]", "v[0:3]"),
                "ds_read_b128 v[4:7], v20", mfma("v[28:31]", "v[24:27]", "v[24:27]"))  # fmt: skip
    # v[0:3] passes one matrix instruction; v[4:7] the last one, then wraps to the first, which uses it.
    assert model.read_distances(loop) == [16, 16]


def test_clocks_from_a_load_to_its_wait_whatever_the_iteration():
    load = "buffer_load_dwordx4 v1, s[0:3], s4 offen lds"
    next_iteration = code(load, load, mfma("v[10:13]"), "s_waitcnt vmcnt(2)", "s_barrier")
    assert model.prefetch_clocks(next_iteration) == 2 * 16
    same = code(load, *[mfma("v[10:13]")] * 5, "s_waitcnt vmcnt(0)", *[mfma("v[10:13]")] * 9)
    assert model.prefetch_clocks(same) == 5 * 16
    # Two loads outstanding: the one waited for is of the iteration before, 14 + 5 instructions ago.
    assert model.prefetch_clocks([*same[:6], *code("s_waitcnt vmcnt(1)"), *same[7:]]) == 19 * 16
    assert model.prefetch_clocks(code(load, mfma("v[10:13]"))) is None


@pytest.mark.parametrize("waves, matrix, issue", [(4, 32, 2 * 12 + 7 * 4), (8, 64, 2 * 12 + 7 * 4)])
def test_a_second_wave_of_a_simd_issues_while_the_first_one_does(waves, matrix, issue):
    """It needs the matrix pipe for itself, but not the issue of the other's instructions."""
    body = [mfma("v[12:15]"), mfma("v[16:19]"), *["s_nop 0"] * 4]
    text = harness.kernel_asm("s_mov_b32 s4, 4\nloop:\n" + "\n".join([*body, "s_sub_u32 s4, s4, 1"]) +
                              "\ns_cmp_lg_u32 s4, 0\ns_cbranch_scc1 loop")  # fmt: skip
    text = text.replace("max_flat_workgroup_size: 1024", f"max_flat_workgroup_size: {64 * waves}")
    (kernel,) = isa.read_code_object(harness.assemble(text))
    loop = model.model_loop(kernel)
    assert loop is not None
    assert (loop.clocks["matrix"], loop.clocks["issue"]) == (matrix, issue)


def test_accumulator_moves_are_told_from_other_moves():
    loop = code(
        mfma("a[0:3]"), "v_accvgpr_read_b32 v50, a1", "v_accvgpr_read_b32 v51, a77", "v_mov_b32_e32 v60, v61"
    )
    assert model.accumulator_moves(loop, [loop[0]]) == 1


def test_main_loop_is_the_branch_with_most_matrix_instructions():
    listing = """
0000000000001000 <k>:
\ts_nop 0                                                    // 000000001000: BF800000
\tv_mfma_f32_16x16x32_bf16 v[0:3], v[4:7], v[8:11], v[0:3]   // 000000001004: D3B50000 00000000
\ts_cbranch_scc1 65533                                       // 00000000100C: BF85FFFD <k+0x4>
\tv_nop                                                      // 000000001010: 7E000000
\ts_cbranch_scc1 65534                                       // 000000001014: BF85FFFE <k+0x10>
"""
    (instructions,) = isa.parse_disassembly(listing).values()
    assert [i.address for i in isa.find_main_loop(instructions)] == [0x1004, 0x100C]


def test_main_loop_is_what_stands_together_of_a_loop():
    """Here it is entered in its middle, and a block of it that is seldom run lies behind the end and jumps back."""
    listing = """
0000000000001000 <k>:
\ts_branch 3                                                  // 000000001000: BF820003 <k+0x10>
\tv_mfma_f32_16x16x32_bf16 v[0:3], v[4:7], v[8:11], v[0:3]   // 000000001004: D3B50000 00000000
\ts_cbranch_scc1 3                                           // 00000000100C: BF850003 <k+0x1c>
\ts_nop 0                                                    // 000000001010: BF800000
\ts_cbranch_vccnz 65531                                      // 000000001014: BF87FFFB <k+0x4>
\ts_endpgm                                                   // 000000001018: BF810000
\tv_mfma_f32_16x16x32_bf16 v[0:3], v[4:7], v[8:11], v[0:3]   // 00000000101C: D3B50000 00000000
\ts_branch 65530                                             // 000000001024: BF82FFFA <k+0x10>
"""
    (instructions,) = isa.parse_disassembly(listing).values()
    assert [i.address for i in isa.find_main_loop(instructions)] == [0x1004, 0x100C, 0x1010, 0x1014]


def test_exponentials_take_a_quarter_of_the_vector_rate_and_float_products_twice_the_clocks():
    assert model.matrix_clocks(code("v_mfma_f32_32x32x2_f32 v[0:15], v16, v17, v[0:15]")[0]) == 64
    assert model.matrix_clocks(code("v_mfma_f32_32x32x16_f16 v[0:15], v[16:19], v[20:23], v[0:15]")[0]) == 32
    slow, quick = (model.TRANSCENDENTAL.match(name) for name in ("v_exp_f32", "v_mul_f32"))
    assert slow and not quick


def test_llvm_mca_sees_a_busy_and_an_idle_pipe():
    busy = code(*[mfma(f"v[{12 + 4 * n}:{15 + 4 * n}]") for n in range(16)])
    assert model.mca_fraction("gfx950", busy) > 0.95
    crowded = code(*[mfma("v[12:15]"), *["s_add_i32 s4, s4, 1"] * 12] * 4)
    assert model.mca_fraction("gfx950", crowded) < 0.5


def test_roofline():
    seconds, by = model.roofline_seconds("fp4", 8192, 8192, 8192)
    assert by == "matrix" and seconds == pytest.approx(2 * 8192**3 / 10.07e15)
    seconds, by = model.roofline_seconds("fp4", 1, 4096, 4096)
    assert by == "memory" and seconds == pytest.approx(
        (4096 * 4.25 / 8 + 4096 * 4096 * 4.25 / 8 + 8192) / 8e12
    )


def test_report_of_a_code_object(capsys):
    multiply = "v_mfma_f32_16x16x32_bf16 v[0:3], v[4:7], v[8:11], v[0:3]"
    body = f"s_mov_b32 s4, 4\nloop:\n{multiply}\ns_sub_u32 s4, s4, 1\ns_cmp_lg_u32 s4, 0\ns_cbranch_scc1 loop"
    path = str(harness.assemble(harness.kernel_asm(body, lds=1024)))
    assert main([path, "--json"]) == 0
    (k,) = json.loads(capsys.readouterr().out)
    assert (k["name"], k["lds"], k["scratch"]) == ("k", 1024, 0)
    assert k["loop"]["matrix_instructions"] == 1 and k["loop"]["others"] == 3
    assert k["gate"] == "fail" and k["format"] == "bf16"
    assert main([path]) == 0
    text = capsys.readouterr().out
    assert "not measurements" in text and "a bound, not a" in text
