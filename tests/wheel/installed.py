"""Run by scripts/wheel_test.sh in an environment that holds the wheel alone: converts, runs, and asks the doctor.

Nothing here may come from the source tree, and no compiler is in reach.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

import mxort

K, N = 128, 96
TREE = Path(__file__).parents[2]
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "clang++", "clang-22", "amdclang++", "cmake", "ld")


def model(path: Path) -> np.ndarray:
    """Writes Y = X W with W in MXFP4's values, and returns W."""
    rng = np.random.default_rng(0)
    w = rng.choice(np.float32([0, 0.5, 1, 1.5, 2, 3, 4, 6]), (K, N)) * rng.choice([-1, 1], (K, N))
    w[::32] = 6  # every scale is one
    w = w.astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", N])],
        [numpy_helper.from_array(w, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return w


def mxort_command(*arguments: str | Path) -> str:
    """What an mxort command prints; it must succeed without a word on stderr."""
    done = subprocess.run([sys.executable, "-m", "mxort", *arguments], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, (arguments, done.returncode, done.stderr)
    return done.stdout


def main(folder: Path) -> None:
    assert not [tool for tool in COMPILERS if shutil.which(tool)], "a compiler is in reach"
    package = Path(mxort.__file__).parent
    assert not package.is_relative_to(TREE) or "site-packages" in package.parts, package
    assert {"libmxort.so", "py.typed", "converters"} <= {entry.name for entry in package.iterdir()}
    assert mxort_command("--version").startswith("mxort ")

    source, out = folder / "model.onnx", folder / "out.onnx"
    w = model(source)
    report = json.loads(
        mxort_command("convert", source, "-o", out, "--min-elements", "1", "--accuracy-level", "1", "--json")
    )
    assert [(site["node"], site["status"]) for site in report["sites"]] == [("product", "converted")]
    assert "converted" in mxort_command("inspect", out)

    x = np.random.default_rng(1).standard_normal((5, K)).astype(np.float32)
    want = x.astype(np.float64) @ w
    options = ort.SessionOptions()
    mxort.register(options)
    for session in (
        mxort.InferenceSession(str(out)),
        ort.InferenceSession(str(out), options, providers=["CPUExecutionProvider"]),
        ort.InferenceSession(str(out), providers=["CPUExecutionProvider"]),
    ):
        far = np.abs(session.run(None, {"x": x})[0] - want).max() / np.abs(want).max()
        assert far < 1e-5, far

    checked = json.loads(mxort_command("doctor", "--json"))
    assert checked["healthy"], checked
    flags = set(Path("/proc/cpuinfo").read_text().split())
    run = {kernel["name"] for kernel in checked["kernels"] if kernel["available"]}
    assert ("avx2" in run) == ({"avx2", "fma", "f16c"} <= flags), (run, checked["machine"]["isa"])
    assert ("avx512" in run) == ({"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags), run
    from mxort import _native

    objects = _native.code_objects()
    assert {arch for _, arch, _ in objects} == {"gfx942", "gfx950"}, "the wheel has its GPU kernels inside"
    print(f"mxort {mxort.__version__}, onnxruntime {ort.__version__}, Python {sys.version.split()[0]}: works")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
