"""MoEMXFP4's kernels against double precision, and against the operator's function."""

from __future__ import annotations

from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.helper
import pytest
from onnx import TensorProto

import moe_model
import moe_oracle
import op_model
import oracle
from moe_oracle import Experts, random_experts
from mxort import _native
from oracle import BFLOAT16_KERNELS, FORMATS_AND_LEVELS

KERNELS = [k["name"] for k in _native.describe()["kernels"] if k["available"]]

PROMISED = {3: 3e-3, 4: 1e-2}
"""The operator's bound of a product's error by level: what the kernel of AMX keeps."""

PRODUCTS = 3
"""Gate, up and down: their errors do not know of each other, and no activation doubles the error of its argument where
that counts, so this is generous. Bounds of single elements tell little at level 4: they are sums of worst cases."""

GPT_OSS = {"k": 4, "swiglu_fusion": 1, "activation_alpha": 1.702, "activation_beta": 1.0, "swiglu_limit": 0.5}


@pytest.fixture(autouse=True)
def _no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Level 3 as its other kernels compute it, which is tighter than AMX does; that has its turn in test_kernels."""
    monkeypatch.setenv("MXORT_KERNEL", next(k for k in KERNELS if k not in BFLOAT16_KERNELS))


def made(seed: int = 0, **attributes: Any) -> Experts:
    return random_experts(np.random.default_rng(seed), **({"accuracy_level": 3} | attributes))


def rows(
    experts: Experts, count: int, dtype: Any = np.float32, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((count, experts.down[0].N)), rng.standard_normal((count, len(experts.down)))
    return values[0].astype(dtype), values[1].astype(dtype)


def run(experts: Experts, x: np.ndarray, logits: np.ndarray, threads: int = 2, **options: Any) -> np.ndarray:
    session = op_model.session(moe_model.model(experts, **options), threads=threads)
    (y,) = session.run(None, {"X": x, "router": logits})
    return np.asarray(y)


def check(experts: Experts, x: np.ndarray, logits: np.ndarray, **options: Any) -> None:
    y = run(experts, x, logits, **options)
    assert y.shape == x.shape and y.dtype == x.dtype
    exact, bound = moe_oracle.evaluate(experts, x, logits)
    assert_right(experts, exact, bound, y)


def assert_right(experts: Experts, exact: np.ndarray, bound: np.ndarray, y: np.ndarray) -> None:
    """Every element within its bound and, of several rows, the whole within what the level allows."""
    moe_oracle.assert_within(exact, bound, y)
    first = experts.gate_up[0]
    if first.activation_format == "none" and len(y) > 2:
        # Each product errs by what the level allows; the activation and the two factors of a gate pass that on.
        assert oracle.relative_rms(y, exact) <= PRODUCTS * oracle.RELATIVE_RMS[first.accuracy_level]


@cache
def problem(
    count: int, accuracy_level: int
) -> tuple[Experts, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(experts, X, logits, what evaluate gives), once for all kernels."""
    experts = made(experts=6, d=96, hidden=160, accuracy_level=accuracy_level, **GPT_OSS)
    x, logits = rows(experts, count)
    return experts, x, logits, *moe_oracle.evaluate(experts, x, logits)


@pytest.mark.parametrize("swiglu_fusion", [0, 1, 2])
@pytest.mark.parametrize("activation", range(5))
def test_activations(activation: int, swiglu_fusion: int) -> None:
    experts = made(activation=activation, swiglu_fusion=swiglu_fusion)
    check(experts, *rows(experts, 37))


@pytest.mark.parametrize("accuracy_level", [3, 4])
@pytest.mark.parametrize("count", [1, 2, 13, 100])
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels(monkeypatch: pytest.MonkeyPatch, kernel: str, count: int, accuracy_level: int) -> None:
    monkeypatch.setenv("MXORT_KERNEL", kernel)
    experts, x, logits, exact, bound = problem(count, accuracy_level)
    y = run(experts, x, logits)
    if kernel in BFLOAT16_KERNELS:
        assert oracle.relative_rms(y, exact) <= PRODUCTS * PROMISED[accuracy_level]
    else:
        assert_right(experts, exact, bound, y)


@pytest.mark.parametrize("swiglu_fusion", [1, 2])
def test_what_gpt_oss_computes(swiglu_fusion: int) -> None:
    experts = made(**(GPT_OSS | {"swiglu_fusion": swiglu_fusion}))
    x, logits = rows(experts, 33)
    y = run(experts, x, logits)
    moe_oracle.assert_close(experts, x, logits, y)
    without = run(made(**(GPT_OSS | {"swiglu_fusion": swiglu_fusion, "swiglu_limit": 0.0})), x, logits)
    assert np.abs(y - without).max() > 0.01


