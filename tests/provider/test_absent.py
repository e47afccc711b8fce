"""Machines on which the GPU cannot be used: the CPU computes, after one clear warning; who asks for the GPU is told why
there is none."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from simulated import start

ROOT = Path(__file__).parents[2]
HIP_API = ROOT / "ep" / "device" / "hip_api.h"


def opened(model: str, device: str) -> dict[str, Any]:
    """A session of the helper and one run."""
    import warnings

    import gpu

    import mxort

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            session = mxort.InferenceSession(model, device=device)
        except mxort.MxortError as error:
            return {"error": str(error)}
        placement = session.get_providers()
        shapes = [list(y.shape) for y in session.run(None, gpu.feeds(session))]
    return {"providers": placement, "shapes": shapes, "warnings": [str(w.message) for w in caught]}


def stub(folder: Path, version: int, without: str = "") -> str:
    """A library with the functions of the HIP runtime that mxort uses, which do nothing but say their version."""
    functions = [*re.findall(r"F\((hip\w+),", HIP_API.read_text()), "hipGetErrorName"]
    assert not without or without in functions
    code = "".join(
        f'extern "C" int {name}(int* p) {{ return {f"*p = {version}, " if name.endswith("GetVersion") else ""}0; }}\n'
        for name in functions
        if name != without
    )
    (folder / "stub.cc").write_text(code)
    library = folder / "libamdhip64.so.7"
    subprocess.run(["g++", "-shared", "-fPIC", "-o", library, folder / "stub.cc"], check=True)
    return str(library)


def machine(name: str, folder: Path) -> dict[str, str | None]:
    """Environment of a machine that has no GPU for mxort."""
    if name == "no ROCm":
        return {"MXORT_HIP_LIBRARY": str(folder / "libamdhip64.so.7")}
    if name == "not a library":
        (folder / "libamdhip64.so.7").write_text("this is text")
        return {"MXORT_HIP_LIBRARY": str(folder / "libamdhip64.so.7")}
    if name == "no GPU":
        return {"HIPSIM_FAIL": ",".join(f"hipGetDeviceCount:{n}=100" for n in range(1, 20))}
    if name == "driver fails":
        return {"HIPSIM_FAIL": ",".join(f"hipGetDeviceCount:{n}=3" for n in range(1, 20))}
    if name == "too old":
        return {"MXORT_HIP_LIBRARY": stub(folder, 50_700_000)}
    if name == "function missing":
        return {"MXORT_HIP_LIBRARY": stub(folder, 70_000_000, without="hipModuleLaunchKernel")}
    assert name == "wrong architecture"
    return {"HIPSIM_DEVICES": "gfx90a"}


REASONS = {
    "no ROCm": "libamdhip64",
    "not a library": "libamdhip64",
    "no GPU": "no GPU|no device|no AMD GPU",
    "driver fails": "hipGetDeviceCount",
    "too old": "5.7",
    "function missing": "hipModuleLaunchKernel",
    "wrong architecture": "gfx90a",
}


@pytest.mark.parametrize("name", REASONS)
def test_the_session_opens_on_the_cpu_with_one_warning(
    name: str, converted: Callable[..., str], tmp_path: Path
) -> None:
    outcome = start(opened, converted("single"), "auto", **machine(name, tmp_path))
    assert outcome.code == 0, outcome.stderr
    result = outcome.result
    assert result["providers"] == ["CPUExecutionProvider"]
    assert result["shapes"] == [[5, 160]]
    lines = result["warnings"] + [line for line in outcome.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert re.search(REASONS[name], lines[0]), lines


@pytest.mark.parametrize("name", REASONS)
def test_asking_for_the_gpu_is_a_clear_error(
    name: str, converted: Callable[..., str], tmp_path: Path
) -> None:
    outcome = start(opened, converted("single"), "gpu", **machine(name, tmp_path))
    assert outcome.code == 0, outcome.stderr
    assert re.search(REASONS[name], outcome.result["error"]), outcome.result
    assert "\n" not in outcome.result["error"]
    assert outcome.stderr == ""


def test_asking_for_the_cpu_touches_no_gpu(converted: Callable[..., str], tmp_path: Path) -> None:
    """Not even where there is one: a broken driver may hang."""
    environment = {"HIPSIM_FAIL": ",".join(f"hipGetDeviceCount:{n}=3" for n in range(1, 20))}
    outcome = start(opened, converted("single"), "cpu", **environment)
    assert outcome.code == 0, outcome.stderr
    assert outcome.result["providers"] == ["CPUExecutionProvider"]
    assert (outcome.result["warnings"], outcome.stderr) == ([], "")
