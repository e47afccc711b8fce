"""Weights whose numbers are elsewhere, and those of them that are MXFP4 already, without a checkpoint."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

import mxort
from mxort.converters import lazy_weights, model_io
from mxort.converters.lazy_weights import LazyWeight

K, N = 64, 48
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


@dataclass(frozen=True)
class Rows:
    """Rows of random codes, or of floats."""

    seed: int
    n: int = N
    floats: bool = False
    activation_format: str | None = None

    @property
    def name(self) -> str:
        return f"rows {self.seed}"

    @property
    def shape(self) -> tuple[int, int]:
        return self.n, K

    @property
    def is_packed(self) -> bool:
        return not self.floats

    def _drawn(self) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(self.seed)
        scales = rng.integers(120, 130, (self.n, K // 32), dtype=np.uint8)
        return rng.integers(0, 16, (self.n, K), dtype=np.uint8), scales

    def packed(self) -> tuple[np.ndarray, np.ndarray] | None:
        codes, scales = self._drawn()
        return None if self.floats else (codes[:, ::2] | codes[:, 1::2] << 4, scales)

    def values(self) -> np.ndarray:
        if self.floats:
            return np.random.default_rng(self.seed).standard_normal(self.shape).astype(ml_dtypes.bfloat16)
        codes, scales = self._drawn()
        return E2M1[codes] * np.exp2(np.repeat(scales, 32, axis=1).astype(np.float32) - 127)


def model(*weights: LazyWeight, transpose: bool = False) -> ir.Model:
    """x float [rows, 64] -> a MatMul with each weight."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["rows", K]))
    nodes, values = [], []
    for number, weight in enumerate(weights):
        value = ir.Value(
            name=weight.name, type=ir.TensorType(weight.dtype), shape=weight.shape, const_value=weight
        )
        values.append(value)
        right = value
        if transpose:
            nodes.append(ir.node("Transpose", [value], {"perm": [1, 0]}, name=f"t{number}"))
            right = nodes[-1].outputs[0]
        nodes.append(ir.node("MatMul", [x, right], name=f"product{number}"))
        nodes[-1].outputs[0].name = f"y{number}"
        nodes[-1].outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    outputs = [node.outputs[0] for node in nodes if node.op_type == "MatMul"]
    graph = ir.Graph([x], outputs, nodes=nodes, initializers=values, opset_imports={"": 20}, name="g")
    return ir.Model(graph, ir_version=9)


def converted(
    path: Path, built: ir.Model, **options: Any
) -> tuple[mxort.Report, dict[str, list[np.ndarray]]]:
    """(the report, the constants of each operator by its node's name)."""
    report = mxort.convert(model_io.from_memory(built), path, **options)
    graph = onnx.load(path).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = {node.name: node for node in graph.node}
    return report, {name: [arrays[i] for i in node.input if i in arrays] for name, node in nodes.items()}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_numbers(transposed: bool, dtype: ir.DataType) -> None:
    pieces = [Rows(1, 5), Rows(2, 7, floats=True)]
    weight = LazyWeight(pieces, transposed, dtype, "w")
    expected = np.concatenate([piece.values().astype(np.float32) for piece in pieces])
    expected = (expected.T if transposed else expected).astype(dtype.numpy())
    assert tuple(weight.shape.numpy()) == expected.shape
    np.testing.assert_array_equal(weight.numpy(), expected)
    file = io.BytesIO()
    weight.tofile(file)
    assert file.getvalue() == expected.tobytes() == weight.tobytes()


def test_a_file_is_written_by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy_weights, "_CHUNK_BYTES", 1000)
    weight = LazyWeight([Rows(1)], True, ir.DataType.FLOAT, "w")
    file = io.BytesIO()
    weight.tofile(file)
    assert file.getvalue() == np.ascontiguousarray(Rows(1).values().T).tobytes()


@pytest.mark.parametrize("transpose", [False, True])
def test_codes_are_kept_whatever_the_recipe_says(transpose: bool, tmp_path: Path) -> None:
    pieces = [Rows(1), Rows(2, 16)]
    built = model(LazyWeight(pieces, not transpose, ir.DataType.FLOAT, "w"), transpose=transpose)
    report, constants = converted(
        tmp_path / "m.onnx",
        built,
        rotation=32,
        weight_format="mxfp8_e4m3",
        exclude=("*",),
        min_elements=10**9,
    )
    (site,) = report.converted
    assert (site.algorithm, site.weight_format, site.rotation) == ("checkpoint", "mxfp4", 1)
    assert site.sqnr_db == float("inf")
    assert site.accuracy_level == 3
    codes, scales, multiplier, bias = constants["product0"]
    expected = [piece.packed() for piece in pieces]
    np.testing.assert_array_equal(codes, np.concatenate([part[0] for part in expected if part]))
    np.testing.assert_array_equal(scales, np.concatenate([part[1] for part in expected if part]))
    np.testing.assert_array_equal(multiplier, np.ones(N + 16))
    np.testing.assert_array_equal(bias, np.zeros(N + 16))


def test_floats_are_the_recipes(tmp_path: Path) -> None:
    """And those of mixed rows, which cannot be kept."""
    rows = Rows(1, floats=True)
    mixed = LazyWeight([Rows(2), Rows(3, floats=True)], True, ir.DataType.FLOAT, "mixed")
    other = LazyWeight([Rows(4), Rows(5, activation_format="mxfp4")], True, ir.DataType.FLOAT, "other")
    report, constants = converted(
        tmp_path / "m.onnx", model(LazyWeight([rows], True, ir.DataType.FLOAT, "w"), mixed, other)
    )
    assert [site.algorithm for site in report.converted] == ["rtn"] * 3
    plain, expected = converted(tmp_path / "plain.onnx", _plain(rows.values().astype(np.float32).T))
    assert plain.converted[0].sqnr_db == report.converted[0].sqnr_db
    for got, wanted in zip(constants["product0"], expected["product0"], strict=True):
        np.testing.assert_array_equal(got, wanted)


def _plain(weight: np.ndarray) -> ir.Model:
    built = model(LazyWeight([Rows(1)], True, ir.DataType.FLOAT, "w"))
    built.graph.initializers["w"].const_value = ir.Tensor(np.ascontiguousarray(weight), name="w")
    return built


def test_activations_are_the_checkpoints_before_the_recipes(tmp_path: Path) -> None:
    asked = LazyWeight([Rows(1, activation_format="mxfp4")], True, ir.DataType.FLOAT, "asked")
    free = LazyWeight([Rows(2)], True, ir.DataType.FLOAT, "free")
    report, _ = converted(tmp_path / "m.onnx", model(asked, free), activation_format="mxfp8_e4m3")
    assert [site.activation_format for site in report.converted] == ["mxfp4", "mxfp8_e4m3"]
