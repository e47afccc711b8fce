"""A small GEMM with direct-to-LDS loads is right; each mutation of its loop is noticed."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from hipsim import harness, mutate
from mxort import formats

# 16 x 16 output per wave, two waves side by side along N; K in steps of 256 (two instructions). A goes to LDS
# by direct loads, double-buffered, and is read by both waves; B comes from global memory. The
# scales of a step are the bytes of one register.
SOURCE = """
typedef int v4i __attribute__((ext_vector_type(4)));
typedef int v8i __attribute__((ext_vector_type(8)));
typedef float v4f __attribute__((ext_vector_type(4)));
#define SHARED __attribute__((address_space(3)))
__attribute__((shared)) char storage[2][2048];

extern "C" __attribute__((global, amdgpu_flat_work_group_size(128, 128)))
void gemm(const char* a, const char* b, const unsigned short* sa, const unsigned short* sb, float* c, int k) {
  int thread = __builtin_amdgcn_workitem_id_x(), lane = thread & 63, wave = thread >> 6;
  int row = lane & 15, group = lane >> 4;
  wave = __builtin_amdgcn_readfirstlane(wave);
  SHARED char* lds = (SHARED char*)&storage[0][0];
  __amdgpu_buffer_rsrc_t ra = __builtin_amdgcn_make_buffer_rsrc((void*)a, 0, 16 * k / 2, 0x00027000);
  // Thread t loads 16 bytes of row t / 8, part t % 8 of a step of 128 bytes.
  int source = (thread / 8) * (k / 2) + (thread % 8) * 16;
  auto load = [&](int step, int stage) {
    SHARED char* to = lds + stage * 2048 + wave * 1024;
    __builtin_amdgcn_raw_ptr_buffer_load_lds(ra, to, 16, source, step * 128, 0, 0);
  };
  v4f acc = {0, 0, 0, 0};
  int steps = k / 256;
  load(0, 0);
  const char* bp = b + (wave * 16 + row) * (k / 2) + group * 16;
  for (int step = 0; step < steps; step++) {
    if (step + 1 < steps) load(step + 1, (step + 1) & 1);
    int scale_a = sa[(step * 4 + group) * 16 + row], scale_b = sb[(step * 4 + group) * 32 + wave * 16 + row];
    v4i b0 = *(const v4i*)(bp + step * 128), b1 = *(const v4i*)(bp + step * 128 + 64);
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
    __builtin_amdgcn_s_waitcnt(0x0f70);
    __builtin_amdgcn_s_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
    SHARED const char* from = lds + (step & 1) * 2048 + row * 128 + group * 16;
    v4i a0 = *(SHARED const v4i*)from, a1 = *(SHARED const v4i*)(from + 64);
    v8i A = {a0[0], a0[1], a0[2], a0[3]}, B = {b0[0], b0[1], b0[2], b0[3]};
    acc = __builtin_amdgcn_mfma_scale_f32_16x16x128_f8f6f4(A, B, acc, 4, 4, 0, scale_a, 0, scale_b);
    v8i A1 = {a1[0], a1[1], a1[2], a1[3]}, B1 = {b1[0], b1[1], b1[2], b1[3]};
    acc = __builtin_amdgcn_mfma_scale_f32_16x16x128_f8f6f4(A1, B1, acc, 4, 4, 1, scale_a, 1, scale_b);
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
    __builtin_amdgcn_s_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
  }
  for (int i = 0; i < 4; i++) c[(group * 4 + i) * 32 + wave * 16 + row] = acc[i];
}
"""
K = 1024


def step_scales(scales: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """[rows, K/32] -> [step, group, row]: byte 0 for the first instruction of a step, byte 1 for the next."""
    s = scales.reshape(len(scales), -1, 2, 4).astype(np.uint16)  # row, step, instruction, group
    return np.ascontiguousarray((s[:, :, 0] | s[:, :, 1] << 8).transpose(1, 2, 0))


@cache
def problem() -> tuple[NDArray, ...]:
    rng = np.random.default_rng(11)
    a, b = (rng.integers(0, 256, (n, K // 2), dtype=np.uint8) for n in (16, 32))
    sa, sb = (rng.integers(120, 134, (n, K // 32), dtype=np.uint8) for n in (16, 32))
    want = (
        formats.dequantize_mxfp4(a, sa, K).astype(float) @ formats.dequantize_mxfp4(b, sb, K).astype(float).T
    )
    return a, b, step_scales(sa), step_scales(sb), want


def run(image: bytes, seed: int) -> NDArray[np.float32]:
    sim = harness.Sim(seed=seed, threads=1, max_steps=100000)
    module = sim.load(image)
    a, b, sa, sb, _ = problem()
    c = sim.empty((16, 32))
    module.launch("gemm", (1,), (128,), [*(sim.to_device(x) for x in (a, b, sa, sb)), c, np.int32(K)])
    return c.numpy()


def right(image: bytes, seed: int) -> bool:
    try:
        return bool(np.allclose(run(image, seed), problem()[-1], rtol=1e-5, atol=1e-3))
    except harness.SimFault:
        return False


@pytest.fixture(scope="module")
def code() -> mutate.CodeObject:
    return mutate.CodeObject(harness.compile_hip(SOURCE))


@pytest.mark.parametrize("seed", range(6))
def test_unchanged_is_right(code: mutate.CodeObject, seed: int) -> None:
    np.testing.assert_allclose(run(code.image, seed), problem()[-1], rtol=1e-5, atol=1e-3)


def test_main_loop(code: mutate.CodeObject) -> None:
    names = [i.mnemonic for i in code.main_loop("gemm")]
    assert names.count("v_mfma_scale_f32_16x16x128_f8f6f4") == 2
    assert names.count("s_barrier") == 2
    assert names[-1].startswith("s_cbranch")


def test_mutations_are_noticed(code: mutate.CodeObject) -> None:
    """Each broken copy faults or is wrong under some wave order."""
    unnoticed = [m.name for m in code.mutations("gemm") if all(right(m.image, seed) for seed in range(4))]
    kinds = {m.kind for m in code.mutations("gemm")}
    assert {"drop_wait", "drop_barrier", "opsel_a", "opsel_b", "lds_offset"} <= kinds
    assert unnoticed == [n for n in unnoticed if "wait" in n or "relax" in n], unnoticed
    barriers_and_data = [n for n in unnoticed if "vmcnt(0)" in n and n.startswith("drop_wait")]
    assert not barriers_and_data, unnoticed


def test_mutation_changes_one_instruction(code: mutate.CodeObject) -> None:
    for m in code.mutations("gemm", kinds=["drop_barrier"]):
        changed = mutate.CodeObject(m.image).functions["gemm"]
        difference = [
            (x.text, y.text) for x, y in zip(code.functions["gemm"], changed, strict=True) if x != y
        ]
        assert difference == [("s_barrier", "s_nop 0")]
