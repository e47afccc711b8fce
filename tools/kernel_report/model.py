"""A static performance model of a kernel's main loop. What it gives are ceilings, not measurements.

Constants are from AMD's gfx950 Gluon tutorials and matrix-core blog unless said (docs/mi355x.md): per iteration and
compute unit, MFMA share = matrix clocks / the largest of all resources. Exposed latency comes on top; llvm-mca's
in-order model of one wave shows part of it.
"""

from __future__ import annotations

import functools
import re
from collections import deque
from dataclasses import dataclass, field

from mxort.errors import MxortError
from tools.kernel_report.isa import Instruction, Kernel, registers_of, run_tool

SIMDS = 4
MFMA_ISSUE = (
    12  # clocks a scaled matrix instruction blocks its SIMD's issue; any other instruction OTHER_ISSUE
)
OTHER_ISSUE = 4
TRANSCENDENTAL_ISSUE = 16  # of v_exp_f32 and its like, a quarter of the rate, an assumption
LDS_BYTES_PER_CLOCK = 256
VMEM_BYTES_PER_CLOCK = 45.056  # 44 KB in flight per about 1000 clocks of latency
L2_BYTES_PER_CLOCK = 64  # own estimate
MAX_WAVES = 8
REGISTERS = 512
LDS_BYTES = {"gfx950": 160 << 10, "gfx942": 64 << 10}

MCA_SECONDS = 20  # some loops of float matrix instructions keep llvm-mca 22 busy for ever

GATE_SHARE = 0.95
GATE_OTHERS = 1.0  # other instructions per 16 matrix clocks
GATE_READ_DISTANCE = 128  # clocks from a ds_read to its use
GATE_PREFETCH = 1000  # clocks between a load and its wait
GATE_MCA = 0.95
GATE_LOOP_BYTES = 32 << 10
SMALL_TILE_SHARE = 0.6  # 128x128 tiles are bound by loads
SMALL_TILE_MCA = 0.90

TRANSCENDENTAL = re.compile(r"v_(exp|log|rcp|rsq|sqrt|sin|cos)_f(16|32)")
FP8_CODES = (0, 1)
FP6_CODES = (2, 3)


def matrix_clocks(i: Instruction) -> int:
    """Clocks a matrix instruction occupies the matrix pipe of its SIMD; 0 for other instructions."""
    shape = re.match(r"v_mfma_(?:scale_)?f32_(\d+)x\d+x(\d+)", i.mnemonic)
    if not shape:
        return 0
    clocks = 16 if shape[1] == "16" else 32
    if i.mnemonic.endswith("_f32"):
        return 2 * clocks
    slow = "f8f6f4" in i.mnemonic and (i.modifier("cbsz") in FP8_CODES or i.modifier("blgp") in FP8_CODES)
    return clocks * (2 if slow else 1)


def access_bytes(i: Instruction) -> int:
    """Bytes a wave moves with a memory instruction."""
    sizes = {"ubyte": 1, "sbyte": 1, "u8": 1, "i8": 1, "ushort": 2, "short": 2, "u16": 2, "i16": 2}
    for suffix, size in sizes.items():
        if i.mnemonic.endswith(suffix):
            return 64 * size
    wide = re.search(r"dwordx(\d)|_b(\d+)(?:_tr_b\d+)?$", i.mnemonic)
    if wide:
        bytes_per_lane = int(wide[1]) * 4 if wide[1] else int(wide[2]) // 8
        return 64 * bytes_per_lane * (2 if "read2" in i.mnemonic or "write2" in i.mnemonic else 1)
    return 64 * 4


def is_vmem_load(i: Instruction) -> bool:
    return bool(re.match(r"(buffer|global|flat)_load", i.mnemonic))


def waited_vmcnt(i: Instruction) -> int | None:
    found = re.search(r"vmcnt\((\d+)\)", i.text)
    return int(found[1]) if i.mnemonic == "s_waitcnt" and found else None


def read_distances(loop: list[Instruction]) -> list[int]:
    """For each ds_read of the loop, the matrix clocks issued between it and the first use of what it read."""
    out = []
    ring = loop * 2
    for n, i in enumerate(loop):
        if not i.mnemonic.startswith("ds_read") or not i.operands:
            continue
        target = registers_written(i)
        clocks = 0
        for later in ring[n + 1 : n + 1 + len(loop)]:
            if later.reads(target):
                break
            clocks += matrix_clocks(later)
        out.append(clocks)
    return out


def registers_written(i: Instruction) -> frozenset[str]:
    return registers_of(i.operands[0]) if i.has_destination and i.operands else frozenset()


