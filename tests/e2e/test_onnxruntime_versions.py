"""One converted file, every runtime: releases of onnxruntime with the library, stock onnxruntime, onnx.reference."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import mxort

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
OTHER_RELEASES = sorted((ROOT / "build" / "ort").glob("[0-9]*[0-9]"))  # the Makefile installs them
NEWEST_OPSETS = {27: "1.32.0", 28: "1.32.0"}
"""Opset -> the release, of those tested, that runs it (and IR version 14, which came with 28)."""
LEVEL_3_ERROR = 3e-3
"""What the operator promises for accuracy level 3, relative RMS."""

RUN = """
import sys, numpy as np, onnxruntime as ort
model, library, inputs, outputs = sys.argv[1:]
options = ort.SessionOptions()
if library:
    options.register_custom_ops_library(library)
session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
results = session.run(None, dict(np.load(inputs)))
np.savez(outputs, **{str(i): r for i, r in enumerate(results)})
print(ort.__version__)
"""


EVERY_FORMAT = (
    "*/query/*=mxfp6_e2m3",
    "*/key/*=mxfp6_e3m2",
    "*/value/*=mxfp8_e4m3",
    "*/intermediate/*=mxint8",
)


@pytest.fixture(scope="module", params=[(), EVERY_FORMAT], ids=["mxfp4", "every-format"])
def converted(request: pytest.FixtureRequest, minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("versions") / "minilm.onnx"
    options = {"convert_embedding": True, "layer_formats": request.param, "accuracy_level": 3}
    report = mxort.convert(minilm / "model.onnx", out, **options)
    assert len({site.weight_format for site in report.converted}) == (5 if request.param else 2)
    assert report.fused == {"MultiHeadAttention": {"fused": 3}, "FusedMatMul": {"fused": 3}}
    return out


@pytest.fixture(scope="module")
def inputs(converted: Path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 20000, (2, 24))
    return {i.name: ids if "ids" in i.name else np.ones_like(ids) for i in onnx.load(converted).graph.input}


@pytest.fixture(scope="module")
def reference(converted: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    return onnx.reference.ReferenceEvaluator(str(converted)).run(None, inputs)


def run(
    release: Path | None, library: str, model: Path, inputs: dict[str, np.ndarray]
) -> tuple[str, list[np.ndarray]]:
    files = model.parent / "inputs.npz", model.parent / "outputs.npz"
    np.savez(files[0], **inputs)
    environment = {**os.environ, "PYTHONPATH": str(release or "")}
    command = [sys.executable, "-c", RUN, str(model), library, *map(str, files)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = np.load(files[1])
    return done.stdout.strip(), [results[str(i)] for i in range(len(results))]


def assert_agree(got: list[np.ndarray], expected: list[np.ndarray], bound: float) -> None:
    for a, b in zip(got, expected, strict=True):
        error = np.sqrt(
            ((a.astype(np.float64) - b) ** 2).sum() / max((b.astype(np.float64) ** 2).sum(), 1e-30)
        )
        assert error <= bound


def test_the_other_releases_are_there() -> None:
    releases = {p.name for p in OTHER_RELEASES} | {onnxruntime.__version__}
    assert releases == {"1.22.1", "1.24.4", "1.31.1", "1.32.0"}, "run through `make test`"


@pytest.mark.parametrize("release", [*OTHER_RELEASES, None], ids=lambda p: p.name if p else "installed")
def test_with_the_library(
    release: Path | None, converted: Path, inputs: dict[str, np.ndarray], reference: list[np.ndarray]
) -> None:
    version, results = run(release, mxort.get_library_path(), converted, inputs)
    assert version == (release.name if release else onnxruntime.__version__)
    assert_agree(results, reference, LEVEL_3_ERROR)


@pytest.mark.parametrize("release", [*OTHER_RELEASES, None], ids=lambda p: p.name if p else "installed")
def test_without_the_library(
    release: Path | None, converted: Path, inputs: dict[str, np.ndarray], reference: list[np.ndarray]
) -> None:
    """The function runs in float; a transformer's layers amplify rounding (2^-24) by some hundreds."""
    _, results = run(release, "", converted, inputs)
    assert_agree(results, reference, 1e-4)


def newest_model(opset: int, x_shape: tuple[int, int, int] = (2, 8, 256)) -> onnx.ModelProto:
    """Two products, and behind their sum an operator that is new in 27 or has a new version in 28."""
    rng = np.random.default_rng(opset)
    batch, channels, k = x_shape
    weights = {name: rng.standard_normal((k, 64), dtype=np.float32) for name in ("w", "v")}
    last = {
        27: helper.make_node("CausalConvWithState", ["sum", "filter"], ["y", "state"]),
        28: helper.make_node("Einsum", ["sum"], ["y"], equation="bcl->blc"),
    }[opset]
    if opset == 27:
        weights["filter"] = rng.standard_normal((channels, 1, 3), dtype=np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"]),
        helper.make_node("MatMul", ["x", "v"], ["xv"]),
        helper.make_node("Add", ["xw", "xv"], ["sum"]),
        last,
    ]
    graph = helper.make_graph(
        nodes,
        "newest",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, None, None])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=14)


@pytest.mark.parametrize("library", [True, False], ids=["library", "function"])
@pytest.mark.parametrize("opset", NEWEST_OPSETS)
def test_the_newest_opsets(opset: int, library: bool, tmp_path: Path) -> None:
    """Kept as they are, and run where onnxruntime knows them. A sum of products errs, relatively, as its terms do; in
    float these are 256 roundings of 2^-24, which add up to some 16.
    """
    model = newest_model(opset)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "model.onnx")
    mxort.convert(tmp_path / "model.onnx", tmp_path / "converted.onnx", accuracy_level=3)
    converted = onnx.load(tmp_path / "converted.onnx")
    onnx.checker.check_model(converted, full_check=True)
    assert {o.domain: o.version for o in converted.opset_import} == {"": opset, "mxort": 1}
    kept = [node.op_type for node in model.graph.node][2:]
    assert [node.op_type for node in converted.graph.node] == ["MatMulMXFP4", "MatMulMXFP4", *kept]

    x = np.random.default_rng(0).standard_normal((2, 8, 256), dtype=np.float32)
    expected = onnx.reference.ReferenceEvaluator(converted).run(None, {"x": x})
    (release,) = (path for path in OTHER_RELEASES if path.name == NEWEST_OPSETS[opset])
    _, results = run(
        release, mxort.get_library_path() if library else "", tmp_path / "converted.onnx", {"x": x}
    )
    assert_agree(results, expected, LEVEL_3_ERROR if library else 1e-6)
    # Four bits leave each weight some 12 % of error: the same model as before, and not exactly.
    (original,) = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})
    assert 0.01 < np.linalg.norm(results[0] - original) / np.linalg.norm(original) < 0.2
