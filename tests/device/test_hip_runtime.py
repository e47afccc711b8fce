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

from mxort.runtime.session import get_library_path

pytestmark = pytest.mark.skipif(Path("/opt/rocm/lib").exists(), reason="expects a machine without ROCm")


def hip_runtime(**variables: str) -> dict[str, Any]:
    """What a new process finds."""
    hidden = ("MXORT_HIP_LIBRARY", "ROCM_PATH", "LD_LIBRARY_PATH")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    code = "import json; from mxort import _native; print(json.dumps(_native.hip_runtime()))"
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
