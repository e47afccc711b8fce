"""What the compiled kernels use, by the kernel report: no scratch, no spills, and the main loops pass the gate."""

import dataclasses
import re

import experts_device
import pytest

import device
from device import kernels
from tools.kernel_report import model
from tools.kernel_report.isa import find_loops

OBJECTS = [(arch, name) for arch, names in device.OBJECTS.items() for name in names]


@pytest.mark.parametrize("arch, name", OBJECTS)
def test_no_scratch_no_spills_and_no_warnings(arch, name):
    # device.FLAGS has -Wall -Wextra -Werror.
    found = kernels(arch, name)
    assert found
    for kernel in found.values():
        r = kernel.resources
        assert (r.scratch, r.sgpr_spills) == (0, 0), r
        # A wave alone on its SIMD has accumulation registers to spill to, which are not memory: outside the main loop.
        assert r.vgpr_spills == 0 or (r.vgprs > 256 and r.vgpr_spills <= 8 and "prefill" in r.name), r
        assert r.lds <= model.LDS_BYTES[arch], r
        assert kernel.loop_bytes < model.GATE_LOOP_BYTES


def test_the_table_lists_exactly_the_kernels_that_exist():
    for arch in device.ARCHITECTURES:
        rows = {r["name"] for r in device.gemm_rows() if r["arch"] in ("", arch)}
        built = {k for name in device.OBJECTS[arch] for k in kernels(arch, name) if k.startswith("gemm_")}
        assert rows == built


def test_the_table_of_experts_lists_exactly_their_products():
    for arch in device.ARCHITECTURES:
        rows = [r for r in experts_device.table() if r["arch"] in ("", arch)]
        built = {
            k for name in device.OBJECTS[arch] if name.startswith("experts_") for k in kernels(arch, name)
        }
        assert {kernel for r in rows for kernel in r["kernels"]} == built


@pytest.mark.parametrize("fmt", ["fp4", "e2m3", "e3m2", "e4m3"])
@pytest.mark.parametrize("kind", ["gemm", "experts"])
def test_large_tiles_pass_the_gate(kind, fmt):
    kernel = kernels("gfx950", f"{kind}_mx")[f"{kind}_{fmt}_256x256"]
    loop = model.model_loop(kernel)
    assert loop is not None
    assert loop.failures == []
    assert (loop.share, loop.accumulator_moves) == (1.0, 0)
    assert kernel.resources.agprs > 0


@pytest.mark.parametrize("kind", ["gemm", "experts"])
def test_the_128x128_tile_is_at_its_cap(kind):
    loop = model.model_loop(kernels("gfx950", f"{kind}_mx")[f"{kind}_fp4_128x128"])
    assert loop is not None
    assert loop.failures == []
    assert (loop.binding, round(loop.share, 2)) == ("loads", 0.66)
    assert loop.mca is not None and loop.mca >= 0.9


@pytest.mark.parametrize("fmt", ["e2m3", "e3m2", "e4m3"])
def test_other_128x128_tiles_keep_the_matrix_pipe_busy(fmt):
    """Bound by the loads of their larger activations; one wave alone issues well."""
    loop = model.model_loop(kernels("gfx950", "gemm_mx")[f"gemm_{fmt}_128x128"])
    assert loop is not None
    assert loop.binding == "loads" and loop.mca is not None and loop.mca >= 0.9
    assert (loop.accumulator_moves, loop.early_reads) == (0, 0)
    assert loop.prefetch is not None and loop.prefetch >= model.GATE_PREFETCH


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_largest_dense_tile_has_loops_without_questions(dtype):
    """One for operands along K, one for B along its columns, whose loads are a stage ahead of their use."""
    kernel = kernels("gfx950", "product")[f"product_{dtype}_256x256"]
    of_k, of_rows, any_way = sorted(find_loops(kernel.code), key=len)
    assert kernel.loop == of_k and len(any_way) > 2 * len(of_rows)
    for loop, least in ((of_k, 0.95), (of_rows, 0.8)):
        found = model.model_loop(dataclasses.replace(kernel, loop=loop))
        assert found is not None and (found.matrix_instructions, found.scratch) == (64, 0)
        assert found.share >= least and found.mca is not None and found.mca >= 0.7
        assert found.prefetch is not None and found.prefetch >= model.GATE_PREFETCH
        assert not [i for i in loop if "cndmask" in i.mnemonic or i.mnemonic.startswith("v_cmp")]


