"""Where a HIP runtime is looked for, and what is said of one that cannot be loaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from machine_process import run

from hipsim import harness
from mxort.runtime.session import get_library_path

pytestmark = pytest.mark.skipif(Path("/opt/rocm/lib").exists(), reason="expects a machine without ROCm")


def hip_runtime(before: str = "", **variables: str) -> dict[str, Any]:
    """What a new process finds that has executed the Python code ``before``."""
    hidden = ("MXORT_HIP_LIBRARY", "ROCM_PATH", "HIP_PATH", "LD_LIBRARY_PATH")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    code = f"{before}\nimport json; from mxort import _native; print(json.dumps(_native.hip_runtime()))"
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment | variables, capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def test_rocm_path_is_tried_and_a_bad_file_is_named_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libamdhip64.so.7").write_bytes(b"no library")
    found = hip_runtime(ROCM_PATH=str(tmp_path))
    assert not found["available"]
    for text in (
        f"{tmp_path}/lib/libamdhip64.so.7: file too short",
        f"{tmp_path}/lib/libamdhip64.so.6: cannot open shared object file",
        "/opt/rocm/lib/libamdhip64.so.7: cannot open",
        "is ROCm installed?",
    ):
        assert text in found["problem"], found["problem"]
    assert "\n" not in found["problem"]


def test_a_library_in_rocm_path_is_loaded_by_its_path(tmp_path: Path) -> None:
    """Any library that is no HIP runtime shows it: it is opened, and lacks the functions."""
    (tmp_path / "lib").mkdir()
    library = tmp_path / "lib" / "libamdhip64.so.6"
    shutil.copy(get_library_path(), library)
    found = hip_runtime(ROCM_PATH=str(tmp_path))
    assert found["library"] == str(library)
    assert (
        found["problem"] == f"{library}: function hipRuntimeGetVersion is missing; HIP 6.0 or later is needed"
    )


def test_hip_path_is_tried_too(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    shutil.copy(harness.library_path() / "libamdhip64.so.7", tmp_path / "lib")
    found = hip_runtime(HIP_PATH=str(tmp_path), ROCM_PATH="/nowhere")
    assert (found["available"], found["library"]) == (True, f"{tmp_path}/lib/libamdhip64.so.7")


@pytest.mark.parametrize(
    "name, mode",
    [("libamdhip64-5fa3c.so", "RTLD_LOCAL"), ("libframework.so", "RTLD_GLOBAL")],
    ids=["under another name", "inside another library"],
)
def test_a_runtime_that_the_process_has_loaded_is_the_one(tmp_path: Path, name: str, mode: str) -> None:
    """A second one in the process would know nothing of the first one's streams: PyTorch's wheels bring their own."""
    theirs, installed = tmp_path / name, tmp_path / "rocm" / "lib"
    installed.mkdir(parents=True)
    shutil.copy(harness.library_path() / "libamdhip64.so.7", installed)
    # Another soname, of the same length: the linker takes equal ones for the same library.
    image = (harness.library_path() / "libamdhip64.so.7").read_bytes()
    assert b"libamdhip64.so.7\0" in image
    theirs.write_bytes(image.replace(b"libamdhip64.so.7\0", b"libtheirhip.so.1\0"))
    load = f"import ctypes\nctypes.CDLL({str(theirs)!r}, ctypes.{mode})"
    found = hip_runtime(load, ROCM_PATH=str(installed.parent))
    assert (found["available"], found["library"]) == (True, str(theirs))
    assert hip_runtime(ROCM_PATH=str(installed.parent))["library"] == str(installed / "libamdhip64.so.7")


def check_fork() -> None:
    from gpu_oracle import Problem
    from machine import assert_clean, new_machine, node, operand

    from device import Spec
    from mxort import _native

    sim = new_machine()
    problem = Problem(Spec(3, 64, 24, "float", "mxfp4"))
    opened = node(problem, self_check=False)
    expected = opened(operand(problem))
    child = os.fork()
    if child == 0:
        texts = []
        for attempt in (lambda: _native.devices(), lambda: opened(operand(problem)), lambda: node(problem)):
            try:
                attempt()
                texts.append("no error")
            except _native.DeviceError as error:
                texts.append(str(error))
        usable = _native.hip_runtime()["available"]
        os._exit(
            0 if not usable and all("does not survive fork" in t and "\n" not in t for t in texts) else 1
        )
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (opened(operand(problem)) == expected).all()  # the parent is as before
    opened = None
    assert_clean(sim)


def test_a_child_of_fork_is_told_so() -> None:
    run(check_fork)


@pytest.mark.parametrize("works", [True, False])
def test_rocm_of_wheels_is_found(tmp_path: Path, works: bool) -> None:
    """They say where they are by rocm_sdk.find_libraries, and nothing else does."""
    shutil.copy(harness.library_path() / "libamdhip64.so.7", tmp_path)
    body = f"return [{str(tmp_path / 'libamdhip64.so.7')!r}]" if works else "raise KeyError(name)"
    (tmp_path / "rocm_sdk.py").write_text(f"def find_libraries(name):\n    {body}\n")
    code = "import json; from mxort.runtime import hardware; print(json.dumps(hardware.hip_runtime()))"
    environment = {k: v for k, v in os.environ.items() if k not in ("MXORT_HIP_LIBRARY", "LD_LIBRARY_PATH")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"PYTHONPATH": str(tmp_path), "ROCM_PATH": "/nowhere"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["available"] == works
    assert ("ROCm's wheels are not used" in done.stderr) == (not works)
    if works:
        assert found["library"] == str(tmp_path / "libamdhip64.so.7")
