"""Every HIP call that can fail does, once at each of its places: a one-line error, no leak, the next try is right."""

import os
import subprocess

import pytest
from machine_process import run

OUT_OF_MEMORY, LAUNCH_FAILURE, NO_DEVICE = 2, 719, 100

FAULTS = [
    ("hipMalloc", OUT_OF_MEMORY),
    ("hipHostMalloc", OUT_OF_MEMORY),
    ("hipMemcpyAsync", LAUNCH_FAILURE),
    ("hipModuleLoadData", 200),
    ("hipModuleGetFunction", 500),
    ("hipModuleLaunchKernel", LAUNCH_FAILURE),
    ("hipStreamCreateWithFlags", OUT_OF_MEMORY),
    ("hipStreamSynchronize", LAUNCH_FAILURE),
    ("hipGetDeviceCount", 999),
    ("hipGetDevicePropertiesR0600", 999),
    ("hipDeviceGetPCIBusId", 999),
    ("hipGetDevice", 999),
    ("hipSetDevice", 101),
]


def check_faults() -> None:
    from gpu_oracle import Problem
    from machine import assert_clean, compute, new_machine

    from device import Spec
    from mxort import _native

    problem = Problem(Spec(3, 2304, 24, "float", "mxfp4"))  # K is split: three kernels
    sim = new_machine("gfx950:2")
    right = compute(problem, self_check=False, device=1)
    problem.check(right)
    for function, error in FAULTS:
        caught = 0
        while True:
            sim.fail(function, caught + 1, error)
            try:
                y = compute(problem, self_check=False, device=1)
            except _native.DeviceError as e:
                text = str(e)
                assert function.removesuffix("R0600")[3:7] in text or "launch of" in text, (function, text)
                assert "hipError" in text and "\n" not in text, text
                assert_clean(sim)
                caught += 1
                continue
            assert (y == right).all(), function
            break
        assert caught, f"{function} is not called"
        sim = new_machine("gfx950:2")  # forgets the fault that was not reached
    assert_clean(sim)


def test_every_failing_call_is_an_error():
    run(check_faults)


def check_faults_of_the_self_check() -> None:
    from gpu_oracle import Problem
    from machine import assert_clean, compute, new_machine

    from device import Spec
    from mxort import _native

    sim = new_machine()
    problem = Problem(Spec(2, 64, 24, "float", "none", level=1))
    for function, error in (("hipMalloc", OUT_OF_MEMORY), ("hipModuleLaunchKernel", LAUNCH_FAILURE)):
        sim.fail(function, 2, error)
        with pytest.raises(_native.DeviceError, match="hipError"):
            compute(problem)
        assert not _native.gpu_kernel_checks()  # the kernel is not to blame
        assert_clean(sim)
    problem.check(compute(problem))
    assert {(c["kernel"], c["passed"]) for c in _native.gpu_kernel_checks()} == {
        (f"gemm_bf16_{tile}", True) for tile in ("64x128", "skinny", "16x16", "16x64")
    }
    assert_clean(sim)


def test_a_self_check_that_cannot_run_is_an_error_and_blames_no_kernel():
    run(check_faults_of_the_self_check)


def check_lost_device() -> None:
    from gpu_oracle import Problem
    from machine import assert_clean, compute, new_machine, node, operand

    from device import Spec
    from mxort import _native

    sim = new_machine("gfx950:2")
    problem = Problem(Spec(3, 64, 24, "float", "mxfp4"))
    lost, kept = (node(problem, self_check=False, device=d) for d in (0, 1))
    right = lost(operand(problem))
    sim.lose_device(0)
    for _ in range(2):
        with pytest.raises(_native.DeviceError, match="hipErrorNoDevice"):
            lost(operand(problem))
    with pytest.raises(_native.DeviceError, match="hipErrorNoDevice"):
        compute(problem, self_check=False)
    assert (kept(operand(problem)) == right).all()
    del lost, kept
    assert_clean(sim)
    # Between two launches of one run: of so many rows, preparation and product are two.
    sim = new_machine(lost_after=1)
    with pytest.raises(_native.DeviceError, match="hipErrorNoDevice"):
        compute(Problem(Spec(17, 64, 24, "float", "mxfp4")), self_check=False)
    assert_clean(sim)


def test_a_lost_device_is_an_error_and_leaves_the_others():
    run(check_lost_device)


# no runtime, or not the right one


def check_no_runtime(problem: str) -> None:
    from mxort import _native

    runtime = _native.hip_runtime()
    assert not runtime["available"]
    assert problem in runtime["problem"] and "\n" not in runtime["problem"], runtime
    with pytest.raises(_native.DeviceError) as error:
        _native.devices()
    assert str(error.value) == runtime["problem"]


def test_a_library_that_does_not_exist():
    run(
        check_no_runtime,
        "/nowhere/libamdhip64.so: cannot open shared object file",
        env={"MXORT_HIP_LIBRARY": "/nowhere/libamdhip64.so"},
    )


VERSION = "int hipRuntimeGetVersion(int* v) { *v = %d; return 0; }\n"
NAMES = 'const char* hipGetErrorName(int e) { return "hipErrorUnknown"; }\n'


@pytest.mark.parametrize(
    "source, problem",
    [
        ("int nothing;\n", "function hipRuntimeGetVersion is missing; HIP 6.0 or later is needed"),
        (VERSION % 50221151, "HIP runtime 5.2.21151 is too old, 6.0 or later is needed"),
        (VERSION % 60000000 + NAMES, "function hipDriverGetVersion is missing; HIP 6.0 or later is needed"),
    ],
)
def test_a_runtime_that_is_too_old_or_incomplete(tmp_path, source, problem):
    library = tmp_path / "libamdhip64.so"
    compiler = os.environ.get("CC", "gcc")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", library], input=source, text=True, check=True
    )
    run(check_no_runtime, problem, env={"MXORT_HIP_LIBRARY": str(library)})


def check_machines_without_a_usable_gpu() -> None:
    from gpu_oracle import Problem
    from machine import new_machine, node

    from device import Spec
    from mxort import _native

    problem = Problem(Spec(3, 64, 24, "float", "mxfp4"))
    new_machine("")
    assert _native.hip_runtime()["available"] and _native.devices() == []
    with pytest.raises(_native.DeviceError, match="expected one of the 0 devices present"):
        node(problem)
    new_machine("gfx90a,gfx950")
    other, supported = _native.devices()
    assert not other["supported"] and supported["supported"]
    reason = "mxort has no kernels for gfx90a, only for gfx950, gfx942"
    assert other["unsupported"] == reason
    with pytest.raises(_native.DeviceError, match=f"GPU 0 .*gfx90a.*: {reason}$"):
        node(problem)


def test_no_gpu_and_a_gpu_without_kernels():
    run(check_machines_without_a_usable_gpu)


def check_old_driver() -> None:
    from machine import new_machine

    from mxort import _native

    sim = new_machine()
    sim.fail("hipGetDeviceCount", 1, 35)
    with pytest.raises(_native.DeviceError, match="hipGetDeviceCount: "):
        _native.devices()


def test_a_driver_that_is_too_old_for_the_runtime():
    run(check_old_driver)
