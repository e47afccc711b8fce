"""Runs a few instructions on 64 lanes: the smallest test of an opcode."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hipsim import harness

LANES = 64


def lane_code(body: str, inputs: int, outputs: Sequence[str], first: int = 10) -> str:
    """``inputs`` rows of 64 dwords in v10, v11, ...; ``body``; the named registers to rows of the output.
    Registers for the body: v100 on, s10 on. v0 holds the thread, v1 4 * lane, s[4:5] and s[6:7] the input
    and the output."""
    lines = [
        "s_load_dwordx4 s[4:7], s[0:1], 0x0",
        "v_and_b32 v0, 0x3ff, v0",
        "v_and_b32 v1, 63, v0",
        "v_lshlrev_b32 v1, 2, v1",
        "s_waitcnt lgkmcnt(0)",
    ]
    for k in range(inputs):
        lines += [f"v_add_u32 v2, {256 * k}, v1", f"global_load_dword v{first + k}, v2, s[4:5]"]
    lines += ["s_waitcnt vmcnt(0)", body, "s_mov_b64 exec, -1", "s_nop 7"]
    for k, register in enumerate(outputs):
        source = register
        if register.startswith(("s", "vcc", "exec")):
            lines.append(f"v_mov_b32 v3, {register}")
            source = "v3"
        lines += [f"v_add_u32 v2, {256 * k}, v1", f"global_store_dword v2, {source}, s[6:7]"]
    return "\n".join(f"  {line}" for line in lines)


def run_lanes(
    sim: harness.Sim,
    body: str,
    inputs: NDArray[np.uint32] | Sequence[NDArray[np.uint32]],
    outputs: Sequence[str],
    *,
    arch: str = "gfx950",
    lds: int = 0,
    waves: int = 1,
) -> NDArray[np.uint32]:
    """uint32 [len(outputs), 64] after ``body`` ran on inputs uint32 [n, 64]."""
    rows = (
        np.zeros((0, LANES), np.uint32)
        if len(inputs) == 0
        else np.ascontiguousarray(np.stack(list(inputs)), np.uint32)
    )
    text = harness.kernel_asm(lane_code(body, len(rows), outputs), arch=arch, lds=lds)
    module = sim.load(harness.assemble(text, arch))
    source = sim.to_device(rows if len(rows) else np.zeros((1, LANES), np.uint32))
    result = sim.empty((max(len(outputs), 1), LANES), np.uint32)
    try:
        module.launch("k", (1,), (LANES * waves,), [source, result])
        return result.numpy()
    finally:
        source.free()
        result.free()


def f32_bits(x: object) -> NDArray[np.uint32]:
    return np.asarray(x, np.float32).view(np.uint32)


def as_f32(x: NDArray[np.uint32]) -> NDArray[np.float32]:
    return x.view(np.float32)
