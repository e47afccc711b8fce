"""The tests of the GEMM can fail: each broken copy of the large FP4 kernel's main loop is caught.

Redundant instructions are listed with the reason; a mutation that survives without being listed fails the test.
"""

import tempfile
from pathlib import Path

import pytest
from gpu_oracle import Problem

import device
from device import Spec
from hipsim import harness, mutate

KERNEL = "gemm_fp4_256x256"
SPEC = Spec(256, 128 * 9, 256, "float", "mxfp4")  # one tile: all fragments, twice through the four stages

# Mutations that change nothing that can be observed, by (kind, text of the instruction).
REDUNDANT: dict[tuple[str, str], str] = {}


def caught(image: bytes, problem: Problem) -> str:
    """How a broken code object shows, "" if it does not."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "broken.co"
        path.write_bytes(image)
        for seed in (1, 2):  # another order of the waves
            machine = device.Device("gfx950", seed=seed)
            machine.replace["gemm_mx"] = path
            try:
                problem.check(problem.run(machine, KERNEL), KERNEL)
            except harness.SimFault as fault:
                return f"stopped: {fault}"
            except AssertionError as error:
                return f"wrong: {error}"
    return ""


def mutations(kinds, every=1):
    co = mutate.CodeObject(device.code_object("gfx950", "gemm_mx"))
    return list(co.mutations(KERNEL, kinds))[::every]


# The matrix instructions all come from one template: a sample of them by default, all with -m slow.
@pytest.mark.parametrize(
    "kinds, every",
    [
        (("drop_wait", "drop_barrier", "relax_vmcnt", "relax_lgkmcnt"), 1),
        (("lds_offset", "buffer_offset"), 1),
        (("opsel_a", "opsel_b", "swap_ab"), 11),
        pytest.param(("opsel_a", "opsel_b", "swap_ab"), 1, marks=pytest.mark.slow),
    ],
    ids=["synchronisation", "addresses", "operands", "all-operands"],
)
def test_broken_loops_are_caught(kinds, every):
    problem = Problem(SPEC)
    tried = mutations(kinds, every)
    assert tried
    survivors = []
    for m in tried:
        how = caught(m.image, problem)
        print(f"{m.name}: {how[:150] or 'SURVIVED'}")
        if not how and (m.kind, m.instruction.text) not in REDUNDANT:
            survivors.append(m.name)
    assert not survivors


def test_the_unbroken_kernel_passes():
    assert caught(device.code_object("gfx950", "gemm_mx").read_bytes(), Problem(SPEC)) == ""
