"""Runs GPU code objects on the simulated HIP runtime from Python. See README.md beside this file."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

HERE = Path(__file__).resolve().parent
BUILD = Path(os.environ.get("HIPSIM_BUILD_DIR", HERE.parents[1] / "build" / "hipsim"))
COMPILER_FLAGS = ["-O3", "-std=c++17", "-nogpuinc", "-nogpulib", "-mcode-object-version=5"]


class SimFault(RuntimeError):  # noqa: N818  (it is the kernel that is at fault)
    """The simulator stopped a kernel, or a HIP call failed; ``code`` is the hipError_t."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


# ---- building ----------------------------------------------------------------------------------------------


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")


@functools.cache
def library_path() -> Path:
    """Folder of libamdhip64.so.7, built if a source is newer than it."""
    library = BUILD / "libamdhip64.so.7"
    sources = [*HERE.glob("*.cc"), *HERE.glob("*.h"), HERE / "CMakeLists.txt"]
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / ".lock").open("w") as lock:  # test processes may start together
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists() or any(s.stat().st_mtime > library.stat().st_mtime for s in sources):
            generator = ["-G", "Ninja"] if shutil.which("ninja") else []
            _run("cmake", "-S", str(HERE), "-B", str(BUILD), *generator)
            _run("cmake", "--build", str(BUILD), "-j", "2")
            library.touch()
    return library.parent


def find_tool(name: str) -> str:
    """Path of an LLVM tool with AMDGPU support ("clang", "llvm-objdump", ...), ROCm's first."""
    rocm = Path(os.environ.get("ROCM_PATH", "/opt/rocm")) / "llvm" / "bin" / name
    for candidate in (str(rocm), f"{name}-22", f"/usr/lib/llvm-22/bin/{name}"):
        if shutil.which(candidate):
            return candidate
    raise FileNotFoundError(f"{name} with AMDGPU support: install clang-22, lld-22 and llvm-22")


def _cached(suffix: str, content: bytes, command: Sequence[str], stamp: str = "") -> Path:
    """Runs ``command + [-o out, in]`` unless its result for the same content, command and stamp exists."""
    cache = BUILD / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(repr(list(command)).encode() + stamp.encode() + content).hexdigest()[:24]
    out, source = cache / f"{key}.co", cache / f"{key}{suffix}"
    if not out.exists():
        source.write_bytes(content)
        partial = cache / f"{key}.{os.getpid()}.co"
        _run(*command, "-o", str(partial), str(source))
        partial.replace(out)
    return out


def compile_hip(
    source: str | Path, arch: str = "gfx950", flags: Sequence[str] = (), include: Sequence[Path] = ()
) -> Path:
    """Code object of header-free HIP code: text, or a path. Folders in ``include`` (and the path's own) are
    searched for headers; a change of any header there compiles again."""
    folders = list(include)
    if isinstance(source, Path):
        folders.append(source.parent)
        source = source.read_text()
    headers = sorted(h for f in folders for h in f.rglob("*.h"))
    stamp = hashlib.sha256(b"".join(h.read_bytes() for h in headers)).hexdigest()
    command = [find_tool("clang"), "-x", "hip", "--cuda-device-only", "--no-gpu-bundle-output"]
    command += [f"--offload-arch={arch}", *COMPILER_FLAGS, *(f"-I{f}" for f in folders), *flags]
    return _cached(".hip", source.encode(), command, stamp)


def assemble(text: str, arch: str = "gfx950") -> Path:
    """Code object of a whole assembly file (with .amdhsa_kernel and .amdgpu_metadata)."""
    command = [
        find_tool("clang"),
        "-target",
        "amdgcn-amd-amdhsa",
        f"-mcpu={arch}",
        "-mcode-object-version=5",
        "-x",
        "assembler",
    ]
    return _cached(".s", text.encode(), command)


KERNEL_TEMPLATE = """
.amdgcn_target "amdgcn-amd-amdhsa--{arch}"
.text
.globl {name}
.p2align 8
.type {name},@function
{name}:
{body}
  s_endpgm
.Lend:
.size {name}, .Lend-{name}
.rodata
.p2align 6
.amdhsa_kernel {name}
  .amdhsa_group_segment_fixed_size {lds}
  .amdhsa_user_sgpr_kernarg_segment_ptr 1
  .amdhsa_system_sgpr_workgroup_id_x 1
  .amdhsa_system_sgpr_workgroup_id_y 1
  .amdhsa_system_vgpr_workitem_id 2
  .amdhsa_next_free_vgpr {vgprs}
  .amdhsa_next_free_sgpr 96
  .amdhsa_accum_offset 256
  .amdhsa_float_denorm_mode_32 3
.end_amdhsa_kernel
.amdgpu_metadata
---
amdhsa.version: [1, 2]
amdhsa.kernels:
  - .name: {name}
    .symbol: {name}.kd
    .kernarg_segment_size: {kernarg}
    .group_segment_fixed_size: {lds}
    .private_segment_fixed_size: 0
    .kernarg_segment_align: 8
    .wavefront_size: 64
    .sgpr_count: 96
    .vgpr_count: 256
    .agpr_count: 256
    .max_flat_workgroup_size: 1024
    .args:
{args}
...
.end_amdgpu_metadata
"""