def prefetch_clocks(loop: list[Instruction]) -> int | None:
    """Matrix clocks of a wave between the issue of a load and the wait that completes it, however many iterations that
    is: the least over the loads; None where nothing waits for one."""
    outstanding: deque[int] = deque()
    clock = 0
    least: int | None = None
    rounds = 10
    for n, i in enumerate(loop * rounds):
        if is_vmem_load(i):
            outstanding.append(clock)
        count = waited_vmcnt(i)
        while count is not None and len(outstanding) > count:
            issued = outstanding.popleft()
            if n >= (rounds - 1) * len(loop):
                least = clock - issued if least is None else min(least, clock - issued)
        clock += matrix_clocks(i)
    return least


def mca_fraction(arch: str, loop: list[Instruction]) -> float | None:
    """llvm-mca's share of matrix clocks in the loop's steady state, one wave alone; None where llvm-mca cannot tell.

    Its model counts four-clock passes and does not double FP8; so the pipe's need is 4 (16x16) or 8 (32x32) passes.
    """
    body = [i for i in loop if "branch" not in i.mnemonic]
    cycles = steady_cycles(arch, "\n".join(i.text for i in body) + "\n")
    passes = sum(4 if "16x16" in i.mnemonic else 8 for i in body if matrix_clocks(i))
    return cycles and 20 * passes / cycles


@functools.cache
def steady_cycles(arch: str, text: str) -> int | None:
    """llvm-mca's cycles of 20 iterations of instructions, after the first ten."""
    cycles = []
    for iterations in (10, 30):
        options = ("-mtriple=amdgcn-amd-amdhsa", f"-mcpu={arch}", f"-iterations={iterations}", "-")
        try:
            out = run_tool("llvm-mca", *options, text=text, seconds=MCA_SECONDS)
        except (MxortError, RuntimeError, FileNotFoundError):
            return None
        found = re.search(r"Total Cycles:\s+(\d+)", out)
        if not found:
            return None
        cycles.append(int(found[1]))
    return cycles[1] - cycles[0]


@dataclass
class LoopModel:
    """Clocks of each resource in one iteration of the main loop, and what follows."""

    clocks: dict[str, float]  # resource -> clocks per iteration of a workgroup on its compute unit
    share: float
    binding: str
    matrix_instructions: int
    others: float  # other instructions per 16 matrix clocks of a wave
    accumulator_moves: int
    least_read_distance: int | None
    early_reads: int
    reads: int
    prefetch: (
        int | None
    )  # clocks from a load to its wait, as far as the loop's own time makes its matrix clocks
    mca: float | None
    scratch: int
    failures: list[str] = field(default_factory=list)


