"""Is this machine fit to run converted models? Facts, checks, and a small problem on every kernel."""

from __future__ import annotations

import ctypes
import importlib
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxort.errors import MxortError
from mxort.formats import ACTIVATION_FORMATS, WEIGHT_FORMATS
from mxort.runtime import hardware, session
from mxort.runtime.machine import Machine, describe_machine
from mxort.runtime.op_models import MatMulMXFP4, random_mxfp4, relative_rms
from mxort.text import format_bytes

OK = "ok"
INFO = "info"
WARNING = "warning"
FAILED = "failed"

AMD_DRIVER = Path("/dev/kfd")

_CHECK_COLUMNS = 72  # a strip that is not full
_CHECK_ROWS = (1, 25)  # decoding, and what AMX takes: 16 rows at a time, and a rest
_CHECK_K = {1: 200, 128: 256}  # by rotation, which must divide K; 200 ends in a block that is not full
_BASE = "mxfp4"
_CHECK_CASES = (
    *(("none", level, 1, _BASE) for level in (0, 1, 3, 4)),
    *((name, 0, rotation, _BASE) for name in ACTIVATION_FORMATS if name != "none" for rotation in _CHECK_K),
    *(("none", 1, rotation, name) for name in WEIGHT_FORMATS if name != _BASE for rotation in _CHECK_K),
    *(("none", level, 1, "mxint8") for level in (3, 4)),  # by the integer kernels
)
"""(activation_format, accuracy_level, rotation, weight_format) of the self-check."""

_GPU_CASES = (*((name, 0) for name in ACTIVATION_FORMATS), ("none", 1))
"""(activation_format, accuracy_level) that a GPU has different kernels for."""


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis. Only a failed check makes the machine unfit."""

    name: str
    status: str
    detail: str


@dataclass(frozen=True)
class KernelCheck:
    """A row of the library's kernel table.

    ``errors`` has the relative RMS error by case of the self-check ("none/4": activations as they are,
    accuracy level 4), ``failed`` the cases beyond their bound, ``chosen_for`` the activation formats for
    which the library picks this kernel at the default accuracy for one row of A.
    """

    name: str
    layout: str
    available: bool
    errors: dict[str, float]
    failed: tuple[str, ...] = ()
    chosen_for: tuple[str, ...] = ()


@dataclass(frozen=True)
class GpuKernelCheck:
    """A GPU kernel's self-check: with how A is prepared, in which type; ``error`` is its relative RMS error."""

    device: int
    kernel: str
    preparation: str
    terms: int
    dtype: str
    passed: bool
    error: float
    bound: float


