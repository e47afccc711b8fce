"""The devices that can run converted models: this CPU, and AMD GPUs as the HIP runtime lists them."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import platform
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mxort.errors import MxortError

if TYPE_CHECKING:
    import torch

CPU = "cpu"
AUTO = "auto"

AMD_GPU_DRIVER = Path("/dev/kfd")
"""What AMD's kernel driver offers to compute programs."""


@dataclass(frozen=True)
class Device:
    """A device; ``name`` is what :func:`mxort.InferenceSession` takes.

    Of a GPU, ``ordinal`` is its number in the HIP runtime (-1 for the CPU), ``arch`` its instruction set (gfx950),
    ``why_not`` what keeps mxort from using it, "" for nothing.
    """

    name: str
    product: str
    ordinal: int = -1
    arch: str = ""
    pci_bus_id: str = ""
    memory_bytes: int = 0
    why_not: str = ""


def devices() -> list[Device]:
    """This CPU and every GPU that the HIP runtime lists, whether mxort can use it or not.

    No HIP runtime, or one that cannot be used, means no GPUs: :func:`why_no_gpu` says which. The runtime is looked
    for once per process. Needs the compiled part of mxort.
    """
    found = [Device(CPU, platform.processor() or platform.machine())]
    for gpu in _gpus()[0]:
        found.append(
            Device(
                name=f"gpu:{gpu['ordinal']}",
                product=gpu["name"],
                ordinal=gpu["ordinal"],
                arch=gpu["arch"],
                pci_bus_id=gpu["pci_bus_id"],
                memory_bytes=gpu["memory_bytes"],
                why_not=gpu["unsupported"],
            )
        )
    return found


def why_no_gpu() -> str:
    """One line: why the list of GPUs is empty."""
    return _gpus()[1] or "no GPU: the HIP runtime lists none"


def hip_runtime() -> dict[str, Any]:
    """The HIP runtime in use: available, library, version, problem. The first call decides for the process."""
    _load_rocm_of_wheels()
    return dict(_native().hip_runtime())


def _load_rocm_of_wheels() -> None:
    """ROCm installed by pip (rocm-sdk) lies where no linker looks; loaded here, it is the process's runtime.

    Nothing where the process has one, or is given one by name.
    """
    if "MXORT_HIP_LIBRARY" in os.environ or importlib.util.find_spec("rocm_sdk") is None:
        return
    if "libamdhip64" in Path("/proc/self/maps").read_text():
        return
    try:
        for path in importlib.import_module("rocm_sdk").find_libraries("amdhip64"):
            ctypes.CDLL(str(path))
    except (
        Exception
    ) as error:  # a broken or partial installation: the library then looks elsewhere, and says where
        warnings.warn(f"ROCm's wheels are not used: {error}", RuntimeWarning, stacklevel=2)


def _gpus() -> tuple[list[dict[str, Any]], str]:
    """What the HIP runtime lists, and what keeps it from doing so."""
    native = _native()
    runtime = hip_runtime()
    if not runtime["available"]:
        return [], runtime["problem"]
    try:
        return native.devices(), ""
    except native.DeviceError as error:
        return [], str(error)


def amd_gpu_present() -> bool:
    """Whether there is any sign of an AMD GPU, usable or not: its kernel driver, or a HIP runtime given by name."""
    return AMD_GPU_DRIVER.exists() or "MXORT_HIP_LIBRARY" in os.environ


def _native() -> Any:
    return importlib.import_module("mxort._native")


@dataclass(frozen=True)
class Choice:
    """``gpu`` to run on, or None for the CPU and, where a GPU was wished for, why there is none."""

    gpu: Device | None
    why_cpu: str = ""


def means(device: str | None, name: str) -> bool:
    """Whether ``device``, as a user gives it (None: whatever), may be the device ``name``."""
    return device in (None, AUTO, name) or (device == "gpu" and name.startswith("gpu:"))


def _ordinal(device: str) -> int | None:
    """The N of "gpu:N"; None for "auto", "cpu" and "gpu". Raises MxortError for any other text."""
    match = re.fullmatch(r"auto|cpu|gpu(?::(\d+))?", device)
    if match is None:
        raise MxortError(f"device: got {device!r}, expected auto, cpu, gpu or gpu:N")
    return None if match[1] is None else int(match[1])


def torch_device(device: str) -> torch.device:
    """What :func:`choose` finds for the provider, for torch: "auto" is a GPU where torch has one.

    Raises MxortError for any other text, and for a GPU that torch does not have.
    """
    import torch

    ordinal = _ordinal(device)
    if device == CPU:
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0  # so torch calls AMD's, too
    if device == AUTO and not count:
        return torch.device("cpu")
    if (ordinal or 0) >= count:
        raise MxortError(f"device {device!r}: torch has {count} GPUs")
    return torch.device("cuda", ordinal or 0)


def choose(device: str) -> Choice:
    """The device meant by "auto", "cpu", "gpu" or "gpu:1".

    Raises MxortError for any other text and for "gpu" and "gpu:1" where that GPU cannot be used.
    """
    ordinal = _ordinal(device)
    if device == CPU:
        return Choice(None)
    gpus = [found for found in devices() if found.ordinal >= 0]
    wanted = gpus if ordinal is None else [gpu for gpu in gpus if gpu.ordinal == ordinal]
    usable = [gpu for gpu in wanted if not gpu.why_not]
    if usable:
        return Choice(usable[0])
    if not gpus:
        why = why_no_gpu()
    elif not wanted:
        why = f"there is no {device}, only {', '.join(gpu.name for gpu in gpus)}"
    else:
        why = "; ".join(f"{gpu.name} ({gpu.product}): {gpu.why_not}" for gpu in wanted)
    if device == AUTO:
        return Choice(None, why)
    raise MxortError(f"device {device!r} cannot be used: {why}")
