"""The kernels of a mixture of experts: routing against a plain reading of its rules, layers against the double oracle,
every instruction of every kernel."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from experts_device import Layer, plan, table

import device
import moe_oracle
import oracle
from moe_oracle import Experts, random_experts

TYPES = {"float": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
BF16 = 4
NATIVE = {0: "mxfp4", 1: "mxfp6_e2m3", 2: "mxfp6_e3m2", 3: "mxfp8_e4m3"}
KERNELS = [
    pytest.param(row, arch, id=f"{row['name']}-{arch}")
    for row in table()
    for arch in ([row["arch"]] if row["arch"] else device.ARCHITECTURES)
]


def kernel_of(arch: str) -> str:
    return oracle.TWO_TERMS_KERNEL if arch == "gfx950" else oracle.BFLOAT16_KERNELS[0]


def rows_of(experts: Experts, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([seed, rows])
    x = rng.standard_normal((rows, experts.gate_up[0].K)).astype(np.float32)
    return x, (2 * rng.standard_normal((rows, len(experts.down)))).astype(np.float32)


def check(layer: Layer, x: np.ndarray, logits: np.ndarray, kernel: str = "") -> np.ndarray:
    kind = TYPES[layer.dtype]
    x, logits = (v.astype(kind).astype(np.float32) for v in (x, logits))
    y = layer.run(x, logits, kernel)
    moe_oracle.assert_close(
        layer.experts,
        x.astype(kind),
        logits.astype(kind),
        y.astype(kind),
        kernel,
        kernel_of(layer.machine.arch),
    )
    return y


# ---- routing --------------------------------------------------------------------------------------------------------


def expected_routes(experts: Experts, logits: np.ndarray) -> list[list[tuple[int, float]]]:
    """By row; empty where a logit is NaN, or the largest is infinite."""
    found = []
    for row in logits:
        lost = np.isnan(row).any() or not np.isfinite(row.max())
        found.append([] if lost else moe_oracle.chosen(experts, row))
    return found


def check_routes(layer: Layer, logits: np.ndarray) -> None:
    """Each (row, expert) that is chosen has one slot, among its expert's, in the order of the rows; no other has."""
    routed = layer.routed()
    want = expected_routes(layer.experts, logits)
    weights = {(row, e): w for row, route in enumerate(want) for e, w in route}
    seen = []
    for tile, (expert, end) in enumerate(routed.tiles):
        rows = routed.row[tile * layer.height : (tile + 1) * layer.height]
        held = rows >= 0
        if not layer.plan["few"]:
            used = end - tile * layer.height
            assert held[:used].all() and not held[used:].any()
        seen += [(int(expert), int(row)) for row in rows[held]]
        if layer.plan["few"]:
            got = routed.weight[tile * layer.height : (tile + 1) * layer.height][held]
            np.testing.assert_allclose(
                got, [weights[row, expert] for row in rows[held]], rtol=3e-6, atol=1e-30
            )
    assert seen == sorted((e, row) for row, e in weights)
    lost = np.array([not route for route in want])
    if layer.plan["few"]:
        assert layer.count.numpy()[1] == sum(1 << row for row in np.flatnonzero(lost))
        return
    k = layer.experts.k
    expert, slot, weight = (a.numpy().reshape(-1, k) for a in (layer.expert, layer.slot, layer.weight))
    for row, route in enumerate(want):
        if not route:
            assert (slot[row] == -1).all()
            continue
        assert expert[row].tolist() == [e for e, _ in route]
        assert routed.row[slot[row]].tolist() == [row] * k
        np.testing.assert_allclose(weight[row], [w for _, w in route], rtol=3e-6, atol=1e-30)


LOGITS = ["normal", "ties", "equal", "far", "special", "one"]


