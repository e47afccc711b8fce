"""Transformers as torch exports them (dynamo, TorchScript), in single steps, on the provider: all but arithmetic on
shapes is there, nothing comes back but outputs, and results are as near to those in double as torch's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from simulated import run

import exported
import mxort

SHAPE_ARITHMETIC = {
    *("Abs", "Add", "And", "Cast", "Concat", "ConstantOfShape", "Div", "Equal", "Gather", "Greater"),
    *(
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Log",
        "Max",
        "Min",
        "Mul",
        "Neg",
        "Range",
        "Reshape",
        "Shape",
    ),
    *("Slice", "Squeeze", "Sub", "Unsqueeze", "Where"),
}
"""What may be on the CPU, where it works on the shapes of tensors: also numbers of positions, and T5's distances."""

EXACT: dict[str, Any] = {"table_format": "float", "accuracy_level": 1}
"""A recipe with which nothing is rounded at run time but sums (tests/provider/test_whole_models.py)."""

VECTORS = {"llama": 3, "vit": 0, "t5": 10}
"""At most so many results of that arithmetic go to the device: positions that masks are made of."""


def outputs(model: str, feeds: str, target: str) -> dict[str, Any]:
    """In the child: the outputs of a second run, and what it cost."""
    import gpu

    with gpu.registered():
        opened = gpu.session(model)
        inputs = dict(np.load(feeds))
        opened.run(None, inputs)
        before = gpu.sim.counters()
        results = opened.run(None, inputs)
        spent = {k: v - before[k] for k, v in gpu.sim.counters().items()}
        np.savez(target, *results)
        placement = gpu.placement(opened)
        del opened
    return {"spent": spent, "placement": placement, "live": gpu.live()}


def assert_as_good_as_torch(model: exported.Exported, got: list[Any], dtype: torch.dtype) -> None:
    """Against double. torch on the CPU rounds as often, in other places, and its sums have another order: errors of
    the same distribution, whose norms over hundreds of numbers are within a factor of 2 of each other."""
    exact, same = model.run(torch.float64), model.run(dtype)
    assert len(got) == len(exact)
    for y, want, other in zip(got, exact, same, strict=True):
        assert np.linalg.norm(y - want) <= 2 * np.linalg.norm(other - want) + 1e-30


def check(name: str, dtype: torch.dtype, tmp_path: Path, **settings: Any) -> None:
    model = exported.MODELS[name](tmp_path / "model.onnx", dtype=dtype, **settings)
    np.savez(tmp_path / "x.npz", **model.feeds)
    result = run(outputs, str(model.path), str(tmp_path / "x.npz"), str(tmp_path / "y.npz"))
    got = [y.astype(np.float64) for y in np.load(tmp_path / "y.npz").values()]
    assert set(result["placement"].get("CPUExecutionProvider", [])) <= SHAPE_ARITHMETIC
    assert result["spent"]["copies_to_host"] == len(got)
    assert result["spent"]["copies_to_device"] <= len(model.feeds) + VECTORS[name]
    assert result["live"] == {}
    assert_as_good_as_torch(model, got, dtype)


@pytest.mark.parametrize(
    ("name", "dtype", "settings"),
    [
        pytest.param(
            "llama", torch.bfloat16, {"cached": True}, marks=pytest.mark.slow
        ),  # torch exports for long
        ("t5", torch.float32, {"dynamo": False}),
    ],
)
def test_exported(name: str, dtype: torch.dtype, settings: dict[str, Any], tmp_path: Path) -> None:
    check(name, dtype, tmp_path, **settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype", "settings"),
    [
        ("llama", torch.float32, {}),
        ("llama", torch.float16, {}),
        ("llama", torch.bfloat16, {}),
        ("llama", torch.float32, {"cached": True}),
        ("llama", torch.float16, {"cached": True}),
        ("llama", torch.float32, {"cached": True, "dynamo": False}),
        ("llama", torch.float16, {"cached": True, "dynamo": False}),
        ("vit", torch.float32, {}),
        ("vit", torch.float16, {}),
        ("t5", torch.float32, {}),
        ("t5", torch.float16, {}),
        ("t5", torch.bfloat16, {}),
    ],
)
def test_more_exported(name: str, dtype: torch.dtype, settings: dict[str, Any], tmp_path: Path) -> None:
    """No ViT in bfloat16: torch writes Conv of an opset that has not this type."""
    check(name, dtype, tmp_path, **settings)