def waves_per_simd(kernel: Kernel) -> int:
    """Waves of one SIMD that registers and LDS allow."""
    r = kernel.resources
    by_registers = REGISTERS // max(8, -(-r.vgprs // 8) * 8)
    group_waves = max(1, r.threads // 64)
    groups = LDS_BYTES.get(kernel.arch, 64 << 10) // r.lds if r.lds else MAX_WAVES * SIMDS
    by_lds = groups * group_waves // SIMDS if groups * group_waves >= SIMDS else 1
    return max(1, min(MAX_WAVES, by_registers, by_lds))


def loop_clocks(kernel: Kernel) -> dict[str, float]:
    """Clocks of each resource in one iteration of the main loop, of a workgroup on its compute unit."""
    loop = kernel.loop
    waves = max(1, kernel.resources.threads // 64)
    per_simd = waves / SIMDS
    matrix = [i for i in loop if matrix_clocks(i)]
    vector = [i for i in loop if i.mnemonic.startswith("v_") and not matrix_clocks(i)]
    loaded = sum(access_bytes(i) for i in loop if is_vmem_load(i))
    to_lds = sum(access_bytes(i) for i in loop if i.is_lds_load)
    lds = sum(max(256, access_bytes(i)) for i in loop if i.mnemonic.startswith("ds_")) + to_lds
    slow = sum(bool(TRANSCENDENTAL.match(i.mnemonic)) for i in vector) * (TRANSCENDENTAL_ISSUE - OTHER_ISSUE)
    return {
        "matrix": sum(map(matrix_clocks, matrix)) * per_simd,
        # Of one wave: another issues in between.
        "issue": MFMA_ISSUE * len(matrix) + OTHER_ISSUE * (len(loop) - len(matrix)),
        "vector": per_simd * (MFMA_ISSUE * len(matrix) + OTHER_ISSUE * len(vector) + slow),
        "lds": waves * lds / LDS_BYTES_PER_CLOCK,
        "loads": waves * loaded / VMEM_BYTES_PER_CLOCK,
        "l2": waves * loaded / L2_BYTES_PER_CLOCK,
    }


def model_loop(kernel: Kernel) -> LoopModel | None:
    """The model of a kernel's main loop; None where it has none."""
    loop = kernel.loop
    if not loop:
        return None
    clocks = loop_clocks(kernel)
    matrix = [i for i in loop if matrix_clocks(i)]
    own_clocks = sum(map(matrix_clocks, matrix))
    binding = max(clocks, key=lambda k: (clocks[k], k == "matrix"))
    distances = read_distances(loop)
    early = prefetch_clocks(loop)
    model = LoopModel(
        clocks=clocks,
        share=clocks["matrix"] / clocks[binding],
        binding=binding,
        matrix_instructions=len(matrix),
        others=(len(loop) - len(matrix)) / (own_clocks / 16),
        accumulator_moves=accumulator_moves(loop, matrix),
        least_read_distance=min(distances, default=None),
        early_reads=sum(d < GATE_READ_DISTANCE for d in distances),
        reads=len(distances),
        prefetch=None if early is None else round(early * clocks[binding] / own_clocks),
        mca=mca_fraction(kernel.arch, loop),
        scratch=sum(i.mnemonic.startswith("scratch_") for i in loop),
    )
    model.failures = gate(kernel, model)
    return model


def accumulator_moves(loop: list[Instruction], matrix: list[Instruction]) -> int:
    """Moves from or to registers that a matrix instruction accumulates in."""
    accumulators: set[str] = set()
    for i in matrix:
        accumulators |= registers_written(i)
    moves = [i for i in loop if re.match(r"v_(accvgpr_|mov_b)", i.mnemonic)]
    return sum(i.reads(frozenset(accumulators)) or bool(registers_written(i) & accumulators) for i in moves)


def gate(kernel: Kernel, m: LoopModel) -> list[str]:
    """What keeps the loop from "good at large shapes"; loops bound by their tile's loads are asked for less."""
    r = kernel.resources
    small = m.binding == "loads" and m.share < GATE_SHARE
    tests = [
        (
            m.share >= (SMALL_TILE_SHARE if small else GATE_SHARE),
            f"matrix share {m.share:.2f}, bound by {m.binding}",
        ),
        (small or m.others <= GATE_OTHERS, f"{m.others:.2f} other instructions per 16 matrix clocks"),
        (m.accumulator_moves == 0, f"{m.accumulator_moves} accumulator moves in the loop"),
        (m.scratch == 0, f"{m.scratch} scratch accesses in the loop"),
        (r.scratch == 0 and r.vgpr_spills == 0, f"scratch {r.scratch} bytes, {r.vgpr_spills} spills"),
        (
            waves_per_simd(kernel) > 1 or m.early_reads == 0,
            f"{m.early_reads} LDS reads used within {GATE_READ_DISTANCE} clocks",
        ),
        (
            m.prefetch is None or m.prefetch >= GATE_PREFETCH,
            f"loads waited for after {m.prefetch} clocks",
        ),
        (
            m.mca is not None and m.mca >= (SMALL_TILE_MCA if small else GATE_MCA),
            f"llvm-mca {m.mca and round(m.mca, 2)}",
        ),
        (r.lds <= LDS_BYTES.get(kernel.arch, 64 << 10), f"{r.lds} bytes of LDS"),
        (kernel.loop_bytes < GATE_LOOP_BYTES, f"loop of {kernel.loop_bytes} bytes"),
    ]
    return [message for ok, message in tests if not ok]


# ---- roofline ----------------------------------------------------------------------------------------------------

PEAK_FLOPS = {"fp4": 10.07e15, "fp6": 10.07e15, "fp8": 5.03e15, "bf16": 2.5e15}
MEMORY_BYTES_PER_SECOND = 8e12
BITS = {"fp4": 4.25, "fp6": 6.25, "fp8": 8.25, "bf16": 16.0}  # an activation, its share of a scale included
WEIGHT_BITS = 4.25
OUTPUT_BYTES = 2
SHAPES = [(1, 4096, 4096), (16, 4096, 4096), (256, 4096, 4096), (512, 8192, 4096), (2048, 8192, 8192),
          (4096, 4096, 32768), (32768, 4096, 14336)]  # fmt: skip


def activation_format(kernel: Kernel) -> str:
    """Format of the wider operand of the main loop's matrix instructions."""
    for i in kernel.loop:
        if "f8f6f4" in i.mnemonic:
            codes = (i.modifier("cbsz"), i.modifier("blgp"))
            return "fp8" if set(codes) & set(FP8_CODES) else "fp6" if set(codes) & set(FP6_CODES) else "fp4"
    return "bf16"


def roofline_seconds(fmt: str, m: int, n: int, k: int) -> tuple[float, str]:
    """(least possible seconds on an MI355X, what bounds it): a bound from published peaks, not a measurement."""
    compute = 2.0 * m * n * k / PEAK_FLOPS[fmt]
    moved = m * k * BITS[fmt] / 8 + n * k * WEIGHT_BITS / 8 + m * n * OUTPUT_BYTES
    memory = moved / MEMORY_BYTES_PER_SECOND
    return (compute, "matrix") if compute >= memory else (memory, "memory")