def test_the_shape_of_gates_is_of_gated_experts_alone() -> None:
    experts = made(swiglu_fusion=0, swiglu_limit=0.1, activation_beta=1.0, activation_alpha=1.702)
    check(experts, *rows(experts, 5))


def test_an_expert_that_was_not_chosen_does_not_count() -> None:
    """NaN and infinity of its weights reach the rows alone that chose it."""
    experts = made(experts=4, k=2)
    experts.down[1].scales[:, 0] = 0xFF
    x, logits = rows(experts, 24)
    y = run(experts, x, logits)
    chose = np.argsort(-logits, axis=-1)[:, :2]
    hit = (chose == 1).any(axis=-1)
    assert 0 < hit.sum() < 24 and np.isnan(y[hit]).all()
    moe_oracle.assert_close(experts, x[~hit], logits[~hit], y[~hit])


@pytest.mark.parametrize("rotation", [1, 32, 64])
@pytest.mark.parametrize(("activation_format", "accuracy_level"), FORMATS_AND_LEVELS)
def test_formats_levels_and_rotations(activation_format: str, accuracy_level: int, rotation: int) -> None:
    experts = made(
        d=128,
        hidden=64,
        rotation=rotation,
        activation_format=activation_format,
        accuracy_level=accuracy_level,
    )
    check(experts, *rows(experts, 20))


@pytest.mark.parametrize("vectors", ["float", "own"])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_half_types(dtype: type, vectors: str) -> None:
    experts = made(accuracy_level=3)
    elem_type = TensorProto.FLOAT16 if dtype == np.float16 else TensorProto.BFLOAT16
    if vectors == "own":  # a tool that makes a model float16 casts these too
        for case in (*experts.gate_up, *experts.down):
            case.column_scale = case.column_scale.astype(dtype).astype(np.float32)
            case.bias = case.bias.astype(dtype).astype(np.float32)
    proto = moe_model.model(experts, elem_type=elem_type)
    if vectors == "own":
        for tensor in proto.graph.initializer:
            if tensor.name.endswith(("_column_scale", "_bias")):
                values = np.frombuffer(tensor.raw_data, np.float32).astype(dtype)
                tensor.data_type, tensor.raw_data = elem_type, values.tobytes()
    x, logits = rows(experts, 9, dtype)
    outside = np.float32 if elem_type == TensorProto.BFLOAT16 else dtype
    (y,) = op_model.session(proto).run(None, {"X": x.astype(outside), "router": logits.astype(outside)})
    moe_oracle.assert_close(experts, x, logits, y.astype(dtype))


@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("normalize", [0, 1])
def test_chosen(k: int, normalize: int) -> None:
    experts = made(experts=7, k=k, normalize_routing_weights=normalize)
    check(experts, *rows(experts, 41))


def test_of_equal_logits_the_first_are_chosen() -> None:
    experts = made(experts=9, k=3)
    x, logits = rows(experts, 16)
    ties = np.round(logits)
    ties[0] = 0
    check(experts, x, ties)


def test_all_rows_on_one_expert_and_none_on_others() -> None:
    experts = made(experts=8, k=1)
    x, logits = rows(experts, 50)
    logits[:, 5] = 100
    check(experts, x, logits)


def test_logits_without_an_order() -> None:
    experts = made()
    x, logits = rows(experts, 6)
    logits[1, 2] = np.nan
    logits[3] = -np.inf
    logits[4, 0] = np.inf
    logits[5, 1:] = -np.inf
    y = run(experts, x, logits)
    assert np.isnan(y[[1, 3, 4]]).all()
    finite = logits[[0, 2]]
    moe_oracle.assert_close(experts, x[[0, 2]], finite, y[[0, 2]])
    assert np.isfinite(y[5]).all()


def test_rows_that_no_fast_kernel_takes() -> None:
    """NaN, infinities and numbers beyond the kernels' range, for the first product and, from it, for the second."""
    experts = made(swiglu_fusion=0, activation=moe_oracle.NONE, k=2)
    x, logits = rows(experts, 30)
    x[3, 5], x[4] = np.nan, x[4] * 2.0**101
    x[5] *= np.float32(2.0**-115)
    y = run(experts, x, logits)
    plain = [row for row in range(30) if row not in (3, 4, 5)]
    moe_oracle.assert_close(experts, x[plain], logits[plain], y[plain])
    assert np.isnan(y[3]).all()
    moe_oracle.assert_close(experts, x[[4, 5]], logits[[4, 5]], y[[4, 5]])


