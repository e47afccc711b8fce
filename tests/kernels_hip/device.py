"""The HIP kernels under test: compiled from ep/kernels/hip, planned by the C++ selection, run by hipsim."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import re
import struct
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "support")]

from hipsim import harness  # noqa: E402
from mxort import formats  # noqa: E402
from tools.kernel_report.isa import Kernel, read_code_object  # noqa: E402

SOURCES = ROOT / "ep" / "kernels" / "hip"
FLAGS = ("-ffp-contract=off", "-Wall", "-Wextra", "-Werror")
ARCHITECTURES = ("gfx950", "gfx942")
OBJECTS = {
    arch: (
        "attention",
        "attention_append",
        "attention_mx",
        "attention_prefill",
        "experts",
        "experts_bf16",
        "gather_mx",
        *gemm,
        "prepare",
        "product",
        "rows",
        "strided",
    )
    for arch, gemm in {
        "gfx950": ("experts_mx", "gemm_mx", "gemm_bf16", "gemm_byte", "gemm_direct"),
        "gfx942": ("gemm_bf16", "gemm_byte", "gemm_direct"),
    }.items()
}
FORMATS = list(formats.ACTIVATION_FORMATS)
TYPES: dict[str, Any] = {"float": np.float32, "float16": np.float16, "bfloat16": None}
COMPUTE_UNITS = 256


@functools.cache
def code_object(arch: str, name: str) -> Path:
    """What `make build/.dev` compiled where it is up to date, else compiled here with the same flags."""
    built = ROOT / "build" / "cmake" / "hip" / f"{name}.{arch}.co"
    sources = [SOURCES / f"{name}.hip", *SOURCES.glob("*.h"), ROOT / "ep" / "mx_formats.h"]
    if built.exists() and built.stat().st_mtime >= max(source.stat().st_mtime for source in sources):
        return built
    return harness.compile_hip(SOURCES / f"{name}.hip", arch=arch, flags=FLAGS, include=[ROOT / "ep"])


@functools.cache
def kernels(arch: str, name: str) -> dict[str, Kernel]:
    """What the kernel report reads of a code object, by kernel."""
    return {k.resources.name: k for k in read_code_object(code_object(arch, name))}


@functools.cache
def host() -> ctypes.CDLL:
    """selection and preshuffle, compiled for the machine."""
    out = harness.BUILD / "libkernels_hip_host.so"
    sources = [
        SOURCES / "select.cc",
        SOURCES / "select_experts.cc",
        SOURCES / "preshuffle.cc",
        ROOT / "ep/kernels/layout.cc",
        Path(__file__).with_name("host.cc"),
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    headers = [*SOURCES.glob("*.h"), *(ROOT / "ep/kernels").glob("*.h"), ROOT / "ep/mx_formats.h"]
    partial = out.with_suffix(f".{os.getpid()}.so")  # test processes may start together
    command = [
        "g++",
        "-std=c++17",
        "-O1",
        "-shared",
        "-fPIC",
        "-Wall",
        "-Wextra",
        "-Wconversion",
        "-Werror",
        f"-I{ROOT / 'ep'}",
    ]
    if not out.exists() or any(s.stat().st_mtime > out.stat().st_mtime for s in [*sources, *headers]):
        subprocess.run([*command, *map(str, sources), "-o", str(partial)], check=True)
        partial.replace(out)
    lib = ctypes.CDLL(str(out))
    lib.mxort_rows.restype = lib.mxort_plan.restype = ctypes.c_char_p
    lib.mxort_experts_rows.restype = lib.mxort_experts_plan.restype = ctypes.c_char_p
    lib.mxort_weight_bytes.restype = ctypes.c_size_t
    lib.mxort_plan.argtypes = [
        ctypes.c_char_p,
        ctypes.c_int,
        *[ctypes.c_int64] * 3,
        *[ctypes.c_int] * 5,
        ctypes.c_char_p,
    ]
    lib.mxort_weight_bytes.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    lib.mxort_preshuffle.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    return lib


def gemm_rows() -> list[dict[str, Any]]:
    return list(json.loads(host().mxort_rows()))


@dataclass(frozen=True)
class Spec:
    m: int
    k: int
    n: int
    dtype: str = "float"
    activation_format: str = "none"
    rotation: int = 1
    level: int = 3
    arch: str = "gfx950"
    units: int = COMPUTE_UNITS
    weights: str = "mxfp4"


def plan(spec: Spec, kernel: str = "") -> dict[str, Any] | None:
    order = ["none", "mxfp8_e4m3", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp4"]  # enum ActivationFormat
    text = host().mxort_plan(
        spec.arch.encode(), spec.units, spec.m, spec.k, spec.n, spec.rotation,
        order.index(spec.activation_format), spec.level, list(TYPES).index(spec.dtype),
        list(formats.WEIGHT_FORMATS).index(spec.weights), kernel.encode(),
    )  # fmt: skip
    return json.loads(text)


def preshuffle(
    codes: NDArray[np.uint8], scales: NDArray[np.uint8], k: int, weights: str = "mxfp4"
) -> NDArray[np.uint8]:
    kind = list(formats.WEIGHT_FORMATS).index(weights)  # enum WeightFormat
    out = np.empty(host().mxort_weight_bytes(kind, len(codes), k), np.uint8)
    codes, scales = np.ascontiguousarray(codes), np.ascontiguousarray(scales)
    host().mxort_preshuffle(kind, codes.ctypes.data, scales.ctypes.data, len(codes), k, out.ctypes.data)
    return out


def to_bytes(x: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """float32 to the device's type, exactly representable or rounded to nearest even."""
    if dtype == "bfloat16":
        bits = x.view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return np.where(np.isnan(x), 0x7FC0, rounded).astype(np.uint16)
    with np.errstate(over="ignore"):
        return x.astype(TYPES[dtype])


