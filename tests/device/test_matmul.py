"""The device layer computes what the operator's double-precision oracle says, on simulated GPUs."""

import numpy as np
import pytest
from machine_process import run

FORMATS = ("none", "mxfp8_e4m3", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp4")


def check_results(arch: str, units: int) -> None:
    """Every format and type, a skinny and a tiled number of rows, ragged sizes; checked against numpy."""
    from gpu_oracle import Problem
    from machine import assert_clean, compute, new_machine

    from device import TYPES, Spec

    sim = new_machine(arch)
    for index, dtype in enumerate(TYPES):
        for fmt in FORMATS:
            for level in (1, 3) if fmt == "none" else (3,):
                m, k, n = ((3, 224, 72), (70, 421, 67), (33, 2304, 136))[(index + len(fmt)) % 3]
                rotation = 32 if k % 32 == 0 else 1
                problem = Problem(Spec(m, k, n, dtype, fmt, rotation, level, arch, units))
                problem.check(compute(problem, self_check=False))
    assert_clean(sim)


@pytest.mark.parametrize("arch, units", [("gfx950", 256), ("gfx942", 304)])
def test_results_match_numpy(arch, units):
    run(check_results, arch, units)


def check_rows() -> None:
    from gpu_oracle import Problem
    from machine import assert_clean, compute, new_machine, node

    from device import Spec

    sim = new_machine()
    empty = Problem(Spec(1, 64, 40, "float16", "mxfp4"))
    y = node(empty, self_check=False)(np.zeros((2, 0, 64), np.float16))
    assert y.shape == (2, 0, 40) and y.dtype == np.float16
    # What exceeds one launch is computed in several: 600 rows, 256 at a time.
    long = Problem(Spec(600, 160, 72, "float", "mxfp4"))
    launches = sim.counters()["launches"]
    long.check(compute(long, self_check=False, most_rows=200))
    assert sim.counters()["launches"] - launches == 3 * 2
    assert_clean(sim)


def test_no_rows_and_more_rows_than_a_launch_takes():
    run(check_rows)


def check_large_weights() -> None:
    """More than one piece of staging memory: 9.2 MB."""
    from gpu_oracle import Problem
    from machine import assert_clean, compute, new_machine

    from device import Spec

    sim = new_machine()
    problem = Problem(Spec(1, 4096, 4200, "float", "mxfp4"))
    problem.check(compute(problem, self_check=False))
    assert_clean(sim)


def test_weights_larger_than_the_staging_memory():
    run(check_large_weights)


def check_sharing() -> None:
    from gpu_oracle import Problem
    from machine import assert_clean, new_machine, node, operand

    from device import Spec

    sim = new_machine()
    problem = Problem(Spec(5, 256, 64, "float", "mxfp4"))
    first = node(problem, self_check=False)
    uploaded = sim.counters()["bytes_to_device"]
    second = node(problem, self_check=False)
    assert second.weights_address == first.weights_address
    assert sim.counters()["bytes_to_device"] == uploaded
    problem.bias[3] += 1
    other = node(problem, self_check=False)
    assert other.weights_address != first.weights_address
    expected = first(operand(problem))
    del first  # the arena that the weights came from
    assert (second(operand(problem)) == expected).all()
    changed = other(operand(problem)) != expected
    assert changed[:, 3].all() and changed.sum() == 5
    del second, other
    assert_clean(sim)


def test_equal_weights_are_uploaded_once():
    run(check_sharing)


def check_memory() -> None:
    from gpu_oracle import Problem
    from machine import assert_clean, new_machine, node, operand

    from device import Spec
    from mxort import _native

    sim = new_machine()
    problem = Problem(Spec(40, 256, 64, "float", "mxfp4"))
    a = node(problem, self_check=False)
    weights = a.memory()["in_use"]
    a(operand(problem))
    level = a.memory()
    assert level["in_use"] == weights and level["cached"] > 0
    for _ in range(20):
        a(operand(problem))
    after = a.memory()
    assert (
        after["reserved"] == level["reserved"]
        and after["peak"] == level["peak"]
        and after["cached"] == level["cached"]
    )
    allocations = sim.counters()["allocations"]
    a.trim()
    assert a.memory()["cached"] == 0
    assert sim.counters()["allocations"] == 1 < allocations
    del a
    assert_clean(sim)

    limit = level["peak"]
    limited = node(problem, self_check=False, memory_limit=limit)
    limited(operand(problem))
    # Other sizes need the room of those before: it is given back, and the limit holds.
    for rows in (17, 33, 8, 40):
        limited(operand(problem)[:rows].copy())
    assert limited.memory()["peak"] <= limit
    with pytest.raises(_native.DeviceError, match=f"request of .* bytes with .* in use, limit is {limit}$"):
        limited(np.zeros((4000, 256), np.float32))
    assert limited.memory()["in_use"] == weights
    problem.check(limited(operand(problem)))  # and goes on
    del limited
    with pytest.raises(_native.DeviceError, match="limit is 1000"):
        node(problem, self_check=False, memory_limit=1000)
    assert_clean(sim)


def test_memory_returns_to_its_level_and_keeps_its_limit():
    run(check_memory)


def check_two_devices() -> None:
    from gpu_oracle import Problem
    from machine import assert_clean, new_machine, node, operand

    from device import Spec
    from mxort import _native

    sim = new_machine("gfx950,gfx942,gfx950")
    ids = [d["pci_bus_id"] for d in _native.devices()]
    assert ids == ["0000:05:00.0", "0000:15:00.0", "0000:25:00.0"]
    problem = Problem(Spec(5, 256, 64, "float", "mxfp4"))
    nodes = [node(problem, self_check=False, device=d) for d in (0, 1, 2)]
    assert len({n.weights_address for n in nodes}) == 3
    for n in nodes[::-1]:
        problem.check(n(operand(problem)))
    assert (nodes[0](operand(problem)) == nodes[2](operand(problem))).all()
    del n, nodes
    with pytest.raises(_native.DeviceError, match="got ordinal 3, expected one of the 3 devices present"):
        node(problem, device=3)
    with pytest.raises(_native.DeviceError, match="got ordinal -1"):
        node(problem, device=-1)
    assert_clean(sim)


def test_several_devices():
    run(check_two_devices)


def check_refusals() -> None:
    from gpu_oracle import Problem
    from machine import assert_clean, new_machine, node

    from device import Spec
    from mxort import _native

    sim = new_machine()
    # Three bf16 terms of K make the step counter too large; it is said, not computed wrongly.
    wide = Problem(Spec(1, 128 * 11000, 1, "float", "none", level=1))
    with pytest.raises(_native.DeviceError, match="K: got 1408000, which no kernel"):
        node(wide)
    small = Problem(Spec(1, 64, 8, "float", "mxfp4"))
    with pytest.raises(_native.DeviceError, match="kernel 'gemm_bf16_skinny' is not one for this problem"):
        node(small, self_check=False, kernel="gemm_bf16_skinny")
    skinny = node(small, self_check=False, kernel="gemm_fp4_skinny")
    with pytest.raises(_native.DeviceError, match="cannot compute 17 rows"):
        skinny(np.zeros((17, 64), np.float32))
    del skinny
    assert_clean(sim)


def test_what_no_kernel_can_do_is_refused():
    run(check_refusals)
