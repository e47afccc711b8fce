"""mxort/comparison.py: the figures against ones worked out by hand, and whole comparisons of small models."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import onnx
import pytest

import mxort
from mxort.errors import MxortError
from mxort.evaluation import comparison
from mxort.evaluation.comparison import compare, compare_tensors
from mxort.formats import dequantize_mxfp4
from tiny_models import WIDTHS, mlp


@pytest.fixture
def pair(tmp_path):
    reference = mlp(tmp_path / "reference.onnx")
    mxort.convert(reference, tmp_path / "converted.onnx")
    return reference, tmp_path / "converted.onnx"


def test_figures_of_a_scaled_tensor():
    x = np.random.default_rng(0).standard_normal((7, 5))
    row = compare_tensors("t", x, 1.1 * x)
    assert row.sqnr_db == pytest.approx(20.0)  # noise is a tenth of the signal
    assert row.cosine == pytest.approx(1.0)
    assert row.max_abs_error == pytest.approx(0.1 * np.abs(x).max())
    assert row.argmax_agreement == 1.0


def test_figures_of_one_wrong_row():
    x = np.eye(4, dtype=np.float32)
    y = x.copy()
    y[3] = [1, 0, 0, 0]
    row = compare_tensors("t", x, y)
    assert row.sqnr_db == pytest.approx(10 * math.log10(4 / 2))
    assert row.cosine == pytest.approx(3 / 4)
    assert row.max_abs_error == 1
    assert row.argmax_agreement == 3 / 4


@pytest.mark.parametrize(
    ("reference", "new", "sqnr", "cosine"),
    [
        ([1.0, 2.0], [1.0, 2.0], math.inf, 1.0),
        ([0.0, 0.0], [0.0, 0.0], math.inf, 1.0),
        ([0.0, 0.0], [1.0, 0.0], -math.inf, 0.0),
        ([1.0, 0.0], [-1.0, 0.0], 10 * math.log10(1 / 4), -1.0),
        ([], [], math.inf, 1.0),
        ([-math.inf, 3.0], [-math.inf, 3.0], math.inf, 1.0),  # masked logits
        ([math.nan, 3.0], [math.nan, 3.0], math.inf, 1.0),
        ([math.nan, 3.0], [1.0, 3.0], math.nan, math.nan),
        ([1.0, 3.0], [math.inf, 3.0], math.nan, math.nan),
        ([-math.inf, 3.0], [math.inf, 3.0], math.nan, math.nan),
    ],
)
def test_special_values(reference, new, sqnr, cosine):
    row = compare_tensors("t", np.array(reference), np.array(new))
    assert row.sqnr_db == pytest.approx(sqnr, nan_ok=True)
    assert row.cosine == pytest.approx(cosine, nan_ok=True)


def test_integers_have_no_argmax_and_shapes_must_agree():
    assert compare_tensors("t", np.ones((2, 3), np.int64), np.ones((2, 3), np.int64)).argmax_agreement is None
    with pytest.raises(ValueError, match=r"t: shape \[2\] against \[3\]"):
        compare_tensors("t", np.ones(2), np.ones(3))


def test_a_model_equals_itself(tmp_path):
    path = mlp(tmp_path / "a.onnx")
    result = compare(path, path)
    assert [row.name for row in result.outputs] == ["y"]
    assert result.worst_sqnr_db == math.inf
    assert result.inputs == {"x": f"float32[1, {WIDTHS[0]}]"}


def test_a_model_whose_output_is_a_tenth_off(tmp_path):
    result = compare(mlp(tmp_path / "a.onnx"), mlp(tmp_path / "b.onnx", scale=1.1))
    assert result.worst_sqnr_db == pytest.approx(20.0, abs=1e-3)


def test_layers_have_the_error_of_their_quantised_weights(pair, tmp_path):
    """Against numpy: both models multiply the same x, so fc1 shows its own weight error alone."""
    reference, converted = pair
    x = np.random.default_rng(1).standard_normal((50, WIDTHS[0]), dtype=np.float32)
    result = compare(reference, converted, {"x": x}, layers=True)
    assert [row.node for row in result.layers] == ["fc1", "fc2"]
    assert [row.name for row in result.layers] == ["h2", "y"]  # fc1 computes what Add and Relu did
    assert result.unmatched == {}

    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(reference).graph.initializer}
    packed = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(converted).graph.initializer}
    stored = dequantize_mxfp4(packed["w1_mxfp4"], packed["w1_mxfp4_scale"], WIDTHS[0]).T.astype(np.float64)
    stored *= packed[f"mxort_column_scale_{WIDTHS[1]}"]
    exact, rounded = (
        np.maximum(x.astype(np.float64) @ w + tensors["b1"], 0) for w in (tensors["w1"], stored)
    )
    expected = compare_tensors("h2", exact, rounded)
    assert result.layers[0].sqnr_db == pytest.approx(expected.sqnr_db, abs=0.05)
    assert result.layers[0].cosine == pytest.approx(expected.cosine, abs=1e-4)
    assert 10 < result.layers[0].sqnr_db < 30
    assert result.layers[1].sqnr_db == pytest.approx(result.outputs[0].sqnr_db)


def test_layers_in_batches_are_the_same_layers(pair, monkeypatch):
    at_once = compare(*pair, layers=True)
    monkeypatch.setattr(comparison, "LAYERS_PER_RUN", 1)
    seen = []
    one_by_one = compare(*pair, layers=True, progress=lambda what, fraction: seen.append((what, fraction)))
    assert one_by_one.layers == at_once.layers
    assert [what for what, _ in seen] == ["reading", "outputs", "layers", "layers"]
    assert all(0 <= fraction < 1 for _, fraction in seen)


def test_layers_of_models_with_external_data(tmp_path):
    reference = mlp(tmp_path / "reference.onnx", external=True)
    mxort.convert(reference, tmp_path / "converted.onnx")
    result = compare(reference, tmp_path / "converted.onnx", layers=True)
    assert len(result.layers) == 2
    assert result.layers[0].sqnr_db > 10


def test_a_layer_that_the_reference_lacks_is_named(pair):
    reference, converted = pair
    model = onnx.load(converted)
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["renamed" if name == "h2" else name for name in names]
    onnx.save(model, converted)
    result = compare(reference, converted, layers=True)
    assert [row.node for row in result.layers] == ["fc2"]
    assert result.unmatched == {"renamed": "output of fc1, which the reference has no tensor for"}


def test_outputs_of_one_model_only_are_named(tmp_path):
    first, second = mlp(tmp_path / "a.onnx"), mlp(tmp_path / "b.onnx")
    model = onnx.load(second)
    model.graph.output.append(onnx.helper.make_tensor_value_info("h2", onnx.TensorProto.FLOAT, None))
    onnx.save(model, second)
    assert compare(first, second).unmatched == {"h2": f"only in {second}"}
    assert compare(second, first).unmatched == {"h2": f"only in {second}"}


def test_models_without_a_common_output(tmp_path):
    with pytest.raises(MxortError, match=r"b\.onnx: no output that can be compared with those of .*a\.onnx"):
        compare(mlp(tmp_path / "a.onnx"), mlp(tmp_path / "b.onnx", output="z"))


def test_inputs_from_a_file(pair, tmp_path):
    x = np.random.default_rng(1).standard_normal((5, WIDTHS[0]), dtype=np.float32)
    np.savez(tmp_path / "inputs.npz", x=x)
    from_file = compare(*pair, tmp_path / "inputs.npz")
    assert from_file == compare(*pair, {"x": x})
    assert from_file.outputs[0].shape == (5, WIDTHS[2])


def test_seed_and_dims_decide_the_generated_inputs(pair):
    assert compare(*pair, seed=3) == compare(*pair, seed=3)
    assert compare(*pair, seed=3).worst_sqnr_db != compare(*pair, seed=4).worst_sqnr_db
    assert compare(*pair, dims={"batch": 9}).outputs[0].shape == (9, WIDTHS[2])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "no array for input x"),
        ({"x": np.zeros((1, 64), np.float32), "z": np.zeros(1)}, r"has no input z \(it has: x\)"),
        ({"x": np.zeros((1, 64))}, "input x is float32, got an array of float64"),
        ({"x": np.zeros((1, 65), np.float32)}, r"input x has shape \[.*batch.*, 64\], got \[1, 65\]"),
        ({"x": np.zeros(64, np.float32)}, r"got \[64\]"),
    ],
)
def test_inputs_that_do_not_fit(pair, inputs, message):
    with pytest.raises(MxortError, match=message):
        compare(*pair, inputs)


def test_files_that_are_no_models(pair, tmp_path):
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"nonsense")
    for arguments in ((bad, pair[1]), (pair[0], bad), (tmp_path / "absent.onnx", pair[1])):
        with pytest.raises(MxortError, match=r"(bad|absent)\.onnx: "):
            compare(*arguments)


def test_json_has_no_infinity(tmp_path):
    path = mlp(tmp_path / "a.onnx")
    values = json.loads(json.dumps(compare(path, path).to_dict(), allow_nan=False))
    assert values["worst_sqnr_db"] is None and values["outputs"][0]["sqnr_db"] is None
    assert values["outputs"][0]["max_abs_error"] == 0


def test_a_nan_is_the_worst_output(tmp_path):
    good, bad = mlp(tmp_path / "a.onnx"), mlp(tmp_path / "b.onnx", scale=math.nan)
    assert math.isnan(compare(good, bad).worst_sqnr_db)


def test_the_package_offers_the_function_whatever_was_imported_first():
    code = "import mxort, mxort.evaluation.comparison, mxort.cli.compare; assert callable(mxort.compare)"
    subprocess.run([sys.executable, "-c", code], check=True)
