"""mxort.torch beside the way through a file, and its linear beside plain numpy."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

import mxort
import mxort.torch
from mxort.torch import MXFP4Linear


class Tiny(torch.nn.Module):
    """A language model without attention; its output projection is its embedding's table."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embed = torch.nn.Embedding(200, 96)
        self.up = torch.nn.Linear(96, 130)
        self.down = torch.nn.Linear(130, 96, bias=False)
        self.lm_head = torch.nn.Linear(96, 200, bias=False)
        if tied:
            self.lm_head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        return self.lm_head(x + self.down(torch.nn.functional.gelu(self.up(x))))


TOKENS = torch.arange(12).reshape(2, 6) * 13 % 200
NAMES: dict[str, Any] = {
    "dynamic_shapes": ({0: "batch", 1: "length"},),
    "input_names": ["input_ids"],
    "output_names": ["logits"],
}


def run(path: Path, x: np.ndarray, library: bool = True) -> np.ndarray:
    make = mxort.InferenceSession if library else ort.InferenceSession
    session = make(path)
    return session.run(None, {session.get_inputs()[0].name: x})[0]


@pytest.mark.parametrize("calibrated", [False, True])
def test_export_is_the_float_export_converted(calibrated: bool, tmp_path: Path) -> None:
    model = Tiny().eval()
    before = copy.deepcopy(model.state_dict())
    rng = np.random.default_rng(1)
    data = [{"input_ids": rng.integers(0, 200, (2, 40))} for _ in range(4)] if calibrated else None
    report = mxort.torch.export(model, (TOKENS,), tmp_path / "direct.onnx", calibration=data, **NAMES)
    assert report is not None
    assert sorted(site.weight_format for site in report.converted) == ["mxfp4", "mxfp4", "mxint8", "mxint8"]
    torch.onnx.export(model, (TOKENS,), tmp_path / "float.onnx", dynamo=True, verbose=False, **NAMES)
    mxort.convert(tmp_path / "float.onnx", tmp_path / "converted.onnx", calibration=data)
    arrays = [
        {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / name).graph.initializer}
        for name in ("direct.onnx", "converted.onnx")
    ]
    assert arrays[0].keys() == arrays[1].keys()
    for name, array in arrays[0].items():
        np.testing.assert_array_equal(array, arrays[1][name], name)
    for x in (TOKENS.numpy(), TOKENS.numpy()[:1, :3]):
        direct, converted = (run(tmp_path / name, x) for name in ("direct.onnx", "converted.onnx"))
        np.testing.assert_array_equal(direct, converted)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def values(linear: MXFP4Linear) -> np.ndarray:
    """float64 [N, K] of its codes and scales, by a table."""
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
    codes, scales = linear.codes.numpy(), linear.scales.numpy().astype(np.float64)
    elements = np.stack([table[codes & 15], table[codes >> 4]], axis=-1).reshape(len(codes), -1)
    weight = elements * np.repeat(2.0 ** (scales - 127), 32, axis=1) * linear.column_scale.numpy()[:, None]
    return weight[:, : linear.K]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("k", [96, 130])
def test_the_linear_computes_its_codes(k: int, dtype: torch.dtype) -> None:
    torch.manual_seed(5)
    linear = torch.nn.Linear(k, 80)
    made = MXFP4Linear(linear, mxort.Recipe(accuracy_level=1))
    x = torch.randn(3, 4, k).to(dtype)
    y = made(x)
    assert (y.shape, y.dtype) == ((3, 4, 80), dtype)
    expected = x.double().numpy() @ values(made).T + linear.bias.detach().double().numpy()
    # Of float sums of k terms; of float16 and bfloat16 half a unit of their last place of the largest results.
    bound = {torch.float32: 1e-6, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}[dtype]
    assert np.linalg.norm(y.double().numpy() - expected) < bound * np.linalg.norm(expected)
    # Four bits: about 19 dB of the weight are kept (docs/accuracy.md), so the error is some 11 %.
    exact = linear(x.float()).detach().numpy()
    assert np.linalg.norm(y.float().numpy() - exact) < 0.2 * np.linalg.norm(exact)


@pytest.mark.parametrize("preset", ["weight-only", "w4a8", "w4a4", "mi355x"])
def test_swapped_and_exported_is_what_torch_computed(preset: str, tmp_path: Path) -> None:
    model = Tiny().eval()
    assert mxort.torch.swap(model, preset) == ["up", "down"]  # the head is tied
    here = model(TOKENS).detach().numpy()
    assert mxort.torch.export(model, (TOKENS,), tmp_path / "model.onnx", **NAMES) is None
    proto = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(proto)
    nodes = [node for node in proto.graph.node if node.domain == "mxort"]
    assert [node.op_type for node in nodes] == ["MatMulMXFP4"] * 2
    settings = {a.name: onnx.helper.get_attribute_value(a) for a in nodes[0].attribute}
    assert (settings["K"], settings["N"]) == (96, 130)
    assert settings["activation_format"].decode() == mxort.PRESETS[preset].activation_format
    assert {t.name for t in proto.graph.initializer} >= {"up.codes", "up.scales", "down.codes"}
    assert not {"up.weight", "down.weight"} & {t.name for t in proto.graph.initializer}
    got = run(tmp_path / "model.onnx", TOKENS.numpy())
    np.testing.assert_allclose(got, here, atol=2e-5 * np.abs(here).max())
    if preset == "weight-only":  # the function rounds no activations: level 4 does, to 8 bits
        plain = run(tmp_path / "model.onnx", TOKENS.numpy(), library=False)
        assert np.linalg.norm(plain - here) < 1e-2 * np.linalg.norm(here)


def test_what_is_swapped_is_the_recipes_choice() -> None:
    assert mxort.torch.swap(Tiny(tied=False)) == ["up", "down", "lm_head"]
    assert mxort.torch.swap(Tiny(tied=False), exclude=("lm_*",)) == ["up", "down"]
    assert mxort.torch.swap(Tiny(tied=False), include=("down",)) == ["down"]
    assert mxort.torch.swap(Tiny(tied=False), min_elements=13_000) == ["lm_head"]
    with pytest.raises(mxort.MxortError, match="weight_format: got mxfp6_e2m3, expected mxfp4"):
        mxort.torch.swap(Tiny(), weight_format="mxfp6_e2m3")
    with pytest.raises(mxort.MxortError, match="algorithm gptq: needs calibration data"):
        mxort.torch.swap(Tiny(), "portable")


def test_a_state_and_a_copy() -> None:
    torch.manual_seed(1)
    first, second = (MXFP4Linear(torch.nn.Linear(64, 32)) for _ in range(2))
    x = torch.randn(2, 64)
    a, b = first(x), second(x)
    assert not torch.equal(a, b)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(x), a)
    assert torch.equal(copy.deepcopy(first)(x), a)
    assert "in_features=64, out_features=32" in repr(first)


class Branching(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def test_what_torch_cannot_export_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(mxort.MxortError, match=r"Branching: torch\.onnx cannot export it: ") as caught:
        mxort.torch.export(Branching().eval(), (torch.ones(2),), tmp_path / "out.onnx")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.onnx").exists()
