"""Kernels that compute wrong numbers are found before their first use, reported once, and not used."""

from pathlib import Path

import pytest
from machine_process import run


def broken(kernels: list[str], folder: Path) -> None:
    """Code objects in ``folder`` with one scale of each of these kernels' main loops picked wrongly."""
    from hipsim import mutate
    from mxort import _native

    for name, arch, image in _native.code_objects():
        if arch == "gfx950" and name in ("gemm_mx", "gemm_direct"):
            (folder / f"{name}.{arch}.co").write_bytes(image)
    for kernel in kernels:
        path = folder / f"{'gemm_direct' if '_16x' in kernel else 'gemm_mx'}.gfx950.co"
        mutation = next(iter(mutate.CodeObject(path).mutations(kernel, ("opsel_a",))))
        path.write_bytes(mutation.image)


def broken_norm(kernel: str, folder: Path) -> None:
    """A kernel that prepares A itself takes the reciprocal root for the root: in nothing but the normalisation."""
    from hipsim import mutate

    code = mutate.CodeObject(folder / "gemm_direct.gfx950.co")
    roots = [i for i in code.functions[kernel] if i.mnemonic == "v_sqrt_f32_e32"]
    assert roots
    opcode, sqrt, rsq = 0xFF << 9, 0x27 << 9, 0x24 << 9
    for i in roots:
        assert i.words[0] & opcode == sqrt
        code = mutate.CodeObject(code.mutate(i, (i.words[0] & ~opcode | rsq,)))
    (folder / "gemm_direct.gfx950.co").write_bytes(code.image)


def check_one_broken_kernel() -> None:
    from gpu_oracle import Problem
    from machine import assert_clean, compute, new_machine, node

    from device import Spec
    from mxort import _native

    sim = new_machine()
    problem = Problem(Spec(130, 128, 128, "float16", "mxfp4"))
    rows = (1, 16, 17, 500, 60000)
    assert {node(problem, self_check=False).kernel_for(m) for m in rows} >= {
        "gemm_fp4_16x16",
        "gemm_fp4_64x64",
    }
    checked = node(problem)
    used = [checked.kernel_for(m) for m in rows]
    assert not {"gemm_fp4_16x16", "gemm_fp4_64x64"} & set(used) and all(used), used
    results = {c["kernel"]: c for c in _native.gpu_kernel_checks()}
    assert {name for name, c in results.items() if not c["passed"]} == {"gemm_fp4_16x16", "gemm_fp4_64x64"}
    assert len(results) == 6 and results["gemm_fp4_64x64"]["error"] > results["gemm_fp4_64x64"]["bound"]
    problem.check(compute(problem))  # by the next row of the table
    launches = sim.counters()["launches"]
    again = node(problem)  # nothing is checked twice, and what is known counts without a check too
    assert sim.counters()["launches"] == launches
    assert [again.kernel_for(m) for m in rows] == used
    assert [node(problem, self_check=False).kernel_for(m) for m in rows] == used
    # Another format is another kernel.
    assert node(Problem(Spec(1, 64, 8, "float16", "mxfp8_e4m3"))).kernel_for(1) == "gemm_e4m3_16x16"
    del checked, again
    assert_clean(sim)


def test_a_wrong_kernel_is_left_out_and_reported_once(tmp_path):
    broken(["gemm_fp4_64x64"], tmp_path)
    broken_norm("gemm_fp4_16x16", tmp_path)
    stderr = run(check_one_broken_kernel, env={"MXORT_CODE_OBJECTS": str(tmp_path)})
    warnings = [line for line in stderr.splitlines() if "warning" in line]
    assert len(warnings) == 2, stderr
    for line, kernel in zip(warnings, ("gemm_fp4_64x64", "gemm_fp4_16x16"), strict=True):
        assert line.startswith(
            f"mxort: warning: kernel {kernel} (prepare_fp4, float16) disagrees with the CPU on GPU 0"
        )


def check_all_broken() -> None:
    from gpu_oracle import Problem
    from machine import assert_clean, new_machine, node

    from device import Spec
    from mxort import _native

    sim = new_machine()
    problem = Problem(Spec(3, 64, 24, "float", "mxfp6_e3m2"))
    for _ in range(2):
        with pytest.raises(_native.DeviceError, match="every kernel for this activation_format failed"):
            node(problem)
    assert_clean(sim)


def test_no_kernel_is_left(tmp_path):
    broken(
        [f"gemm_e3m2_{tile}" for tile in ("256x256", "128x128", "64x64", "skinny", "16x16", "16x64")],
        tmp_path,
    )
    run(check_all_broken, env={"MXORT_CODE_OBJECTS": str(tmp_path)})


def check_unreadable_code_object() -> None:
    from gpu_oracle import Problem
    from machine import assert_clean, compute, new_machine

    from device import Spec
    from mxort import _native

    sim = new_machine()
    with pytest.raises(
        _native.DeviceError, match="loading the code object gemm_mx for gfx950: hipModuleLoadData: hipErr"
    ):
        compute(Problem(Spec(3, 64, 24, "float", "mxfp4")))
    level1 = Problem(Spec(3, 64, 24, "float", "none", level=1))
    level1.check(compute(level1, self_check=False))  # needs no gemm_mx
    assert_clean(sim)


def test_a_code_object_that_does_not_load(tmp_path):
    (tmp_path / "gemm_mx.gfx950.co").write_bytes(b"no ELF file" + bytes(100))
    run(check_unreadable_code_object, env={"MXORT_CODE_OBJECTS": str(tmp_path)})