def kernel_asm(body: str, *, name: str = "k", arch: str = "gfx950", pointers: int = 2, lds: int = 0) -> str:
    """Assembly of a kernel around ``body``: s[0:1] points to ``pointers`` 8-byte arguments, s2/s3 are the
    workgroup ids, v0 packs the work-item ids; 256 VGPRs and 256 AGPRs."""
    args = "\n".join(
        f"      - {{.offset: {8 * k}, .size: 8, .value_kind: global_buffer, .address_space: global}}"
        for k in range(pointers)
    )
    return KERNEL_TEMPLATE.format(
        name=name, arch=arch, body=body, lds=lds, kernarg=8 * pointers, args=args, vgprs=512
    )


# ---- the runtime -------------------------------------------------------------------------------------------


@functools.cache
def runtime() -> ctypes.CDLL:
    lib = ctypes.CDLL(str(library_path() / "libamdhip64.so.7"))
    for name in (
        "hipsim_report",
        "hipsim_counters",
        "hipsim_calls",
        "hipsim_kernel_names",
        "hipsim_unknown_instructions",
        "hipsim_counts",
        "hipGetErrorName",
    ):
        getattr(lib, name).restype = ctypes.c_char_p
    lib.hipsim_kernel_names.argtypes = lib.hipsim_unknown_instructions.argtypes = [ctypes.c_void_p]
    lib.hipsim_counts.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    lib.hipsim_unwritten.restype = ctypes.c_ulonglong
    lib.hipsim_unwritten.argtypes = [ctypes.c_void_p, ctypes.c_ulonglong]
    lib.hipsim_fail.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int]
    lib.hipMalloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    lib.hipFree.argtypes = [ctypes.c_void_p]
    lib.hipMemcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    lib.hipModuleLoadData.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    lib.hipModuleUnload.argtypes = [ctypes.c_void_p]
    lib.hipModuleGetFunction.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p]
    lib.hipModuleLaunchKernel.argtypes = [
        ctypes.c_void_p,
        *[ctypes.c_uint] * 7,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_void_p,
    ]
    return lib


def check(code: int, what: str) -> None:
    """Raises SimFault for a hipError_t other than 0, with the simulator's report if it has one."""
    if code:
        lib = runtime()
        report = lib.hipsim_report().decode()
        raise SimFault(
            f"{what}: {lib.hipGetErrorName(code).decode()} ({code}){': ' + report if report else ''}", code
        )


@dataclass
class DeviceArray:
    """Device memory seen as a numpy array's shape and type."""

    ptr: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    live: bool = True

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def numpy(self, check_written: bool = True) -> NDArray[Any]:
        """Copy on the host. Bytes that no one wrote raise SimFault unless ``check_written`` is False."""
        lib = runtime()
        out = np.empty(self.shape, self.dtype)
        check(lib.hipMemcpy(out.ctypes.data, self.ptr, self.nbytes, 2), "hipMemcpy")
        missing = lib.hipsim_unwritten(self.ptr, self.nbytes)
        if check_written and missing:
            raise SimFault(f"{missing} of {self.nbytes} bytes of the array were never written", 0)
        return out

    def write(self, values: ArrayLike) -> None:
        host = np.ascontiguousarray(values, self.dtype)
        if host.shape != self.shape:
            raise ValueError(f"shape {host.shape}, expected {self.shape}")
        check(runtime().hipMemcpy(self.ptr, host.ctypes.data, host.nbytes, 1), "hipMemcpy")

    def free(self) -> None:
        if self.live:
            self.live = False
            code = runtime().hipFree(self.ptr)
            if code and not runtime().hipsim_report():  # after a stopped kernel every call fails
                check(code, "hipFree")


def pack_arguments(args: Sequence[Any]) -> bytes:
    """Kernel arguments by natural alignment; see README.md for the accepted types."""
    out = bytearray()
    for n, a in enumerate(args):
        if isinstance(a, DeviceArray):
            data, align = a.ptr.to_bytes(8, "little"), 8
        elif a is None:
            data, align = bytes(8), 8
        elif isinstance(a, bytes):
            data, align = a, 8
        elif isinstance(a, np.generic):
            data, align = a.tobytes(), a.dtype.itemsize
        else:
            raise TypeError(
                f"argument {n} is a {type(a).__name__}: pass a DeviceArray, numpy scalar, bytes or None"
            )
        out += bytes(-len(out) % align) + data
    return bytes(out)