@pytest.mark.parametrize("dims", [("rows",), ("batch", "rows"), ("a", "b", "c")])
@pytest.mark.parametrize("flat_router", [False, True])
def test_shapes(dims: tuple[str, ...], flat_router: bool) -> None:
    experts = made()
    x, logits = rows(experts, 12)
    shape = {1: (12,), 2: (3, 4), 3: (2, 3, 2)}[len(dims)]
    y = run(
        experts,
        x.reshape(*shape, -1),
        logits if flat_router else logits.reshape(*shape, -1),
        dims=dims,
        flat_router=flat_router,
    )
    assert y.shape == (*shape, x.shape[-1])
    moe_oracle.assert_close(experts, x, logits, y)


def test_no_rows() -> None:
    experts = made()
    assert run(experts, *rows(experts, 0)).shape == (0, 64)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_give_the_same_bits(threads: int) -> None:
    experts = made(experts=16, d=256, hidden=384, **GPT_OSS)
    x, logits = rows(experts, 65)
    np.testing.assert_array_equal(
        run(experts, x, logits, threads=threads), run(experts, x, logits, threads=1)
    )


def test_blocks_of_rows_give_what_one_row_gives() -> None:
    """More rows than are taken at once: 64 MB hold k (D + 2 I) floats of each."""
    experts = made(experts=4, d=32, hidden=32, k=2)
    together = 64 * 2**20 // (4 * 2 * (32 + 2 * 32))
    x, logits = rows(experts, together + 100)
    y = run(experts, x, logits)
    some = [0, 1, 700, together - 1, together, together + 1, together + 99]
    moe_oracle.assert_close(experts, x[some], logits[some], y[some])


def test_weights_that_are_inputs() -> None:
    experts = made()
    proto = moe_model.model(experts)
    for tensor in proto.graph.initializer:
        info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        proto.graph.input.append(info)
    del proto.graph.initializer[:]
    x, logits = rows(experts, 11)
    (y,) = op_model.session(proto).run(None, {"X": x, "router": logits, **experts.inputs})
    moe_oracle.assert_close(experts, x, logits, y)


BAD = {
    "k": ({"k": 6}, "attribute k: got 6, expected 1 to 5"),
    "no k": ({"k": None}, "attribute k"),
    "k of nothing": ({"k": 0}, "attribute k: got 0"),
    "activation": ({"activation": 5}, "attribute activation: got 5, expected 0 to 4"),
    "no activation": ({"activation": None}, "attribute activation"),
    "swiglu_fusion": ({"swiglu_fusion": 3}, "attribute swiglu_fusion: got 3, expected 0 to 2"),
    "alpha": ({"activation_alpha": 0.0}, "attribute activation_alpha: got 0"),
    "rotation": ({"rotation": 64}, "attribute rotation: got 64"),
    "format": ({"activation_format": "mxfp5"}, "attribute activation_format: got 'mxfp5'"),
    "level": ({"accuracy_level": 2}, "attribute accuracy_level: got 2"),
    "gate_up_B": ({"gate_up_B": np.zeros((5, 64), np.uint8)}, r"input gate_up_B: got shape \[5,64\]"),
    "no experts": ({"gate_up_B": np.zeros((0, 64, 32), np.uint8)}, r"input gate_up_B: got shape \[0,64,32\]"),
    "columns": ({"gate_up_B": np.zeros((5, 60, 32), np.uint8)}, r"input gate_up_B: got shape \[5,60,32\]"),
    "down_B": (
        {"down_B": np.zeros((5, 64, 32), np.uint8)},
        r"input down_B: got shape \[5,64,32\], expected \[5,64,16\]",
    ),
    "scales": ({"down_B_scale": np.zeros((5, 64, 2), np.uint8)}, r"input down_B_scale: got shape \[5,64,2\]"),
    "bias": (
        {"down_bias": np.zeros((4, 64), np.float32)},
        r"input down_bias: got shape \[4,64\], expected \[5,64\]",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_nodes_get_one_line(what: str) -> None:
    overrides, message = BAD[what]
    with pytest.raises(Exception, match=message) as error:
        run(made(), *rows(made(), 3), **overrides)
    assert "MoEMXFP4 'node'" in str(error.value) and str(error.value).count("\n") == 0


def test_bad_rows_get_one_line() -> None:
    experts = made()
    session = op_model.session(moe_model.model(experts, dims=(None,)))
    x, logits = rows(experts, 4)
    with pytest.raises(Exception, match=r"input router: got shape \[3,5\], expected \[4,5\]"):
        session.run(None, {"X": x, "router": logits[:3]})