DECODER = {"Attention": 2, "RotaryEmbedding": 4, "RMSNormalization": 5}


@pytest.mark.parametrize(
    ("name", "settings", "counts"),
    [
        ("llama", {"cached": True, "dynamo": False}, DECODER),
        pytest.param("llama", {"cached": True}, DECODER, marks=pytest.mark.slow),
        pytest.param("vit", {}, {"Attention": 2}, marks=pytest.mark.slow),
        pytest.param(
            *("t5", {"dynamo": False}, {"RMSNormalization": 12, "Attention": 6}),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_fused(name: str, settings: dict[str, Any], counts: dict[str, int], tmp_path: Path) -> None:
    """The converted file, fused and not: the fused one launches less and computes the same."""
    model = exported.MODELS[name](tmp_path / "model.onnx", **settings)
    np.savez(tmp_path / "x.npz", **model.feeds)
    results, got = {}, {}
    for fuse in (False, True):
        path = tmp_path / f"fused_{fuse}.onnx"
        report = mxort.convert(model.path, path, fuse=fuse, **EXACT)
        if fuse:
            assert counts.items() <= {k: v["fused"] for k, v in report.fused.items()}.items()
        results[fuse] = run(outputs, str(path), str(tmp_path / "x.npz"), str(tmp_path / f"y{fuse}.npz"))
        got[fuse] = list(np.load(tmp_path / f"y{fuse}.npz").values())
        assert set(results[fuse]["placement"].get("CPUExecutionProvider", [])) <= SHAPE_ARITHMETIC
        assert results[fuse]["live"] == {}
    assert results[True]["spent"]["launches"] < 0.85 * results[False]["spent"]["launches"]
    session = ort.InferenceSession(tmp_path / "fused_True.onnx", providers=["CPUExecutionProvider"])
    for unfused, fused, cpu in zip(got[False], got[True], session.run(None, model.feeds), strict=True):
        # Float sums in other orders, as tests/support/generated.py has it for models of this size.
        assert np.linalg.norm(fused - unfused) <= 4e-5 * np.linalg.norm(unfused) + 1e-30
        assert np.linalg.norm(fused - cpu) <= 4e-5 * np.linalg.norm(cpu) + 1e-30


def replayed(model: str, feeds: str, target: str) -> dict[str, Any]:
    """In the child: with inputs and outputs on the device, graph launches and copies of a run after the recording."""
    import gpu
    import onnxruntime as ort

    with gpu.registered():
        opened = gpu.session(model, options={"graph_capture": 1})
        (x,) = np.load(feeds).values()
        given = ort.OrtValue.ortvalue_from_numpy(np.zeros_like(x), "gpu", 0, gpu.VENDOR)
        output = opened.get_outputs()[0]
        shape = [d if isinstance(d, int) else len(x) for d in output.shape]
        taken = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, x.dtype), "gpu", 0, gpu.VENDOR)
        binding = opened.io_binding()
        binding.bind_ortvalue_input(opened.get_inputs()[0].name, given)
        binding.bind_ortvalue_output(output.name, taken)
        for _ in range(3):
            opened.run_with_iobinding(binding)
        given.update_inplace(x)  # recorded on zeros, replayed on this
        before, calls = gpu.sim.counters(), gpu.sim.calls()
        opened.run_with_iobinding(binding)
        spent = {k: v - before[k] for k, v in gpu.sim.counters().items() if k.startswith("copies")}
        graphs = gpu.sim.calls()["hipGraphLaunch"] - calls["hipGraphLaunch"]
        np.savez(target, taken.numpy())
        del binding, opened, output, given, taken
    return {"spent": spent, "graphs": graphs, "live": gpu.live()}


def test_a_captured_encoder_is_one_launch(tmp_path: Path) -> None:
    model = exported.vit(tmp_path / "vit.onnx", dtype=torch.float16, fixed=True)
    np.savez(tmp_path / "x.npz", **model.feeds)
    result = run(replayed, str(model.path), str(tmp_path / "x.npz"), str(tmp_path / "y.npz"))
    assert result["graphs"] == 1
    assert result["spent"] == dict.fromkeys(result["spent"], 0)
    assert result["live"] == {}
    got = [y.astype(np.float64) for y in np.load(tmp_path / "y.npz").values()]
    assert_as_good_as_torch(model, got, torch.float16)
