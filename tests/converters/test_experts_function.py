"""The function of MoEMXFP4 in onnxruntime and onnx.reference, against double precision."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.checker
import onnx.reference
import onnxruntime
import pytest
from onnx import TensorProto

import moe_model
import moe_oracle
import op_model
from moe_oracle import Experts, random_experts

ROOT = Path(__file__).parents[2]
OTHER_RELEASES = sorted((ROOT / "build" / "ort").glob("[0-9]*[0-9]"))  # the Makefile installs them
OPSETS = [15, 18, 19, 21, 24, 26]  # 26 is the newest of onnxruntime 1.31
GPT_OSS = {"k": 4, "swiglu_fusion": 1, "activation_alpha": 1.702, "activation_beta": 1.0, "swiglu_limit": 0.5}
"""A limit that values of about 1 reach; the model's is 7."""


def rows(
    experts: Experts, count: int, dtype: Any = np.float32, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    made = rng.standard_normal((count, experts.down[0].N)), rng.standard_normal((count, len(experts.down)))
    return made[0].astype(dtype), made[1].astype(dtype)


def run(proto: onnx.ModelProto, x: np.ndarray, logits: np.ndarray) -> list[np.ndarray]:
    """Y of the function by onnxruntime and by onnx.reference."""
    feeds = {"X": x, "router": logits}
    reference = onnx.reference.ReferenceEvaluator(proto)
    return [op_model.session(proto, library=False).run(None, feeds)[0], reference.run(None, feeds)[0]]


def check(experts: Experts, x: np.ndarray, logits: np.ndarray, **options: Any) -> None:
    for y in run(moe_model.model(experts, **options), x, logits):
        assert y.shape == x.shape and y.dtype == x.dtype
        moe_oracle.assert_close(experts, x.reshape(-1, x.shape[-1]), logits.reshape(-1, logits.shape[-1]), y)


def made(seed: int = 0, **attributes: Any) -> Experts:
    return random_experts(np.random.default_rng(seed), accuracy_level=1, **attributes)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("swiglu_fusion", [0, 1, 2])
@pytest.mark.parametrize("activation", range(5))
def test_activations(activation: int, swiglu_fusion: int, opset: int) -> None:
    experts = made(activation=activation, swiglu_fusion=swiglu_fusion)
    proto = moe_model.model(experts, opset=opset)
    onnx.checker.check_model(proto, full_check=True)
    check(experts, *rows(experts, 7), opset=opset)


@pytest.mark.parametrize("swiglu_fusion", [1, 2])
def test_what_gpt_oss_computes(swiglu_fusion: int) -> None:
    experts = made(**(GPT_OSS | {"swiglu_fusion": swiglu_fusion}))
    x, logits = rows(experts, 33)
    check(experts, x, logits)
    other = made(**(GPT_OSS | {"swiglu_fusion": swiglu_fusion, "swiglu_limit": 0.0}))
    assert (
        np.abs(moe_oracle.evaluate(experts, x, logits)[0] - moe_oracle.evaluate(other, x, logits)[0]).max()
        > 0.01
    )


def test_the_limit_and_beta_are_of_gated_experts_alone() -> None:
    check((experts := made(swiglu_fusion=0, swiglu_limit=0.1, activation_beta=1.0)), *rows(experts, 5))


@pytest.mark.parametrize("opset", [18, 21])
@pytest.mark.parametrize("rotation", [32, 64, 128])
def test_rotations(rotation: int, opset: int) -> None:
    experts = made(d=128, hidden=256, rotation=rotation)
    check(experts, *rows(experts, 6), opset=opset)


@pytest.mark.parametrize("normalize_routing_weights", [0, 1])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_chosen_experts(k: int, normalize_routing_weights: int) -> None:
    """Up to all of them, normalised or not."""
    experts = made(k=k, normalize_routing_weights=normalize_routing_weights)
    check(experts, *rows(experts, 9))


def test_ties_go_to_the_lower_index() -> None:
    experts = made(experts=7, k=3)
    x, logits = rows(experts, 64)
    logits = np.round(logits)
    assert sum(len(set(row)) < 5 for row in logits) > 32
    logits[0] = 0
    assert [e for e, _ in moe_oracle.chosen(experts, logits[0])] == [0, 1, 2]
    check(experts, x, logits)


def test_an_expert_without_rows_and_one_with_all() -> None:
    experts = made()
    x, logits = rows(experts, 8)
    logits[:, 1], logits[:, 3] = -9, 9
    check(experts, x, logits)


@pytest.mark.parametrize("what", ["router", "X"])
def test_nan_stays_in_its_row(what: str) -> None:
    experts = made()
    x, logits = rows(experts, 4)
    (x if what == "X" else logits)[2, 1] = np.nan
    for y in run(moe_model.model(experts), x, logits):
        assert np.isnan(y[2]).all() and np.isfinite(y[[0, 1, 3]]).all()
    check(experts, x, logits)


def test_a_scale_of_nan_is_of_the_rows_that_choose_its_expert() -> None:
    experts = made()
    experts.gate_up[1].scales[3, 0] = 255
    experts.down[4].scales[5, 0] = 255
    x, logits = rows(experts, 16)
    for y in run(moe_model.model(experts), x, logits):
        assert 0 < np.isnan(y[:, 0]).sum() < 16 and not np.isnan(y[:, 5]).all()
    check(experts, x, logits)


@pytest.mark.parametrize("opset", [18, 21])
@pytest.mark.parametrize("dims", [(), ("a",), ("a", "b"), ("a", "b", "c")])
def test_leading_dimensions(dims: tuple[str, ...], opset: int) -> None:
    experts = made()
    shape = (2, 1, 3)[: len(dims)]
    x, logits = (a.reshape(*shape, -1) for a in rows(experts, int(np.prod(shape))))
    check(experts, x, logits, dims=dims, opset=opset)


def test_logits_of_rows() -> None:
    experts = made()
    x, logits = rows(experts, 6)
    check(experts, x.reshape(2, 3, -1), logits, dims=("a", "b"), flat_router=True)


@pytest.mark.parametrize("opset", [18, 21])
def test_no_rows(opset: int) -> None:
    """Of onnxruntime alone: the Flatten of onnx.reference takes none."""
    experts = made(rotation=32)
    proto = moe_model.model(experts, dims=("a", "b"), opset=opset)
    x, logits = rows(experts, 0)
    (y,) = op_model.session(proto, library=False).run(None, {"X": x[None], "router": logits[None]})
    assert y.shape == (1, 0, 64)


@pytest.mark.parametrize("vectors", [np.float32, np.float16])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_half_types(dtype: Any, vectors: Any) -> None:
    """Vectors of the operator may be of the model's type too, and are widened."""
    experts = made(**GPT_OSS)
    for case in (*experts.gate_up, *experts.down):
        case.column_scale, case.bias = case.column_scale.astype(vectors), case.bias.astype(vectors)
    x, logits = rows(experts, 9, dtype)
    half = dtype == np.float16
    proto = moe_model.model(experts, elem_type=TensorProto.FLOAT16 if half else TensorProto.BFLOAT16)
    feeds = (
        {"X": x, "router": logits}
        if half
        else {"X": x.astype(np.float32), "router": logits.astype(np.float32)}
    )
    (y,) = op_model.session(proto, library=False).run(None, feeds)
    moe_oracle.assert_close(experts, x, logits, y.astype(dtype))


SCRIPT = """
import sys, numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.log_severity_level = 3
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
with np.load(sys.argv[2]) as feeds:
    np.save(sys.argv[3], session.run(None, dict(feeds))[0])
print(ort.__version__)
"""


@pytest.mark.parametrize("release", OTHER_RELEASES, ids=lambda p: p.name)
@pytest.mark.parametrize("opset", [15, 21])
def test_other_releases(release: Path, opset: int, tmp_path: Path) -> None:
    experts = made(**GPT_OSS, rotation=32)
    x, logits = rows(experts, 9)
    onnx.save(moe_model.model(experts, opset=opset), tmp_path / "model.onnx")
    np.savez(tmp_path / "feeds.npz", X=x, router=logits)
    environment = dict(os.environ, PYTHONPATH=str(release))
    files = [str(tmp_path / name) for name in ("model.onnx", "feeds.npz", "y.npy")]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *files], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == release.name != onnxruntime.__version__
    moe_oracle.assert_close(experts, x, logits, np.load(tmp_path / "y.npy"))


def test_weights_are_not_folded_to_floats(tmp_path: Path) -> None:
    """A byte for a weight at most once the model is loaded, in the opsets whose DequantizeLinear serves."""
    experts = made(d=256, hidden=256)
    optimized = tmp_path / "optimized.onnx"
    op_model.session(moe_model.model(experts), library=False, optimized=str(optimized))
    weights = sum(case.codes.size * 2 for case in (*experts.gate_up, *experts.down))
    assert optimized.stat().st_size < 1.5 * weights
