"""What a machine of a cluster does with a task, in this process; with Ray: tests/pipelines/test_ray.py."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import mxort
from mxort.conversion import remote
from mxort.conversion.recipe import Recipe
from mxort.version import mxort_version
from tiny_models import mlp

RECIPE = Recipe.from_preset("weight-only", min_elements=0)
FC1, FC2 = ("h0", 64, 128, "mxfp4"), ("y", 128, 96, "mxfp4")


@pytest.fixture
def model(tmp_path):
    remote._opened.cache_clear()
    return mlp(tmp_path / "model.onnx", external=True)


def task(model, index, what, version=None):
    return remote._quantise(str(model), RECIPE.to_json(), index, what, "rtn", version or mxort_version())


def test_a_task_makes_the_weight_of_its_place(model):
    """Weights that MXFP4 holds exactly come back as they were."""
    for index, what in enumerate((FC1, FC2)):
        weight, sqnr = task(model, index, what)
        assert (weight.codes.shape, weight.scales.shape) == (
            (what[2], what[1] // 2),
            (what[2], what[1] // 32),
        )
        assert 10 < sqnr < 30


@pytest.mark.parametrize(
    ("index", "what"), [(0, FC2), (1, FC1), (2, FC1), (0, ("h0", 64, 128, "mxfp8_e4m3"))]
)
def test_another_model_at_the_path(model, index, what):
    with pytest.raises(mxort.MxortError, match="another model on a machine of the cluster"):
        task(model, index, what)


def test_another_version(model):
    with pytest.raises(mxort.MxortError, match=r"expected 9\.9"):
        task(model, 0, FC1, "9.9")


def test_what_a_cluster_is_not_for(model, tmp_path):
    import onnx

    out = tmp_path / "out.onnx"
    with pytest.raises(mxort.MxortError, match="a cluster needs a model file"):
        mxort.convert(onnx.load(model), out, cluster="local")
    with pytest.raises(mxort.MxortError, match="expected no calibration"):
        mxort.convert(model, out, calibration=[{"x": np.ones((1, 64), np.float32)}], cluster="local")
    assert not out.exists()


def test_without_ray(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        mxort.MxortError, match=r'^a cluster needs mxort\[ray\] .*pip install "mxort\[ray\]"$'
    ):
        mxort.convert(model, tmp_path / "out.onnx", cluster="local")
    assert [file.name for file in tmp_path.iterdir() if "out" in file.name] == []
