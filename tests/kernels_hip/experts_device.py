"""The kernels of a mixture of experts under test: their arguments, and launches as ep/device/experts.cc makes them."""

from __future__ import annotations

import ctypes
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import device
from hipsim import harness
from moe_oracle import Experts

FEW, THREADS, DOWN_THREADS, MOST_EXPERTS = 16, 256, 1024, 512
INT, UINT, LONG, FLOAT, POINTER = (
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_ulonglong,
    ctypes.c_float,
    ctypes.c_void_p,
)


class Gemm(ctypes.Structure):
    _fields_ = [
        *[(n, POINTER) for n in ("a", "w", "column_scale", "bias", "y", "partial")],
        *[(n, UINT) for n in ("m", "n", "steps", "terms", "steps_per_split", "splits", "tiles_m", "tiles_n")],
        ("type", INT),
    ]


class Prepare(ctypes.Structure):
    _fields_ = [
        ("a", POINTER),
        ("records", POINTER),
        *[(n, UINT) for n in ("m", "k", "steps", "terms")],
        ("type", INT),
        ("rotation", INT),
    ]


class Slots(ctypes.Structure):
    _fields_ = [*[(n, POINTER) for n in ("count", "tiles", "row", "weight")], ("height", UINT)]


class Router(ctypes.Structure):
    _fields_ = [
        ("logits", POINTER),
        *[(n, UINT) for n in ("rows", "experts", "chosen")],
        ("normalize", INT),
        ("type", INT),
    ]


class RoutePrepare(ctypes.Structure):
    _fields_ = [("prepare", Prepare), ("router", Router), ("slots", Slots)]


class Route(ctypes.Structure):
    _fields_ = [
        ("router", Router),
        *[(n, POINTER) for n in ("expert", "rank", "weight", "counts")],
        ("wave_rows", UINT),
        ("waves", UINT),
    ]


class Arrange(ctypes.Structure):
    _fields_ = [
        *[(n, POINTER) for n in ("expert", "rank", "counts", "slot")],
        ("slots", Slots),
        *[(n, UINT) for n in ("rows", "experts", "chosen", "wave_rows", "waves", "group_waves")],
    ]


class Gather(ctypes.Structure):
    _fields_ = [("prepare", Prepare), ("slots", Slots)]


class Inner(ctypes.Structure):
    _fields_ = [
        ("p", POINTER),
        ("records", POINTER),
        ("slots", Slots),
        *[(n, UINT) for n in ("inner", "steps", "terms")],
        *[(n, INT) for n in ("rotation", "gates", "activation")],
        *[(n, FLOAT) for n in ("alpha", "beta", "limit")],
    ]


class ExpertsGemm(ctypes.Structure):
    _fields_ = [("gemm", Gemm), ("slots", Slots)]


class Combine(ctypes.Structure):
    _fields_ = [
        *[(n, POINTER) for n in ("y", "slot", "weight", "out")],
        *[(n, UINT) for n in ("rows", "n", "chosen", "grid_rows")],
        ("type", INT),
    ]


def table() -> list[dict[str, Any]]:
    return list(json.loads(device.host().mxort_experts_rows()))


