"""Selection is a pure function: what it answers, and that what it answers can be launched."""

import experts_device
import numpy as np
import pytest

import device
from device import Spec
from moe_oracle import Experts
from oracle import Case
from tools.kernel_report import model

SHAPES = [
    (m, k, n)
    for m in (1, 16, 17, 128, 512, 4096)
    for k in (1, 384, 4096, 32768)
    for n in (1, 384, 4096, 28672)
]


@pytest.mark.parametrize("arch", device.ARCHITECTURES)
@pytest.mark.parametrize("fmt", device.FORMATS)
def test_every_problem_has_a_consistent_plan(arch, fmt):
    rows = {r["name"]: r for r in device.gemm_rows()}
    for m, k, n in SHAPES:
        for level in (1, 3, 4):
            p = device.plan(Spec(m, k, n, "float16", fmt, 1, level, arch))
            row = rows[p["gemm"]]
            assert row["arch"] in ("", arch) and row["operand"] == p["operand"]
            assert p["tiles_m"] * row["rows"] >= m and p["tiles_n"] * row["columns"] >= n
            assert p["steps"] * 128 >= k > (p["steps"] - 1) * 128
            assert p["splits"] * p["steps_per_split"] >= p["steps"] > (p["splits"] - 1) * p["steps_per_split"]
            assert (p["prepare_grid"][0] > 0) == (p["activation_bytes"] > 0) == (not row["direct"])
            assert p["gemm_grid"][:2] == [p["tiles_m"] * p["tiles_n"], p["splits"]]
            assert (p["reduce_grid"][0] > 0) == (p["splits"] > 1) == (p["partial_bytes"] > 0)
            assert row["skinny"] == (m <= 16)


@pytest.mark.parametrize(
    "spec, kernel",
    [
        (Spec(4096, 4096, 4096, "bfloat16", "mxfp4"), "gemm_fp4_256x256"),
        (Spec(4096, 4096, 4096, "bfloat16", "mxfp6_e2m3"), "gemm_e2m3_256x256"),
        (Spec(4096, 4096, 4096, "bfloat16", "none"), "gemm_e2m3_256x256"),
        (Spec(1, 4096, 4096, "bfloat16", "mxfp4"), "gemm_fp4_16x16"),
        (Spec(1, 4096, 28672, "bfloat16", "mxfp4"), "gemm_fp4_16x64"),
        (Spec(16, 4096, 28672, "bfloat16", "mxfp4"), "gemm_fp4_skinny"),
        (Spec(1, 4096, 128256, "float16", "none", weights="mxint8"), "gemm_int8w_skinny"),
        (Spec(32, 384, 384, "float16", "mxfp8_e4m3"), "gemm_e4m3_64x64"),
        (Spec(100, 4096, 4096, "float", "none", level=1), "gemm_bf16_64x128"),
        (Spec(4096, 4096, 4096, "float16", "mxfp4", arch="gfx942", units=304), "gemm_bf16_64x128"),
    ],
)
def test_choices(spec, kernel):
    assert device.plan(spec)["gemm"] == kernel


def test_terms_follow_accuracy_and_type():
    def terms(**options):
        p = device.plan(Spec(64, 256, 64, **options))
        return p["prepare"], p["terms"]

    assert terms(dtype="float") == ("prepare_e2m3x2", 2)
    assert terms(dtype="float", level=1) == ("prepare_bf16", 3)
    assert terms(dtype="float16", level=1) == ("prepare_bf16", 2)
    assert terms(dtype="float16", level=1, rotation=32) == ("prepare_bf16", 3)
    assert terms(dtype="bfloat16", level=1) == ("prepare_bf16", 1)
    assert terms(dtype="float", arch="gfx942") == ("prepare_bf16", 1)


def test_what_cannot_run_has_no_plan():
    assert device.plan(Spec(4, 128, 64, arch="gfx90a")) is None
    assert device.plan(Spec(4, 128 * 40000, 64)) is None
    assert device.plan(Spec(4, 128, 64), kernel="nonsense") is None
    assert device.plan(Spec(17, 128, 64, "float", "mxfp4"), kernel="gemm_fp4_skinny") is None