def from_bytes(x: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    if dtype == "bfloat16":
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float32)


@dataclass
class Norm:
    """A normalisation in front of a product (NormArgs): arrays in the device's type, or None."""

    rms: bool
    skip: NDArray[Any] | None = None
    bias: NDArray[Any] | None = None
    scale: NDArray[Any] | None = None
    shift: NDArray[Any] | None = None
    stores: bool = False
    rounds: bool = False
    epsilon: float = 1e-5
    results: dict[str, NDArray[Any]] = field(default_factory=dict)
    """What a kernel stored: y and sum."""

    def device_args(
        self, machine: Device, spec: Spec, x: int
    ) -> tuple[bytes, dict[str, harness.DeviceArray]]:
        kind = list(TYPES).index(spec.dtype)
        made = {
            name: machine.sim.to_device(given)
            for name in ("skip", "bias", "scale", "shift")
            if (given := getattr(self, name)) is not None
        }
        if self.stores:
            dtype = np.uint16 if spec.dtype == "bfloat16" else TYPES[spec.dtype]
            made |= {name: machine.sim.empty((spec.m, spec.k), dtype) for name in ("y", "sum")}
        pointers = [
            made[name].ptr if name in made else 0 for name in ("skip", "bias", "scale", "shift", "y", "sum")
        ]
        skip_rows = len(self.skip) if self.skip is not None else 1
        args = struct.pack(
            "<QII9QQf5i", spec.m, spec.k, 1, x, *pointers, 0, 0, skip_rows, self.epsilon, kind, kind, kind,
            int(self.rms), int(self.rounds),
        )  # fmt: skip
        return args, made