@dataclass(frozen=True)
class Diagnosis:
    """Result of :func:`diagnose`."""

    machine: Machine
    checks: tuple[Check, ...]
    kernels: tuple[KernelCheck, ...]
    gpu_kernels: tuple[GpuKernelCheck, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing is broken."""
        return all(check.status != FAILED for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types, and ``healthy``."""
        return asdict(self) | {"healthy": self.healthy}


def diagnose() -> Diagnosis:
    """Looks at machine and installation and runs the self-check. A failure is a check: nothing is raised."""
    kernels: tuple[KernelCheck, ...] = ()

    def self_check() -> Check:
        nonlocal kernels
        kernels = check_kernels()
        return _kernel_verdict(kernels)

    checks = [
        _guarded("mxort", _mxort),
        _guarded("library", _library),
        _guarded("kernels", self_check),
        _guarded("onnxruntime", _onnxruntime),
        _guarded("operator", _operator),
        _guarded("execution provider", _execution_provider),
        _guarded("HIP runtime", _hip),
    ]
    gpu_kernels: tuple[GpuKernelCheck, ...] = ()
    if checks[-1].status == OK:
        gpus, gpu_kernels = check_gpus()
        checks += gpus
    return Diagnosis(describe_machine(), tuple(checks), kernels, gpu_kernels)


def check_kernels() -> tuple[KernelCheck, ...]:
    """Runs a small fixed problem on every kernel this CPU has, against float64. Needs the native module."""
    native = importlib.import_module("mxort._native")
    problems = [_problem(*case) for case in _CHECK_CASES]
    usual = [p for p, _, _ in problems if p.accuracy_level == 0]
    chosen = {p.activation_format: p.native().kernel for p in usual}
    rows = []
    for row in native.describe()["kernels"]:
        errors: dict[str, float] = {}
        failed = []
        for problem, a, expected in problems if row["available"] else ():
            node = problem.native(row["name"])
            counts = [m for m in _CHECK_ROWS if node.kernel_for(m) == row["name"]]
            if not counts:
                continue  # this kernel leaves the case to the next one
            case = "" if problem.weight_format == _BASE else f"weights {problem.weight_format}/"
            case += f"{problem.activation_format}/{problem.accuracy_level}"
            case += f"/rotation {problem.rotation}" if problem.rotation > 1 else ""
            found = [relative_rms(node(a[:m]), expected[:m]) for m in counts]
            errors[case] = float(np.max(found))  # a NaN stays one
            if not errors[case] <= problem.error_bound:  # not >: a NaN fails too
                failed.append(case)
        formats = tuple(name for name, kernel in chosen.items() if kernel == row["name"])
        rows.append(KernelCheck(row["name"], row["layout"], row["available"], errors, tuple(failed), formats))
    return tuple(rows)


def _problem(
    activation_format: str = "none", accuracy_level: int = 0, rotation: int = 1, weight_format: str = _BASE
) -> tuple[MatMulMXFP4, NDArray[np.float32], NDArray[np.float64]]:
    """(node, A, the product in float64), the same numbers every time."""
    rng = np.random.default_rng(0)
    k = _CHECK_K[rotation]
    codes, scales = random_mxfp4(k, _CHECK_COLUMNS, rng, WEIGHT_FORMATS[weight_format])
    a = rng.standard_normal((_CHECK_ROWS[-1], k), dtype=np.float32)
    problem = MatMulMXFP4(codes, scales, k, rotation, activation_format, accuracy_level, weight_format)
    return problem, a, problem.expected(a)


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    """A check that fails instead of raising: a broken installation is what doctor is there to describe."""
    try:
        return check()
    except Exception as error:
        text = session.one_line(error)
        return Check(
            name, FAILED, text if isinstance(error, MxortError) else f"{type(error).__name__}: {text}"
        )


def _mxort() -> Check:
    try:
        return Check("mxort", OK, metadata.version("mxort"))
    except metadata.PackageNotFoundError:
        return Check("mxort", WARNING, "used from a source tree, not installed")


def _library() -> Check:
    path = session.get_library_path()
    library = ctypes.CDLL(path)
    if not hasattr(library, "RegisterCustomOps"):
        return Check("library", FAILED, f"{path}: does not export RegisterCustomOps")
    native = importlib.import_module("mxort._native").describe()
    built = f"built with {native['compiler']} for onnxruntime API {native['ort_header_api']} or older"
    return Check("library", OK, f"{path} ({built})")


def _kernel_verdict(kernels: tuple[KernelCheck, ...]) -> Check:
    broken = [f"{kernel.name} ({', '.join(kernel.failed)})" for kernel in kernels if kernel.failed]
    if broken:
        return Check("kernels", FAILED, f"wrong results: {'; '.join(broken)}")
    available = sum(kernel.available for kernel in kernels)
    cases = sum(len(kernel.errors) for kernel in kernels)
    return Check("kernels", OK, f"{available} of {len(kernels)} run on this CPU; {cases} self-checks right")


def _onnxruntime() -> Check:
    module = session.require_onnxruntime()
    flavours = sorted(set(metadata.packages_distributions().get("onnxruntime", [])))
    detail = f"{', '.join(flavours) or 'onnxruntime'} {module.__version__}"
    detail += f" ({', '.join(module.get_available_providers())})"
    if len(flavours) > 1:
        return Check("onnxruntime", WARNING, f"{detail}: several packages share one folder; keep one of them")
    if session.parse_version(module.__version__) < session.MIN_ONNXRUNTIME_FOR_EP:
        newer = ".".join(map(str, session.MIN_ONNXRUNTIME_FOR_EP))
        detail += f"; custom operators run, an execution provider needs {newer} or later"
    return Check("onnxruntime", OK, detail)


def _operator() -> Check:
    """The whole way once: a session with the library, one node, against float64."""
    problem, a, expected = _problem()
    (y,) = session.open_session(problem.model()).run(None, {"A": a})
    error = relative_rms(y, expected)
    status = OK if error <= problem.error_bound else FAILED
    return Check(
        "operator", status, f"in onnxruntime, relative error {error:.1e} (bound {problem.error_bound:g})"
    )


def _execution_provider() -> Check:
    names = session.get_ep_names()
    return Check("execution provider", INFO, ", ".join(names) or "built without it: operators run on the CPU")


def _hip() -> Check:
    runtime = hardware.hip_runtime()
    driver = "AMD GPU driver present" if AMD_DRIVER.exists() else f"no AMD GPU driver ({AMD_DRIVER})"
    if runtime["available"]:
        return Check("HIP runtime", OK, f"{runtime['library']} {runtime['version']}, {driver}")
    # A driver without a runtime is a GPU that goes unused; without either there is nothing to want.
    return Check("HIP runtime", WARNING if AMD_DRIVER.exists() else INFO, f"{runtime['problem']}; {driver}")


def check_gpus() -> tuple[list[Check], tuple[GpuKernelCheck, ...]]:
    """(one check for each GPU that the HIP runtime shows, the self-checks of its kernels, which this runs)."""
    native = importlib.import_module("mxort._native")
    try:
        gpus = native.devices()
    except native.DeviceError as error:
        return [Check("GPU", FAILED, str(error))], ()
    checks = [_guarded(f"gpu:{gpu['ordinal']}", partial(_gpu, native, gpu)) for gpu in gpus]
    results = tuple(GpuKernelCheck(**row) for row in native.gpu_kernel_checks())
    return [*(checks or [_no_gpu()]), *_partitions(gpus)], results


def _no_gpu() -> Check:
    """HIP says "no device" of a GPU that it may not open, too."""
    if not AMD_DRIVER.exists():
        return Check("GPU", INFO, "the HIP runtime shows none")
    if not os.access(AMD_DRIVER, os.R_OK | os.W_OK):
        return Check(
            "GPU",
            WARNING,
            f"the HIP runtime shows none, and this user may not open {AMD_DRIVER}: add it to the groups render and "
            "video, and log in again",
        )
    return Check(
        "GPU",
        WARNING,
        f"the HIP runtime shows none although there is {AMD_DRIVER}: in a container, was it started with "
        "--device /dev/kfd --device /dev/dri? is HIP_VISIBLE_DEVICES or ROCR_VISIBLE_DEVICES set?",
    )


def _partitions(gpus: list[dict[str, Any]]) -> list[Check]:
    """A check for each card that is split (CPX, DPX): its partitions share a PCI address, by which onnxruntime and the
    provider tell GPUs apart."""
    cards: dict[str, list[str]] = {}
    for gpu in gpus:
        card = gpu["pci_bus_id"].split(".")[0]  # without the function
        cards.setdefault(card, []).append(f"gpu:{gpu['ordinal']}")
    return [
        Check(
            "partitions",
            INFO,
            f"{', '.join(names)} are partitions of one card ({card}): onnxruntime offers the first alone, unless the "
            'provider\'s library is registered by a name that ends in ".virtual"',
        )
        for card, names in cards.items()
        if len(names) > 1
    ]


def _gpu(native: Any, gpu: dict[str, Any]) -> Check:
    """Runs the self-checks that have not run yet. A wrong kernel is not used; still the machine is not well."""
    name = f"gpu:{gpu['ordinal']}"
    detail = f"{gpu['name']}, {gpu['arch']}, {gpu['compute_units']} compute units, "
    detail += f"{format_bytes(gpu['memory_bytes'])}, {gpu['pci_bus_id']}"
    if not gpu["supported"]:
        return Check(name, INFO, f"{detail}: not used, {gpu['unsupported']}")
    for fmt, level in _GPU_CASES:
        native.check_gpu_kernels(gpu["ordinal"], fmt, level, "float16")
    native.check_gpu_tensor_kernels(gpu["ordinal"], "float16")
    checks = [c for c in native.gpu_kernel_checks() if c["device"] == gpu["ordinal"]]
    broken = [
        f"{c['kernel']} ({', '.join(filter(None, (c['preparation'], c['dtype'])))})"
        for c in checks
        if not c["passed"]
    ]
    if broken:
        return Check(name, FAILED, f"{detail}; wrong results, not used: {', '.join(broken)}")
    return Check(name, OK, f"{detail}; {len(checks)} self-checks of kernels right")
