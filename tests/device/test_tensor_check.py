"""Kernels of tensors that compute wrong numbers are found by their self-check, and no right one is blamed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from machine_process import run

TYPES = ("float32", "float16", "bfloat16")
ARCHITECTURES = ("gfx950", "gfx942")

SABOTAGED = {
    "product": ["product_float16_128x128", "product_float16_skinny_rows", "product_reduce", "patches_2"],
    "attention": ["attention_float16_96", "attention_merge"],
    "attention_prefill": ["prefill_float16_64"],
    "attention_append": ["attention_append", "attention_copy", "attention_window"],
    "attention_mx": ["attention_mxfp8_64", "attention_mxfp4_128"],
    "rows": ["softmax_wave", "norm_group", "reduce_rows_wave", "reduce_whole", "top"],
    "pointwise": ["pointwise"],
    "strided": ["copy_16", "gather_2"],
    "gather_mx": ["gather_mxfp6_e3m2"],
    "prepare": ["activate"],
}
"""Code object -> kernels, each kind of one, all of whose stores are wrong."""

MULTIPLIED = {
    "product": ["product_float16_256x256", "product_float16_skinny_k"],
    "attention": ["attention_float16_128"],
    "attention_prefill": ["prefill_float16_128"],
    "attention_mx": ["attention_mxfp8_256"],
}
"""Kernels of which one matrix instruction of the main loop is wrong."""


def images() -> dict[tuple[str, str], bytes]:
    from mxort import _native

    return {(name, arch): image for name, arch, image in _native.code_objects()}


STORE_DWORD, OPCODE = 28, 0x7F << 18


def wrong_stores(image: bytes, kernel: str) -> bytes:
    """A code object whose kernel stores its addresses instead of its results, of wide results the first part alone."""
    from hipsim import mutate

    code = mutate.CodeObject(image)
    stores = [i for i in code.functions[kernel] if i.mnemonic.startswith(("global_store", "buffer_store"))]
    assert stores, kernel
    for i in stores:
        first, second = i.words
        if "dwordx" in i.mnemonic:
            first = first & ~OPCODE | STORE_DWORD << 18
        else:
            second = second & ~0xFF00 | (second & 0xFF) << 8
        code = mutate.CodeObject(code.mutate(i, (first, second)))
    return code.image


def wrong_product(image: bytes, kernel: str) -> bytes:
    """A code object whose main loop's last matrix instruction has its operands the wrong way round."""
    from hipsim import mutate

    code = mutate.CodeObject(image)
    i = [i for i in code.main_loop(kernel) if i.mnemonic.startswith("v_mfma")][-1]
    first, second = i.words
    a, b = second & 0x1FF, second >> 9 & 0x1FF
    accumulation = second >> 27 & 3  # which of the two are accumulation registers
    swapped = second & ~(0x3FFFF | 3 << 27) | a << 9 | b | (accumulation >> 1 | (accumulation & 1) << 1) << 27
    return code.mutate(i, (first, swapped))


def check_all(arch: str, dtypes: list[str]) -> None:
    """Every kernel of tensors passes, and is checked once."""
    from machine import assert_clean, new_machine

    from mxort import _native

    sim = new_machine(arch)
    for dtype in dtypes:
        _native.check_gpu_tensor_kernels(0, dtype)
    checks = _native.gpu_kernel_checks()
    assert [c for c in checks if not c["passed"]] == []
    names = {c["kernel"] for c in checks}
    exist = {name for (_, of), image in images().items() if of == arch for name in kernels_of(image)}
    assert names <= exist
    others = [f"_{t.replace('float32', 'float')}_" for t in TYPES if t not in dtypes]
    products = (
        "gemm_",
        "experts",
        "prepare_",
        "reduce",
    )  # checked by test_self_check.py and provider/test_experts.py
    missing = {n for n in exist - names if not n.startswith(products) or n.startswith("reduce_")}
    missing -= {n for n in missing if any(other in n for other in others)}
    assert not missing, missing
    launches = sim.counters()["launches"]
    _native.check_gpu_tensor_kernels(0, dtypes[0])
    assert sim.counters()["launches"] == launches
    assert_clean(sim)


def kernels_of(image: bytes) -> Iterator[str]:
    from hipsim import mutate

    return (
        name for name, code in mutate.CodeObject(image).functions.items() if len(code) > 1 and name[0] != "_"
    )


@pytest.mark.parametrize(
    "arch, dtypes",
    [
        ("gfx950", ["float16"]),
        *(pytest.param(arch, list(TYPES), marks=pytest.mark.slow) for arch in ARCHITECTURES),
    ],
)
def test_right_kernels_pass(arch: str, dtypes: list[str]) -> None:
    assert run(check_all, arch, dtypes, env={"HIPSIM_DEVICES": arch}) == ""


def check_sabotaged(wrong: list[str]) -> None:
    from machine import assert_clean, new_machine

    from mxort import _native

    sim = new_machine()
    _native.check_gpu_tensor_kernels(0, "float16")
    checks: list[dict[str, Any]] = _native.gpu_kernel_checks()
    found = {c["kernel"] for c in checks if not c["passed"]}
    assert found == set(wrong), (sorted(set(wrong) - found), sorted(found - set(wrong)))
    assert_clean(sim)


def test_a_wrong_kernel_of_each_kind_is_found(tmp_path: Path) -> None:
    wrong: list[str] = []
    for name, kernels in SABOTAGED.items():
        image = images()[name, "gfx950"]
        for kernel in kernels:
            image = wrong_stores(image, kernel)
        for kernel in MULTIPLIED.get(name, []):
            image = wrong_product(image, kernel)
        (tmp_path / f"{name}.gfx950.co").write_bytes(image)
        wrong += [*kernels, *MULTIPLIED.get(name, [])]
    stderr = run(check_sabotaged, wrong, env={"MXORT_CODE_OBJECTS": str(tmp_path)})
    named = [line.split()[3] for line in stderr.splitlines() if line.startswith("mxort: warning: kernel ")]
    # One stores queries and caches of three formats, one computes floats and whole numbers.
    assert sorted(named) == sorted([*wrong, "attention_append", "attention_append", "pointwise"]), stderr
    assert "mxort: warning: kernel softmax_wave (float16) disagrees with the CPU on GPU 0" in stderr