def logits_of(kind: str, rows: int, experts: int) -> np.ndarray:
    rng = np.random.default_rng([rows, experts])
    normal = rng.standard_normal((rows, experts)).astype(np.float32)
    match kind:
        case "ties":
            return np.round(normal) * np.where(rng.random(normal.shape) < 0.5, -1, 1) * 1.0
        case "equal":
            return np.zeros_like(normal)
        case "far":  # exponentials that vanish, and infinities below
            return np.where(rng.random(normal.shape) < 0.3, -np.inf, 80 * normal).astype(np.float32)
        case "special":
            normal[0, -1], normal[1], normal[2, 0] = np.nan, -np.inf, np.inf
            normal[3, : experts // 2] = -0.0
            return normal
        case "one":
            normal[:, experts // 3] = 50
            return normal
    return normal


@pytest.mark.parametrize("arch", device.ARCHITECTURES)
@pytest.mark.parametrize("few", [True, False])
def test_routing(machines: Any, arch: str, few: bool) -> None:
    """Numbers of experts around 64, of which a wave has one a lane; one of them to all of them chosen."""
    sizes = [(1, 1), (5, 5), (64, 3), (65, 65), (130, 8), (512, 7)] if few else [(5, 2), (65, 8), (300, 3)]
    case = random_experts(np.random.default_rng(0), 1, 32, 32, 1, activation_format="mxfp4")
    for number, (experts, k) in enumerate(sizes):
        made = replace(
            case, gate_up=case.gate_up * experts, down=case.down * experts, k=k,
            normalize_routing_weights=number % 2,
        )  # fmt: skip
        layer = Layer(machines(arch), made)
        for n, kind in enumerate(LOGITS):
            rows = 4 + 2 * n if few else 17 + 30 * n
            logits = logits_of(kind, rows, experts)
            layer.run(np.zeros((rows, 32), np.float32), logits, route_only=True)
            check_routes(layer, logits)
        layer.free()


# ---- layers ---------------------------------------------------------------------------------------------------------

ACTIVATIONS = [
    {
        "activation": a,
        "swiglu_fusion": f,
        "activation_alpha": 1.702,
        "activation_beta": 1.0,
        "swiglu_limit": 1.5,
    }
    for a in range(5)
    for f in range(3)
]


def forms(row: dict[str, Any], arch: str) -> list[tuple[str, int]]:
    """(activation_format, accuracy level) that a row of the table multiplies on an architecture."""
    if row["operand"] != BF16:
        return [(NATIVE[row["operand"]], 0), *([("none", 3)] if row["operand"] == 1 else [])]
    return [("none", 1), *([("none", 3)] if arch == "gfx942" else [])]


@functools.cache
def weights_of(d: int, inner: int, experts: int, gated: bool) -> Experts:
    """Made once for every shape: quantising them takes longer than the simulator does."""
    rng = np.random.default_rng([d, inner, experts])
    return random_experts(rng, experts, d, inner, 1, swiglu_fusion=2 * gated)


def experts_of(
    d: int, inner: int, experts: int, k: int, fmt: str, level: int, rotation: int = 1, **options: Any
) -> Experts:
    made = weights_of(d, inner, experts, options["swiglu_fusion"] != 0)
    of_products = {"activation_format": fmt, "accuracy_level": level, "rotation": rotation}
    cases = {n: [replace(case, **of_products) for case in getattr(made, n)] for n in ("gate_up", "down")}
    return replace(made, **cases, k=k, **options)


def layers_of(row: dict[str, Any], fmt: str, level: int, dtype: str) -> list[tuple[Experts, int]]:
    """(experts, rows): several tiles of an expert, steps in numbers that leave a rest to every loop; widths that end a
    panel half way and fill no store of eight."""
    few = row["height"] == 16
    if (
        few
    ):  # more steps than a wave has in flight; of the second product ends of experts at every place of a turn
        shapes = [(64 * 3 + 32, 160, 3, 2), (128 * 21, 32, 2, 1)]
        shapes += [(64, 128 * steps, 4, 2) for steps in (8, 11, 13, 15, 17, 19)] if dtype == "float" else []
    else:
        shapes = [(128 * 3 + 32, 32 * 7, 3, 2), *([(128 * 9, 32 * 9, 2, 1)] if dtype == "float" else [])]
    made = []
    for n, shape in enumerate(shapes):
        options = ACTIVATIONS[(3 * level + 5 * n + len(dtype)) % len(ACTIVATIONS)]
        layer = experts_of(*shape, fmt, level, normalize_routing_weights=n % 2, **options)
        made.append((layer, (1, 13, *6 * [11])[n] if few else row["height"] + 40))
    return made


@pytest.mark.parametrize("row, arch", KERNELS)
def test_products_match_the_oracle_and_every_instruction_runs(
    counting_machines: Any, row: dict[str, Any], arch: str
) -> None:
    machine = counting_machines(arch)
    # Many rows' products are floats whatever T is.
    for dtype in device.TYPES if row["height"] == 16 else ["float"]:
        for fmt, level in forms(row, arch):
            for experts, rows in layers_of(row, fmt, level, dtype):
                layer = Layer(machine, experts, dtype)
                check(layer, *rows_of(experts, rows), row["name"])
                layer.free()
    for name in row["kernels"]:
        assert machine.unexecuted(row["object"], name) == [], name


def expected_around(arch: str) -> dict[tuple[str, int], tuple[str, str]]:
    """Endings of the kernels' names by (activation_format, level, whether X is float)."""
    found = {}
    for fmt, level in oracle.FORMATS_AND_LEVELS:
        experts = experts_of(64, 64, 5, 2, fmt, level, **ACTIVATIONS[0])
        p = plan(experts, 1, arch=arch)
        assert p is not None
        found[fmt, level] = tuple(name.removeprefix("prepare_") for name in p["prepare"])
    return found


@pytest.mark.parametrize("arch", ["gfx950", pytest.param("gfx942", marks=pytest.mark.slow)])
def test_every_instruction_around_the_products_runs(counting_machines: Any, arch: str) -> None:
    """Routing, both preparations, the sum: each activation, layout, type and rotation, of few rows and of many."""
    machine = counting_machines(arch)
    of_forms = expected_around(arch)
    for n in range(6):
        options = ACTIVATIONS[n % 5 * 3 + n % 3]
        for fmt, level in of_forms:
            dtype, rotation = list(device.TYPES)[n % 3], (1, 32, 64, 128)[n % 4]
            experts = experts_of(
                128, 128, 5, 2, fmt, level, rotation, normalize_routing_weights=n % 2, **options
            )
            layer = Layer(machine, experts, dtype)
            for rows in (3, 20):
                x, logits = rows_of(experts, rows)
                logits[0, n % 5] = (0, np.nan, 60)[n % 3]
                logits[:, 2:4] += 60 * (n % 2)  # tiles that there might be, and are not
                check(layer, x, logits)
            if n < 4:  # every group of experts that a lane may have, in each type, and what is not chosen
                layer.experts = replace(
                    experts, gate_up=experts.gate_up[:1] * 512, down=experts.down[:1] * 512
                )
                for rows in (4, 17, 2600) if (fmt, level) == ("none", 1) else (4,):
                    x, _ = rows_of(experts, rows)
                    layer.run(x, logits_of("special" if n < 3 else "equal", rows, 512), route_only=True)
            layer.free()
    kernels = {"experts_route", "experts_arrange", "experts_combine"}
    for first, second in of_forms.values():
        kernels |= {f"experts_few_{first}", f"experts_gather_{first}", f"experts_inner_{second}"}
    missing = {name: machine.unexecuted("experts", name) for name in sorted(kernels)}
    # Where there are loops over rows, experts, choices and terms the compiler keeps a way for none of them.
    left = {"route": 80, "arrange": 180, "few": 40, "gather": 1}
    for name, found in missing.items():
        assert len(found) <= left.get(name.split("_")[1], 0), (name, found)
