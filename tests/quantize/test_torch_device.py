"""Calibration where torch has a GPU: simulated (torch_gpu.py), for nothing here shows what a real one computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mxort
import torch_gpu
from gated import feeds, gated
from mxort.calibration.sensitivity import Options, Probe
from mxort.cli import app as cli
from mxort.conversion.recipe import Recipe
from mxort.conversion.weights import Calibration
from mxort.errors import MxortError
from mxort.quantize import moments
from mxort.runtime import hardware


@pytest.mark.parametrize(
    "recipe",
    [
        {"algorithm": "mr-gptq"},
        {"algorithm": "mr-gptq", "activation_format": "mxfp4", "sequential": False},
        {"algorithm": "gptq", "effort": 2, "weight_format": "mxfp6_e2m3", "activation_format": "mxfp8_e4m3"},
        {"algorithm": "smooth-gptq"},
    ],
    ids=lambda recipe: " ".join(map(str, recipe.values())),
)
def test_conversion(tmp_path, monkeypatch, recipe):
    """Everything is where it must be, or the operation fails; and the result is the CPU's."""
    model = gated(tmp_path / "model.onnx")
    mxort.convert(model, tmp_path / "cpu.onnx", calibration=Calibration(feeds(), device="cpu"), **recipe)
    with torch_gpu.simulated(monkeypatch) as gpu:
        mxort.convert(model, tmp_path / "auto.onnx", calibration=feeds(), **recipe)
        assert gpu.operations > 1000
        count = gpu.operations
        mxort.convert(model, tmp_path / "cpu2.onnx", calibration=Calibration(feeds(), device="cpu"), **recipe)
        assert gpu.operations == count
    assert (tmp_path / "auto.onnx").read_bytes() == (tmp_path / "cpu.onnx").read_bytes()


def test_sensitivity(tmp_path, monkeypatch):
    model = gated(tmp_path / "model.onnx")
    on_cpu = Probe(model, feeds(), Recipe(), Options(device="cpu")).sensitivity()
    with torch_gpu.simulated(monkeypatch) as gpu:
        assert Probe(model, feeds(), Recipe(), Options(device="gpu:0")).sensitivity() == on_cpu
        assert gpu.operations > 10


def test_what_is_forgotten_fails(monkeypatch):
    """The simulated GPU tells devices apart as torch does."""
    there = np.ones((2, 2), np.float32)
    with torch_gpu.simulated(monkeypatch), moments.computing(0, hardware.torch_device("gpu")):
        x = torch.as_tensor(there)
        assert torch_gpu.on_gpu(x) and torch_gpu.on_gpu(x.T) and torch_gpu.on_gpu(torch.zeros(2) + 1)
        with pytest.raises(RuntimeError, match="same device"):
            x @ torch.from_numpy(there)
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
        assert (x.numpy(force=True) == there).all()
    with torch_gpu.simulated(monkeypatch), moments.computing(0, hardware.torch_device("cpu")):
        assert not torch_gpu.on_gpu(torch.as_tensor(there))


@pytest.mark.parametrize("name", ["", "cuda", "gpu:", "gpu:x", "gpu:-1", "cpu:0"])
def test_other_names(name):
    with pytest.raises(MxortError, match="expected auto, cpu, gpu or gpu:N"):
        hardware.torch_device(name)


def test_a_gpu_that_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert hardware.torch_device("auto").type == "cpu"
    model, data = gated(tmp_path / "model.onnx"), tmp_path / "data.npz"
    np.savez(data, **feeds(1)[0])
    line = [
        "convert",
        str(model),
        "-o",
        str(tmp_path / "out.onnx"),
        "--calibration",
        str(data),
        "--device",
        "gpu",
    ]
    assert cli.main(line) == 2
    assert capsys.readouterr().err == "mxort: error: device 'gpu': torch has 0 GPUs\n"
    assert not (tmp_path / "out.onnx").exists()