def test_small_problems_split_k_to_fill_the_device():
    p = device.plan(Spec(1, 4096, 4096, "bfloat16", "mxfp4"), "gemm_fp4_skinny")
    assert p["splits"] > 1 and p["tiles_n"] * p["splits"] >= 128
    assert device.plan(Spec(4096, 4096, 4096, "bfloat16", "mxfp4"))["splits"] == 1


def test_the_clocks_are_those_of_the_compiled_loops():
    """A tile-step's bound, from the instructions of the main loop: its matrix clocks or its loads, whichever is longer.

    Those of up to 16 rows are chosen by M alone: their clocks only rank them.
    """
    modelled = {
        name: model.loop_clocks(kernel)
        for source in ("gemm_mx", "gemm_bf16", "gemm_byte", "experts_mx", "experts_bf16")
        for name, kernel in device.kernels("gfx950", source).items()
    }
    rows = [row for row in device.gemm_rows() if not row["skinny"]]
    assert len(rows) == 15
    for row in rows:
        clocks = modelled[row["name"]]
        assert row["clocks"] == round(max(clocks["matrix"], clocks["loads"]) / row["steps"]), row["name"]
    dense = {row["name"]: row for row in rows}
    for row in experts_device.table():
        if row["height"] == experts_device.FEW:
            continue
        same = dense[row["name"].replace("experts", "gemm")]
        clocks = modelled[row["name"]]
        assert row["clocks"] == same["clocks"], row["name"]
        assert row["clocks"] == round(max(clocks["matrix"], clocks["loads"]) / same["steps"]), row["name"]


def experts(hidden: int, inner: int, number: int, k: int, fmt: str = "mxfp4") -> Experts:
    """Of which selection reads the shapes alone."""
    first, second = (
        Case(np.zeros((n, k // 2), np.uint8), np.zeros((n, k // 32), np.uint8), k, 1, fmt)
        for n, k in ((2 * inner, hidden), (hidden, inner))
    )
    return Experts([first] * number, [second] * number, k)


@pytest.mark.parametrize("arch", device.ARCHITECTURES)
@pytest.mark.parametrize(
    "shape", [(2880, 2880, 32, 4), (4096, 1536, 128, 8), (64, 32, 1, 1), (96, 64, 512, 512)]
)
def test_grids_of_experts_hold_whatever_the_router_says(arch, shape):
    """Of every way to deal rows to experts the one with most tiles: all but one expert with one row more than whole
    tiles, and as many of them as there are rows for."""
    made = experts(*shape)
    for rows in (1, 3, 16, 17, 64, 65, 500, 4096):
        p = experts_device.plan(made, rows, arch=arch)
        if rows > 32768 // made.k:
            assert p is None  # done in several launches
            continue
        height = next(r["height"] for r in experts_device.table() if r["name"] == p["row"])
        assert p["few"] == (rows <= 16) == (height == 16)
        pairs, number = rows * made.k, len(made.down)
        # An expert has at most a pair of each row. As many as possible have one pair beyond whole tiles.
        most = max(
            started + (pairs - started) // height
            for started in range(1, min(number, pairs) + 1)
            if pairs <= number * rows
        )
        if p["few"]:
            assert p["tiles"] == min(pairs, number) and p["product_grid"][0][1] == p["tiles"]
        else:
            assert p["tiles"] >= min(most, min(number, pairs) * -(-rows // height))
            assert p["product_grid"][0][0] == p["tiles"] * p["tiles_n"][0]
            assert p["waves"] * p["wave_rows"] >= rows and p["groups"] * p["group_waves"] >= p["waves"]
        assert p["slots"] == p["tiles"] * height


@pytest.mark.parametrize(
    "rows, shape, kernel",
    [
        (1, (2880, 2880, 32, 4), "experts_fp4_few"),
        (16, (4096, 1536, 128, 8), "experts_fp4_few"),
        (64, (2880, 2880, 32, 4), "experts_fp4_64x64"),
        (4096, (2880, 2880, 32, 4), "experts_fp4_256x256"),
    ],
)
def test_choices_of_experts(rows, shape, kernel):
    assert experts_device.plan(experts(*shape), rows)["row"] == kernel
    assert experts_device.plan(experts(*shape), 17, kernel="experts_fp4_few") is None
    assert experts_device.plan(experts(*shape), rows, arch="gfx90a") is None