def plan(
    experts: Experts,
    rows: int,
    dtype: str = "float",
    arch: str = "gfx950",
    kernel: str = "",
    units: int = 256,
) -> dict[str, Any] | None:
    order = ["none", "mxfp8_e4m3", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp4"]  # enum ActivationFormat
    first = experts.gate_up[0]
    inner = experts.down[0].K
    sizes = (ctypes.c_int64 * 5)(rows, len(experts.down), experts.k, first.K, inner)
    text = device.host().mxort_experts_plan(
        arch.encode(), units, sizes, first.rotation, order.index(first.activation_format),
        first.accuracy_level or 3, list(device.TYPES).index(dtype), experts.swiglu_fusion, kernel.encode(),
    )  # fmt: skip
    return json.loads(text)


def shuffled(cases: list[Any]) -> NDArray[np.uint8]:
    """Records of all experts, each beginning with a panel."""
    return np.concatenate([device.preshuffle(case.codes, case.scales, case.K) for case in cases])


@dataclass
class Routed:
    """What routing left on the device: tiles of (expert, end), and by slot the row and, of few rows, its weight."""

    tiles: NDArray[np.int32]  # [count, 2]
    row: NDArray[np.int32]  # of the slots of those tiles
    weight: NDArray[np.float32]


class Layer:
    """A mixture of experts on a simulated device."""

    def __init__(self, machine: device.Device, experts: Experts, dtype: str = "float"):
        self.machine, self.experts, self.dtype = machine, experts, dtype
        self.arrays: list[harness.DeviceArray] = []
        self.weights = []
        for cases in (experts.gate_up, experts.down):
            parts = (
                shuffled(cases),
                *(np.stack([getattr(c, n) for c in cases]) for n in ("column_scale", "bias")),
            )
            self.weights.append([self.put(part) for part in parts])

    def put(self, values: NDArray[Any]) -> harness.DeviceArray:
        self.arrays.append(self.machine.sim.to_device(np.ascontiguousarray(values)))
        return self.arrays[-1]

    def empty(self, shape: Any, dtype: Any) -> harness.DeviceArray:
        self.arrays.append(self.machine.sim.empty(shape, dtype))
        return self.arrays[-1]

    def free(self) -> None:
        for array in self.arrays:
            array.free()

    def launch(
        self,
        name: str,
        grid: Any,
        arguments: ctypes.Structure,
        threads: int = THREADS,
        object: str = "experts",
    ) -> None:
        self.machine.module(object).launch(name, grid, (threads,), [bytes(arguments)])

    def run(
        self, x: NDArray[np.float32], logits: NDArray[np.float32], kernel: str = "", route_only: bool = False
    ) -> NDArray[np.float32]:
        """Y [rows, D] as float32, of X and logits in float32 that are rounded to the type. ``route_only``: what comes
        behind routing is not launched."""
        rows, d = x.shape
        p = plan(self.experts, rows, self.dtype, self.machine.arch, kernel)
        assert p is not None, (rows, kernel)
        row = next(r for r in table() if r["name"] == p["row"])
        kind = list(device.TYPES).index(self.dtype)
        self.x, self.logits = (self.put(device.to_bytes(v, self.dtype)) for v in (x, logits))
        y = self.empty((rows, d), np.uint16 if self.dtype == "bfloat16" else device.TYPES[self.dtype])
        records = [self.empty(size, np.uint8) for size in p["records_bytes"]]
        products = self.empty(p["products_bytes"], np.uint8)
        self.plan, self.height = p, row["height"]
        self.count, self.tiles = self.empty(2, np.uint32), self.empty((p["tiles"], 2), np.int32)
        self.slot_row = self.empty(p["slots"], np.int32)
        self.slot_weight = self.empty(p["slots"], np.float32)
        slots = Slots(self.count.ptr, self.tiles.ptr, self.slot_row.ptr, self.slot_weight.ptr, self.height)
        first = self.experts.gate_up[0]
        router = Router(
            self.logits.ptr, rows, len(self.experts.down), self.experts.k,
            self.experts.normalize_routing_weights, kind,
        )  # fmt: skip
        prepare = Prepare(
            self.x.ptr, records[0].ptr, rows, d, p["steps"][0], p["terms"][0], kind, first.rotation
        )
        names = [name.removeprefix("prepare_") for name in p["prepare"]]

        def product(i: int, sums: bool) -> None:
            cases = (self.experts.gate_up, self.experts.down)[i]
            w, scale, bias = self.weights[i]
            gemm = Gemm(
                records[i].ptr, w.ptr, scale.ptr, bias.ptr, y.ptr if sums else products.ptr, None,
                rows if p["few"] else p["slots"], cases[0].N, p["steps"][i], p["terms"][i], p["steps"][i], 1,
                p["tiles"], p["tiles_n"][i], kind if sums else 0,
            )  # fmt: skip
            threads = DOWN_THREADS if sums else THREADS
            self.launch(
                row["kernels"][i], p["product_grid"][i], ExpertsGemm(gemm, slots), threads, row["object"]
            )

        def inner() -> None:
            e = self.experts
            silu, gated = e.activation == 4, e.swiglu_fusion != 0
            arguments = Inner(
                products.ptr, records[1].ptr, slots, e.down[0].K, p["steps"][1], p["terms"][1], first.rotation,
                e.swiglu_fusion, e.activation, e.activation_alpha if silu else 1,
                e.activation_beta if gated else 0,
                e.swiglu_limit if gated and e.swiglu_limit > 0 else np.inf,
            )  # fmt: skip
            self.launch(f"experts_inner_{names[1]}", p["prepare_grid"][1], arguments)

        if p["few"]:
            self.launch(f"experts_few_{names[0]}", p["prepare_grid"][0], RoutePrepare(prepare, router, slots))
            if route_only:
                return x
            product(0, False)
            inner()
            product(1, True)
        else:
            pairs = rows * self.experts.k
            self.expert, self.rank, self.slot = (self.empty(pairs, np.int32) for _ in range(3))
            self.weight = self.empty(pairs, np.float32)
            counts = self.empty((p["waves"], len(self.experts.down)), np.uint32)
            route = Route(
                router,
                self.expert.ptr,
                self.rank.ptr,
                self.weight.ptr,
                counts.ptr,
                p["wave_rows"],
                p["waves"],
            )
            self.launch("experts_route", (-(-p["waves"] // 4),), route)
            arrange = Arrange(
                self.expert.ptr, self.rank.ptr, counts.ptr, self.slot.ptr, slots, rows,
                len(self.experts.down), self.experts.k, p["wave_rows"], p["waves"], p["group_waves"],
            )  # fmt: skip
            self.launch("experts_arrange", (p["groups"],), arrange)
            if route_only:
                return x
            self.launch(f"experts_gather_{names[0]}", p["prepare_grid"][0], Gather(prepare, slots))
            product(0, False)
            inner()
            product(1, False)
            combine = Combine(
                products.ptr, self.slot.ptr, self.weight.ptr, y.ptr, rows, d, self.experts.k, 3, kind
            )
            self.launch("experts_combine", (-(-d // 1024), 3), combine)
        return device.from_bytes(y.numpy(), self.dtype)

    def routed(self) -> Routed:
        """Of the last run."""
        count = int(self.count.numpy(check_written=False)[0])
        tiles = self.tiles.numpy(check_written=False)[:count]
        row = self.slot_row.numpy(check_written=False)[: count * self.height]
        weight = self.slot_weight.numpy(check_written=False)[: count * self.height]
        return Routed(tiles, row, weight)