@dataclass
class Module:
    handle: int
    kernels: list[str]
    functions: dict[str, int] = field(default_factory=dict)

    def launch(
        self,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any],
        shared: int = 0,
        wait: bool = True,
    ) -> None:
        """Starts a kernel and (``wait``) runs it to its end; SimFault if it is stopped."""
        lib = runtime()
        if name not in self.functions:
            f = ctypes.c_void_p()
            check(
                lib.hipModuleGetFunction(ctypes.byref(f), self.handle, name.encode()),
                f"hipModuleGetFunction({name})",
            )
            self.functions[name] = f.value or 0
        data = pack_arguments(args)
        buffer = ctypes.create_string_buffer(data, max(len(data), 1))
        size = ctypes.c_size_t(len(data))
        extra = (ctypes.c_void_p * 5)(1, ctypes.addressof(buffer), 2, ctypes.addressof(size), 3)
        three = [*grid, 1, 1][:3] + [*block, 1, 1][:3]
        check(
            lib.hipModuleLaunchKernel(self.functions[name], *three, shared, None, None, extra),
            f"launch of {name}",
        )
        if wait:
            check(lib.hipDeviceSynchronize(), name)

    def unknown_instructions(self) -> list[str]:
        """Instructions of the module that the simulator does not know."""
        return sorted(set(runtime().hipsim_unknown_instructions(self.handle).decode().splitlines()))

    def counts(self, kernel: str) -> list[tuple[int, int, str]]:
        """(times that waves executed it, pc, text) of a kernel's instructions; of a ``Sim(counts=1)``."""
        lines = runtime().hipsim_counts(self.handle, kernel.encode()).decode().splitlines()
        rows = [line.split(" ", 2) for line in lines]
        return [(int(count), int(pc, 16), text) for count, pc, text in rows]

    def unload(self) -> None:
        check(runtime().hipModuleUnload(self.handle), "hipModuleUnload")


class Sim:
    """A fresh simulated machine. A process has one: another one invalidates what the earlier handed out."""

    current: Sim | None = None
    """The one that the process has."""

    def __init__(
        self, devices: str = "gfx950", seed: int = 1, threads: int | None = None, **options: int | str
    ):
        settings: dict[str, int | str] = {"devices": devices, "seed": seed, **options}
        if threads is not None:
            settings["threads"] = threads
        self.lib = runtime()
        self.lib.hipsim_reset(";".join(f"{k}={v}" for k, v in settings.items()).encode())
        Sim.current = self

    @classmethod
    def attach(cls) -> Sim:
        """The machine as it is: for a process whose program under test uses it too."""
        sim = cls.__new__(cls)
        sim.lib = runtime()
        return sim

    def empty(self, shape: int | Sequence[int], dtype: Any = np.float32) -> DeviceArray:
        shape = (shape,) if isinstance(shape, int) else tuple(int(n) for n in shape)
        array = DeviceArray(0, shape, np.dtype(dtype))
        p = ctypes.c_void_p()
        check(self.lib.hipMalloc(ctypes.byref(p), max(array.nbytes, 1)), "hipMalloc")
        array.ptr = p.value or 0
        return array

    def to_device(self, values: ArrayLike) -> DeviceArray:
        host = np.ascontiguousarray(values)
        array = self.empty(host.shape, host.dtype)
        if host.nbytes:
            array.write(host)
        return array

    def load(self, code: Path | str | bytes) -> Module:
        data = code if isinstance(code, bytes) else Path(code).read_bytes()
        m = ctypes.c_void_p()
        check(self.lib.hipModuleLoadData(ctypes.byref(m), data + bytes(64)), "hipModuleLoadData")
        return Module(m.value or 0, self.lib.hipsim_kernel_names(m).decode().split())

    def counters(self) -> dict[str, int]:
        return dict(json.loads(self.lib.hipsim_counters()))

    def calls(self) -> dict[str, int]:
        return dict(json.loads(self.lib.hipsim_calls()))

    def fail(self, function: str, call: int = 1, error: int = 999) -> None:
        """The ``call``-th call of a HIP function from now on returns ``error``."""
        self.lib.hipsim_fail(function.encode(), call, error)

    def lose_captures(self, count: int) -> None:
        """The next ``count`` captures end as if another thread had waited for the device meanwhile."""
        self.lib.hipsim_lose_captures(count)

    def lose_device(self, device: int = 0) -> None:
        self.lib.hipsim_lose_device(device)

    def report(self) -> str:
        """Text of the last stopped kernel."""
        return str(self.lib.hipsim_report().decode())