class Device:
    """A simulated device with the project's kernels loaded on demand."""

    def __init__(self, arch: str = "gfx950", **options: Any):
        self.arch = arch
        self.sim = harness.Sim(devices=arch, threads=2, **options)
        self.modules: dict[str, harness.Module] = {}
        self.replace: dict[str, Path] = {}

    def module(self, name: str) -> harness.Module:
        if name not in self.modules:
            self.modules[name] = self.sim.load(self.replace.get(name, code_object(self.arch, name)))
        return self.modules[name]

    def unexecuted(self, name: str, kernel: str) -> list[str]:
        """Instructions of a kernel of module ``name`` that no launch has executed so far, of a ``Device(counts=1)``.

        Without jumps that stand directly behind a branch on EXEC. The compiler asks for each of a lane's stores
        whether any lane is left for it, also on ways where no number of columns leads: those that lie behind others
        which are outside already.
        """
        counts = self.module(name).counts(kernel)
        assert counts, kernel
        before = ["", *(text for _, _, text in counts)]
        return [
            f"{pc:x} {text}"
            for (count, pc, text), last in zip(counts, before, strict=False)
            if not count and not (text.startswith("s_branch") and last.startswith("s_cbranch_exec"))
        ]

    def unexecuted_work(self, name: str, kernel: str) -> list[str]:
        """The same without scalar jumps and the flags that choose among them: clang makes a switch into questions, and
        does not know that one of them is answered by yes."""
        flow = re.compile(r"s_branch |s_mov_b64 s\[\d+:\d+\], (0|-1)$")
        return [line for line in self.unexecuted(name, kernel) if not flow.match(line.split(" ", 1)[1])]

    def prepare(self, spec: Spec, p: dict[str, Any], a: NDArray[Any]) -> harness.DeviceArray:
        source, records = self.sim.to_device(a), self.sim.empty(p["activation_bytes"], np.uint8)
        args = struct.pack(
            "<QQIIIIii", source.ptr, records.ptr, spec.m, spec.k, p["steps"], p["terms"],
            list(TYPES).index(spec.dtype), spec.rotation,
        )  # fmt: skip
        self.module("prepare").launch(p["prepare"], p["prepare_grid"], (256,), [args])
        source.free()
        return records

    def matmul(
        self,
        spec: Spec,
        a: NDArray[Any],
        codes: NDArray[np.uint8],
        scales: NDArray[np.uint8],
        column_scale: NDArray[np.float32],
        bias: NDArray[np.float32],
        kernel: str = "",
        splits: int | None = None,
        follow: int = 0,
        gated: int = 0,
        norm: Norm | None = None,
    ) -> NDArray[np.float32]:
        """Y as float32; ``a`` in the device's type. ``follow`` (Follow), ``gated`` (columns of Y) and ``norm`` are for
        kernels that prepare A themselves."""
        p = plan(spec, kernel)
        assert p is not None, (spec, kernel)
        if p["direct"]:
            return self.direct(spec, p, a, codes, scales, column_scale, bias, follow, gated, norm)
        assert not follow and not gated and not norm
        if splits is not None:
            p["steps_per_split"] = -(-p["steps"] // splits)
            p["splits"] = -(-p["steps"] // p["steps_per_split"])
            p["gemm_grid"][1] = p["splits"]
        many = p["splits"] > 1
        records = self.prepare(spec, p, a)
        weights = self.sim.to_device(preshuffle(codes, scales, spec.k, spec.weights))
        cs, bi = self.sim.to_device(column_scale), self.sim.to_device(bias)
        dtype = np.uint16 if spec.dtype == "bfloat16" else TYPES[spec.dtype]
        y = self.sim.empty((spec.m, spec.n), dtype)
        partial = self.sim.empty((p["splits"], spec.m, spec.n), np.float32) if many else None
        kind = list(TYPES).index(spec.dtype)
        args = struct.pack(
            "<QQQQQQIIIIIIIIi4x", records.ptr, weights.ptr, cs.ptr, bi.ptr, y.ptr, partial.ptr if partial else 0,
            spec.m, spec.n, p["steps"], p["terms"], p["steps_per_split"], p["splits"], p["tiles_m"], p["tiles_n"], kind,
        )  # fmt: skip
        self.module(p["object"]).launch(p["gemm"], p["gemm_grid"], (p["threads"],), [args])
        if partial:
            rows = min(spec.m, 3)
            args = struct.pack(
                "<QQQQIIIIi4x", partial.ptr, cs.ptr, bi.ptr, y.ptr, spec.m, spec.n, p["splits"], rows, kind
            )
            self.module("prepare").launch("reduce", (-(-spec.n // 256), rows), (256,), [args])
        out = from_bytes(y.numpy(), spec.dtype)
        for array in (records, weights, cs, bi, y, *([partial] if partial else [])):
            array.free()
        return out

    def direct(
        self,
        spec: Spec,
        p: dict[str, Any],
        a: NDArray[Any],
        codes: NDArray[np.uint8],
        scales: NDArray[np.uint8],
        column_scale: NDArray[np.float32],
        bias: NDArray[np.float32],
        follow: int,
        gated: int,
        norm: Norm | None,
    ) -> NDArray[np.float32]:
        source, cs, bi = self.sim.to_device(a), self.sim.to_device(column_scale), self.sim.to_device(bias)
        weights = self.sim.to_device(preshuffle(codes, scales, spec.k, spec.weights))
        columns, kind = gated or spec.n, list(TYPES).index(spec.dtype)
        y = self.sim.empty((spec.m, columns), np.uint16 if spec.dtype == "bfloat16" else TYPES[spec.dtype])
        normalised, sources = norm.device_args(self, spec, source.ptr) if norm else (bytes(136), {})
        args = struct.pack(
            "<QQQQQIIIIIIIiiiiiii136s", source.ptr, weights.ptr, cs.ptr, bi.ptr, y.ptr,
            spec.m, spec.n, spec.k, p["steps"], p["terms"], p["tiles_n"], columns,
            kind, kind, spec.rotation, p["emulated"], follow, int(gated > 0), int(norm is not None),
            normalised,
        )  # fmt: skip
        self.module(p["object"]).launch(p["gemm"], p["gemm_grid"], (p["threads"],), [args])
        out = from_bytes(y.numpy(), spec.dtype)
        if norm:
            norm.results = {name: sources[name].numpy() for name in ("y", "sum") if name in sources}
        for array in (source, weights, cs, bi, y, *sources.values()):
            array.free()
        return out


def views(dims: tuple[int, ...], *strides: tuple[int, ...]) -> bytes:
    """Strides<kOperands> of args_strided.h."""
    pad = [0] * (8 - len(dims))
    out = struct.pack("<I8I4x", len(dims), *dims, *pad)
    return out + b"".join(struct.pack("<8q", *of, *pad) for of in strides)
