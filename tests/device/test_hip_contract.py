"""ep/device/hip_api.h against HIP's own header: functions, values and layouts, checked by the compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEADER = "hip/hip_runtime_api.h"
CACHE = ROOT / "build" / "hip-headers"

CHECKS = r"""
#include <hip/hip_runtime_api.h>

#include <tuple>
#include <type_traits>

#include "device/hip_api.h"

namespace abi = mxort::device::abi;

// The same number of parameters, each of the same size, pointers where there are pointers.
template <class Ours, class Theirs>
constexpr bool kParameter = sizeof(Ours) == sizeof(Theirs) && std::is_pointer_v<Ours> == std::is_pointer_v<Theirs>;
template <class Ours, class Theirs>
constexpr bool kFunction = false;
template <class... Ours, class R, class... Theirs>
constexpr bool kFunction<int(Ours...), R(Theirs...)> = [] {
  if constexpr (sizeof...(Ours) == sizeof...(Theirs)) {
    return sizeof(R) == sizeof(int) && (kParameter<Ours, Theirs> && ...);
  } else {
    return false;
  }
}();

#if HIP_VERSION_MAJOR < 6  // the structure and the function of before
#define hipGetDevicePropertiesR0600 hipGetDeviceProperties
#else
#undef hipGetDeviceProperties
static_assert(sizeof(hipDeviceProp_tR0600) == abi::kPropertyBytes);
static_assert(offsetof(hipDeviceProp_tR0600, name) == abi::kName);
static_assert(offsetof(hipDeviceProp_tR0600, totalGlobalMem) == abi::kTotalGlobalMem);
static_assert(offsetof(hipDeviceProp_tR0600, multiProcessorCount) == abi::kMultiProcessorCount);
static_assert(offsetof(hipDeviceProp_tR0600, gcnArchName) == abi::kGcnArchName);
static_assert(hipMemoryTypeDevice == abi::kMemoryTypeDevice);
#endif

#define CHECK(name, parameters) static_assert(kFunction<int parameters, decltype(::name)>, #name);
MXORT_HIP_FUNCTIONS(CHECK)

static_assert(hipSuccess == abi::kSuccess && hipErrorInvalidValue == abi::kInvalidValue);
static_assert(hipErrorOutOfMemory == abi::kOutOfMemory && hipErrorDeinitialized == abi::kDeinitialized);
static_assert(hipErrorInsufficientDriver == abi::kInsufficientDriver && hipErrorNoDevice == abi::kNoDevice);
static_assert(hipErrorInvalidDevice == abi::kInvalidDevice);
static_assert(hipErrorStreamCaptureInvalidated == abi::kCaptureInvalidated);
static_assert(hipMemcpyHostToDevice == abi::kHostToDevice && hipMemcpyDeviceToHost == abi::kDeviceToHost);
static_assert(hipMemcpyDeviceToDevice == abi::kDeviceToDevice);
static_assert(hipStreamNonBlocking == abi::kStreamNonBlocking && hipEventDisableTiming == abi::kEventDisableTiming);
static_assert(hipStreamCaptureModeRelaxed == abi::kCaptureRelaxed);
static_assert(hipStreamCaptureStatusNone == abi::kCaptureStatusNone);
static_assert(hipStreamCaptureStatusInvalidated == abi::kCaptureStatusInvalidated);

#define SAME(ours, theirs) (offsetof(abi::PointerAttributes, ours) == offsetof(hipPointerAttribute_t, theirs))
static_assert(SAME(device, device) && SAME(device_pointer, devicePointer) && SAME(host_pointer, hostPointer));
static_assert(SAME(is_managed, isManaged) && SAME(allocation_flags, allocationFlags));
static_assert(sizeof(abi::PointerAttributes) == sizeof(hipPointerAttribute_t));
"""


def include_folder() -> Path:
    """ROCm's, else that of Debian's package, which may be older: fetched by apt, once."""
    rocm = [Path(os.environ[name]) for name in ("ROCM_PATH", "HIP_PATH") if os.environ.get(name)]
    for folder in (*(path / "include" for path in (*rocm, Path("/opt/rocm"))), Path("/usr/include")):
        if (folder / HEADER).exists():
            return folder
    folder = CACHE / "usr" / "include"
    if not (folder / HEADER).exists():
        if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
            pytest.skip("no HIP headers, and no apt to fetch libamdhip64-dev with")
        CACHE.mkdir(parents=True, exist_ok=True)
        fetched = subprocess.run(
            ["apt-get", "download", "libamdhip64-dev"], cwd=CACHE, capture_output=True, text=True, check=False
        )
        packages = sorted(CACHE.glob("libamdhip64-dev_*.deb"))
        if not packages:
            pytest.skip(f"no HIP headers: {fetched.stderr.strip().splitlines()[-1:]}")
        subprocess.run(["dpkg-deb", "-x", packages[-1], CACHE], check=True)
    return folder


def compiles(text: str, folder: Path) -> str:
    """What the compiler has against it; "" for nothing."""
    command = [
        "g++",
        "-std=c++17",
        "-fsyntax-only",
        "-w",
        "-D__HIP_PLATFORM_AMD__",
        "-D__HIP_PLATFORM_HCC__",
        "-D__HIP_DISABLE_CPP_FUNCTIONS__",
    ]
    command += [f"-I{ROOT / 'ep'}", f"-isystem{folder}", "-x", "c++", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False).stderr


def test_our_declarations_are_those_of_hip() -> None:
    folder = include_folder()
    assert compiles(CHECKS, folder) == ""


@pytest.mark.parametrize(
    "name, parameters",
    [("hipMalloc", "(void**)"), ("hipMalloc", "(size_t, void**)"), ("hipEventQuery", "(int event)")],
)
def test_the_check_sees_other_parameters(name: str, parameters: str) -> None:
    assert f"static assertion failed: {name}" in compiles(
        f"{CHECKS}\nCHECK({name}, {parameters})", include_folder()
    )
