"""mxort/runtime/doctor.py: healthy here, and what it says of things that are broken."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from mxort import _native
from mxort.cli import main
from mxort.errors import MxortError
from mxort.formats import ACTIVATION_FORMATS, dequantize_mxfp4
from mxort.runtime import doctor, session
from mxort.runtime.machine import describe_machine, status_bytes
from mxort.runtime.op_models import MatMulMXFP4, random_mxfp4, relative_rms


@pytest.fixture(scope="module")
def diagnosis():
    return doctor.diagnose()


def status(diagnosis, name):
    return next(check for check in diagnosis.checks if check.name == name)


def test_this_machine_is_healthy(diagnosis):
    assert diagnosis.healthy, diagnosis.checks
    assert status(diagnosis, "library").detail.startswith(session.get_library_path())


def test_every_kernel_is_listed_and_available_ones_are_checked(diagnosis):
    native = _native.describe()["kernels"]
    assert [(k.name, k.available) for k in diagnosis.kernels] == [(k["name"], k["available"]) for k in native]
    for kernel in diagnosis.kernels:
        assert bool(kernel.errors) == kernel.available
        assert kernel.failed == ()
    reference = next(kernel for kernel in diagnosis.kernels if kernel.name == "reference")
    assert len(reference.errors) == len(doctor._CHECK_CASES)


def test_each_activation_format_has_one_chosen_kernel(diagnosis):
    chosen = [name for kernel in diagnosis.kernels for name in kernel.chosen_for]
    assert sorted(chosen) == sorted(ACTIVATION_FORMATS)


def test_json(diagnosis):
    values = json.loads(json.dumps(diagnosis.to_dict(), allow_nan=False))
    assert values["healthy"] is True
    assert {check["status"] for check in values["checks"]} <= {"ok", "info", "warning"}


def with_kernel(monkeypatch, spoil):
    """Every kernel of the table computes as it does and ``spoil`` then has a go at the result."""
    original = MatMulMXFP4.native

    class Spoiled:
        def __init__(self, node):
            self.node, self.kernel, self.kernel_for = node, node.kernel, node.kernel_for

        def __call__(self, a, threads=1):
            return spoil(self.kernel_for(len(a)), self.node(a, threads=threads))

    monkeypatch.setattr(MatMulMXFP4, "native", lambda self, kernel="": Spoiled(original(self, kernel)))


@pytest.mark.parametrize("fault", [1.01, 0.0, np.nan])
def test_a_kernel_that_computes_wrong_is_named(monkeypatch, fault):
    with_kernel(monkeypatch, lambda name, y: y * np.float32(fault) if name == "portable" else y)
    diagnosis = doctor.diagnose()
    assert not diagnosis.healthy
    check = status(diagnosis, "kernels")
    assert check.status == doctor.FAILED
    assert "wrong results: portable (none/0" in check.detail
    assert [kernel.name for kernel in diagnosis.kernels if kernel.failed] == ["portable"]


def test_one_wrong_column_is_seen(monkeypatch):
    def spoil(name, y):
        y[:, -1] += 1
        return y

    with_kernel(monkeypatch, spoil)
    assert all(kernel.failed for kernel in doctor.check_kernels() if kernel.available)


def test_a_missing_library_is_a_finding_not_a_crash(monkeypatch):
    def missing():
        raise MxortError("libmxort.so: the library is missing")

    monkeypatch.setattr(session, "get_library_path", missing)
    diagnosis = doctor.diagnose()
    assert not diagnosis.healthy
    assert status(diagnosis, "library").detail == "libmxort.so: the library is missing"
    assert status(diagnosis, "operator").status == doctor.FAILED


def test_a_missing_onnxruntime_is_a_finding(monkeypatch):
    def missing():
        raise MxortError("onnxruntime cannot be imported")

    monkeypatch.setattr(session, "require_onnxruntime", missing)
    assert status(doctor.diagnose(), "onnxruntime").status == doctor.FAILED


def test_several_onnxruntimes_are_a_warning(monkeypatch):
    both = {"onnxruntime": ["onnxruntime", "onnxruntime-rocm"]}
    monkeypatch.setattr(doctor.metadata, "packages_distributions", lambda: both)
    check = doctor._onnxruntime()
    assert check.status == doctor.WARNING
    assert "onnxruntime, onnxruntime-rocm" in check.detail


def test_a_hip_runtime_that_is_not_there_is_said(monkeypatch, tmp_path):
    runtime = {"available": False, "library": "", "version": "", "problem": "no HIP runtime"}
    monkeypatch.setattr(_native, "hip_runtime", lambda: runtime)
    monkeypatch.setattr(doctor, "AMD_DRIVER", tmp_path / "absent")
    check = doctor._hip()
    assert check.status == doctor.INFO and check.detail.startswith("no HIP runtime; no AMD GPU driver")
    monkeypatch.setattr(doctor, "AMD_DRIVER", tmp_path)  # a GPU that goes unused
    assert doctor._hip().status == doctor.WARNING


def test_a_driver_that_fails_is_a_finding(monkeypatch):
    def broken():
        raise _native.DeviceError("hipGetDeviceCount: hipErrorUnknown")

    monkeypatch.setattr(_native, "devices", broken)
    assert doctor.check_gpus() == (
        [doctor.Check("GPU", doctor.FAILED, "hipGetDeviceCount: hipErrorUnknown")],
        (),
    )


def test_a_gpu_that_the_runtime_does_not_show_is_explained(monkeypatch, tmp_path):
    """HIP says "no device" where /dev/kfd may not be opened, and where a container hides /dev/dri."""
    monkeypatch.setattr(_native, "devices", list)
    monkeypatch.setattr(_native, "gpu_kernel_checks", list)
    monkeypatch.setattr(doctor, "AMD_DRIVER", tmp_path / "kfd")
    assert doctor.check_gpus()[0] == [doctor.Check("GPU", doctor.INFO, "the HIP runtime shows none")]
    (tmp_path / "kfd").touch()
    for allowed, hint in ((False, "groups render and video"), (True, "--device /dev/kfd --device /dev/dri")):
        monkeypatch.setattr(doctor.os, "access", lambda path, mode, allowed=allowed: allowed)
        (check,) = doctor.check_gpus()[0]
        assert check.status == doctor.WARNING and hint in check.detail and "\n" not in check.detail


def test_partitions_of_a_card_are_named(monkeypatch):
    ids = ["0000:05:00.0", "0000:05:00.1", "0000:15:00.0", "0000:05:00.0"]
    gpus = [{"ordinal": n, "pci_bus_id": bus_id} for n, bus_id in enumerate(ids)]
    monkeypatch.setattr(_native, "devices", lambda: gpus)
    monkeypatch.setattr(_native, "gpu_kernel_checks", list)
    monkeypatch.setattr(
        doctor, "_gpu", lambda native, gpu: doctor.Check(f"gpu:{gpu['ordinal']}", doctor.OK, "")
    )
    checks, _ = doctor.check_gpus()
    assert [check.name for check in checks] == ["gpu:0", "gpu:1", "gpu:2", "gpu:3", "partitions"]
    assert checks[-1].status == doctor.INFO
    assert checks[-1].detail.startswith("gpu:0, gpu:1, gpu:3 are partitions of one card (0000:05:00)")


def test_the_oracle_by_hand():
    """Column 0 is 0.5 * 2^1 * 3 + 6 * 2^1 * 1, column 1 is -1 * 2^0 * 3."""
    codes = np.zeros((2, 16), np.uint8)
    codes[0, 0] = 0x1 | 0x7 << 4  # 0.5, 6
    codes[1, 0] = 0xA  # -1, 0
    node = MatMulMXFP4(codes, np.array([[128], [127]], np.uint8), K=2)
    a = np.array([[3, 1]], np.float32)
    assert node.expected(a).tolist() == [[15.0, -3.0]]
    assert dequantize_mxfp4(codes, node.scales, 2).tolist() == [[1.0, 12.0], [-1.0, 0.0]]
    assert relative_rms(np.array([3.0, 4.0]), np.array([3.0, 4.5])) == pytest.approx(0.5 / np.hypot(3, 4.5))


def test_random_weights_have_no_padding():
    codes, scales = random_mxfp4(45, 8, np.random.default_rng(0))
    assert codes.shape == (8, 32)
    assert scales.shape == (8, 2)
    assert not codes[:, 23:].any()
    assert not (codes[:, 22] >> 4).any()


def test_machine():
    machine = describe_machine()
    assert machine.cores >= 1
    assert machine.memory_bytes > 1e8
    assert machine.cpu in machine.line()
    assert 1e6 < status_bytes("VmRSS") <= status_bytes("VmHWM")
    assert status_bytes("NoSuchField") == 0


@pytest.mark.slow  # llvm-mca of every loop; tests/kernels_hip/test_gate.py has the figures
def test_kernels_of_the_build(capsys):
    """Every shipped GPU kernel is in the report, and none uses scratch memory."""
    if not _native.code_objects():
        assert main(["doctor", "--kernels"]) == 2
        assert "without GPU kernels" in capsys.readouterr().err
        return
    assert main(["doctor", "--kernels", "--json"]) == 0
    kernels = json.loads(capsys.readouterr().out)
    assert {k["arch"] for k in kernels} == {arch for _, arch, _ in _native.code_objects()}
    assert {"gemm_fp4_256x256", "gemm_fp4_skinny", "prepare_fp4"} <= {k["name"] for k in kernels}
    assert all(k["scratch"] == 0 for k in kernels)


def test_kernels_without_llvm_says_what_to_install(capsys, monkeypatch, tmp_path):
    if not _native.code_objects():
        pytest.skip("a build without GPU kernels")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("ROCM_PATH", str(tmp_path))
    assert main(["doctor", "--kernels"]) == 2
    error = capsys.readouterr().err
    assert "install llvm-22" in error and error.count("\n") == 1


def test_kernels_where_the_tools_are_not(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tools.kernel_report.report", None)
    assert main(["doctor", "--kernels"]) == 2
    assert "source tree" in capsys.readouterr().err