@pytest.mark.parametrize(
    "arch, name, steps",
    [("gfx950", f"{kind}_mx", 4) for kind in ("gemm", "experts")]
    + [(arch, f"{kind}_bf16", 4) for kind in ("gemm", "experts") for arch in device.ARCHITECTURES]
    + [(arch, "gemm_byte", 2) for arch in device.ARCHITECTURES],
)
def test_skinny_kernels_load_each_weight_byte_once_sixteen_bytes_a_lane(arch, name, steps):
    """An iteration loads 4 steps of FP4 weights, 4 x (4 KB of codes + 256 bytes of scales) a wave, or 2 steps of codes
    of a byte, and multiplies all terms of A by them. Steps are dealt to waves by index, so no two loads are of the same
    record."""
    skinny = [k for n, k in kernels(arch, name).items() if n.endswith(("_skinny", "_up"))]
    assert skinny
    for kernel in skinny:
        first = next(i for i in kernel.loop if i.mnemonic == "buffer_load_dwordx4")
        weights = first.operands[2]  # the buffer descriptor: A has another one
        loads = [i.mnemonic for i in kernel.loop if model.is_vmem_load(i) and i.operands[2] == weights]
        assert sorted(loads) == ["buffer_load_dword"] * steps + ["buffer_load_dwordx4"] * 16
        assert len(loads) == sum(model.is_vmem_load(i) and i.operands[2] == weights for i in kernel.code)


@pytest.mark.parametrize("arch", device.ARCHITECTURES)
def test_attention_of_few_rows_loads_each_byte_of_the_cache_once(arch):
    """A turn of a wave is 32 keys and values; nothing else is loaded in the loop, where there is no mask."""
    checked = 0
    for name, kernel in kernels(arch, "attention").items():
        found = re.fullmatch(r"attention_(float|float16|bfloat16)_(\d+)", name)
        if not found:
            continue
        checked += 1
        loads = [i for i in kernel.loop if i.mnemonic.startswith("buffer_load")]
        bytes_of_turn = 32 * 2 * int(found[2]) * (4 if found[1] == "float" else 2)
        assert sum(map(model.access_bytes, loads)) == bytes_of_turn, name
        assert min(map(model.access_bytes, loads)) >= 64 * 8  # of a lane
    assert checked == 12


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_attention_of_many_rows_has_a_loop_without_masks(dtype):
    """Of head size 128, two steps: 32 matrix instructions for 64 keys of a wave's 32 rows, each operand read from LDS
    once, and its eight waves' share of what is staged."""
    kernel = kernels("gfx950", "attention_prefill")[f"prefill_{dtype}_128"]
    loop = model.model_loop(kernel)
    assert loop is not None
    assert (loop.matrix_instructions, loop.reads, loop.binding) == (2 * 32, 2 * 32, "vector")
    loads = [i for i in kernel.loop if i.mnemonic.startswith("buffer_load")]
    assert sum(map(model.access_bytes, loads)) == 2 * 2 * 64 * 128 * 2 // 8  # of keys and values, each once
    exponentials = [i for i in kernel.loop if i.mnemonic == "v_exp_f32"]
    assert len(exponentials) == 2 * 32  # one a score
    assert loop.share >= 0.75 and loop.clocks["issue"] <= loop.clocks["matrix"] * 0.65
    assert loop.mca is not None and loop.mca >= 0.65  # one wave alone; there are two on a SIMD
    assert loop.prefetch is not None and loop.prefetch >= 1000
    assert model.waves_per_simd(kernel) == 2 and not loop.scratch and not kernel.resources.vgpr_spills


@pytest.mark.parametrize("size, share", [(64, 0.44), (96, 0.58), (256, 0.78)])
def test_attention_of_many_rows_of_other_sizes(size, share):
    for dtype in ("float16", "bfloat16"):
        loop = model.model_loop(kernels("gfx950", "attention_prefill")[f"prefill_{dtype}_{size}"])
        assert loop is not None and loop.share >= share and not loop.scratch


def wait_states(i):
    return int(i.operands[0]) + 1 if i.mnemonic == "s_nop" else 1


def scalars(operand):
    found = re.fullmatch(r"s(?:(\d+)|\[(\d+):(\d+)\])", operand)
    return set(range(int(found[1] or found[2]), int(found[1] or found[3]) + 1)) if found else set()


@pytest.mark.parametrize(
    "arch, name", [o for o in OBJECTS if o[1] in ("gemm_mx", "gemm_bf16", "experts_mx", "experts_bf16")]
)
def test_hazards_that_the_compiler_cannot_see_in_inline_assembly(arch, name):
    """gfx9: one wait state from a write of m0 to a load into LDS; five from a vector instruction's scalar result."""
    checked = 0
    for kernel in kernels(arch, name).values():
        for n, i in enumerate(kernel.code):
            if not i.is_lds_load:
                continue
            checked += 1
            states = 0
            for before in reversed(kernel.code[max(0, n - 6) : n]):
                destination = before.operands[0] if before.operands else ""
                if states < 1:
                    assert destination != "m0", (kernel.resources.name, i)
                if states < 5 and before.mnemonic.startswith("v_"):
                    used = set().union(*map(scalars, i.operands))
                    assert not scalars(destination) & used, (kernel.resources.name, before, i)
                states += wait_states(before)
    assert checked
