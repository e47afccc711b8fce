"""Products with what follows them: against double precision, and against their functions."""

from __future__ import annotations

import os
from math import erf

import ml_dtypes
import numpy as np
import onnx
import onnx.checker
import onnx.reference
import pytest
from onnx import TensorProto

import op_model
import oracle
from mxort import _native
from mxort.converters import functions
from mxort.formats import WEIGHT_FORMATS
from oracle import FORMATS_AND_LEVELS, Case, random_case

ACTIVATIONS = {
    "none": (0, lambda x: x),
    "relu": (functions.RELU, lambda x: np.where(x < 0, 0, x)),
    "gelu": (functions.GELU, lambda x: x * (1 + np.vectorize(erf)(x / np.sqrt(2))) / 2),
    "gelu_tanh": (
        functions.GELU_TANH,
        lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    ),
    "silu": (functions.SILU, lambda x: x / (1 + np.exp(-x))),
}
STEEPEST = 1.13
"""No activation has a larger slope: both GELU reach 1.129, SiLU 1.1."""

EVALUATION = 1e-6
"""What a float evaluation may err by in units of its argument: 1.5e-7 for the error function, 2e-7 for exp, half a
dozen roundings of 6e-8; the argument of the tanh, 4 roundings, counts at most 0.224 of itself."""

KERNELS = [k["name"] for k in _native.describe()["kernels"] if k["available"]]


def kernel_for(case: Case, rows: int) -> str:
    """What runs, which decides how A is rounded."""
    has = [feature for feature, there in _native.describe()["cpu"].items() if there]
    first, level = os.environ.get("MXORT_KERNEL", ""), case.accuracy_level
    return _native.select_kernel(has, first, case.activation_format, level, rows, case.weight_format)


def expected(
    case: Case, factor: Case | None, a: np.ndarray, activation: str
) -> tuple[np.ndarray, np.ndarray]:
    """(Y, a bound of its error before it is rounded to its type) in double."""
    wide = a.astype(np.float32)
    kernel = kernel_for(case, len(a))
    product, bound = oracle.evaluate(case, wide, kernel)
    y = ACTIVATIONS[activation][1](product)
    error = STEEPEST * bound + EVALUATION * np.abs(product)
    if factor is not None:
        other, other_bound = oracle.evaluate(factor, wide, kernel)
        error = error * (np.abs(other) + other_bound) + (np.abs(y) + error) * other_bound
        y = y * other
    return y, error + oracle.FLOAT_EPSILON * np.abs(y)


def assert_close(case: Case, factor: Case | None, a: np.ndarray, got: np.ndarray, activation: str) -> None:
    y, error = expected(case, factor, a, activation)
    name = np.dtype(got.dtype).name
    error = error + oracle.OUTPUT_EPSILON[name] * (np.abs(y) + error) + oracle.SMALLEST_SUBNORMAL[name]
    np.testing.assert_array_less(np.abs(got.astype(np.float64) - y), error)


def cases(
    n: int, k: int, gated: bool, weight_format: str = "mxfp4", **attributes: object
) -> tuple[Case, Case | None]:
    made = [random_case(np.random.default_rng(i), n, k, 1, weight_format, **attributes) for i in range(2)]
    return made[0], made[1] if gated else None


@pytest.mark.parametrize("gated", [False, True], ids=["fused", "gated"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
def test_oracle(weight_format: str, activation: str, gated: bool) -> None:
    case, factor = cases(35, 100, gated, weight_format, accuracy_level=3)
    a = np.random.default_rng(2).standard_normal((3, 7, 100)).astype(np.float32)
    proto = op_model.model(case, activation=ACTIVATIONS[activation][0], factor=factor)
    onnx.checker.check_model(proto, full_check=True)
    (y,) = op_model.session(proto).run(None, {"A": a})
    assert_close(case, factor, a.reshape(-1, 100), y.reshape(-1, 35), activation)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("gated", [False, True], ids=["fused", "gated"])
def test_half_types(dtype: type, gated: bool) -> None:
    case, factor = cases(35, 100, gated, accuracy_level=3)
    a = np.random.default_rng(2).standard_normal((1, 9, 100)).astype(dtype)
    elem_type = TensorProto.FLOAT16 if dtype == np.float16 else TensorProto.BFLOAT16
    proto = op_model.model(case, elem_type=elem_type, activation=functions.SILU, factor=factor)
    feed = a.astype(np.float32) if elem_type == TensorProto.BFLOAT16 else a
    (y,) = op_model.session(proto).run(None, {"A": feed})
    assert_close(case, factor, a[0], y[0].astype(dtype), "silu")


@pytest.mark.parametrize(("activation_format", "level"), FORMATS_AND_LEVELS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels(monkeypatch: pytest.MonkeyPatch, kernel: str, activation_format: str, level: int) -> None:
    """Every kernel, from one row to several panels, with one and two threads: the same bits for both."""
    monkeypatch.setenv("MXORT_KERNEL", kernel)
    case, factor = cases(70, 200, True, activation_format=activation_format, accuracy_level=level)
    proto = op_model.model(case, activation=functions.SILU, factor=factor)
    one, two = op_model.session(proto), op_model.session(proto, threads=2)
    for rows in (1, 13, 33):
        a = np.random.default_rng(rows).standard_normal((1, rows, 200)).astype(np.float32)
        (y,), (again,) = one.run(None, {"A": a}), two.run(None, {"A": a})
        np.testing.assert_array_equal(y, again)
        assert_close(case, factor, a[0], y[0], "silu")


def test_large_products_are_split_into_tasks_that_give_the_same() -> None:
    case, factor = cases(530, 96, True, accuracy_level=4)
    proto = op_model.model(case, activation=functions.GELU, factor=factor)
    a = np.random.default_rng(0).standard_normal((1, 3000, 96)).astype(np.float32)
    (y,) = op_model.session(proto, threads=2).run(None, {"A": a})
    assert_close(case, factor, a[0], y[0], "gelu")


@pytest.mark.parametrize("opset", [15, 18, 21, 22])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True], ids=["fused", "gated"])
def test_library_function_and_reference_agree(opset: int, activation: str, gated: bool) -> None:
    case, factor = cases(24, 100, gated, accuracy_level=1)
    proto = op_model.model(case, opset=opset, activation=ACTIVATIONS[activation][0], factor=factor)
    a = np.random.default_rng(0).standard_normal((3, 4, 100)).astype(np.float32)
    exact, _ = expected(case, factor, a.reshape(-1, 100), activation)
    for y in (
        op_model.session(proto).run(None, {"A": a})[0],
        op_model.session(proto, library=False).run(None, {"A": a})[0],
        onnx.reference.ReferenceEvaluator(proto).run(None, {"A": a})[0],
    ):
        assert (
            oracle.relative_rms(y.reshape(exact.shape), exact) <= 2 * oracle.RELATIVE_RMS[1]
        )  # two products


def test_the_function_takes_float16() -> None:
    case, factor = cases(24, 100, True)
    proto = op_model.model(
        case, elem_type=TensorProto.FLOAT16, activation=functions.SILU, factor=factor, accuracy_level=1
    )
    a = np.random.default_rng(0).standard_normal((1, 8, 100)).astype(np.float16)
    exact, _ = expected(case, factor, a[0], "silu")
    (y,) = op_model.session(proto, library=False).run(None, {"A": a})
    assert oracle.relative_rms(y[0], exact) <= 3 * 2.0**-11  # both products and Y are rounded to float16


def test_rows_that_a_kernel_declines() -> None:
    """NaN stays NaN in its row alone; values too large for a kernel's arithmetic are computed by the reference."""
    case, factor = cases(35, 64, True, accuracy_level=4)
    a = np.random.default_rng(3).standard_normal((1, 4, 64)).astype(np.float32)
    a[0, 1, 5], a[0, 2, 7] = np.nan, 1e33
    proto = op_model.model(case, activation=functions.RELU, factor=factor)
    (y,) = op_model.session(proto).run(None, {"A": a})
    assert np.isnan(y[0, 1]).all() and np.isfinite(y[0, [0, 3]]).all()
    products = [oracle.evaluate(c, a[0, 2:3])[0] for c in (case, factor) if c is not None]
    with np.errstate(over="ignore"):
        want = (np.maximum(products[0], 0) * products[1]).astype(np.float32)[0]
    np.testing.assert_allclose(y[0, 2], want, rtol=1e-5)  # infinite where it is too large for float


def test_weights_that_are_no_constants() -> None:
    case, factor = cases(35, 64, True)
    assert factor is not None
    proto = op_model.model(case, activation=functions.SILU, factor=factor)
    moved = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if "B" in t.name}
    kept = [t for t in proto.graph.initializer if t.name not in moved]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    for name, array in moved.items():
        proto.graph.input.append(
            onnx.helper.make_tensor_value_info(name, TensorProto.UINT8, list(array.shape))
        )
    a = np.random.default_rng(3).standard_normal((1, 4, 64)).astype(np.float32)
    (y,) = op_model.session(proto).run(None, {"A": a, **moved})
    assert_close(case, factor, a[0], y[0], "silu")


@pytest.mark.parametrize("gated", [False, True], ids=["fused", "gated"])
@pytest.mark.parametrize(
    ("activation", "message"),
    [
        (5, "attribute activation: got 5, expected 0 to 4"),
        (-1, "attribute activation: got -1, expected 0 to 4"),
    ],
)
def test_an_activation_that_there_is_not(activation: int, message: str, gated: bool) -> None:
    case, factor = cases(7, 32, gated)
    with pytest.raises(Exception, match=rf"{'Gated' if gated else 'Fused'}MatMulMXFP4 'node': {message}"):
        op_model.session(op_model.model(case, activation=activation, factor=factor))


def test_a_factor_of_another_shape() -> None:
    case, _ = cases(20, 64, False)
    other, _ = cases(19, 64, False)
    with pytest.raises(
        Exception, match=r"GatedMatMulMXFP4 'node': input .*B: got shape \[19,32\], expected \[20,32\]"
    ):
        op_model.session(op_model.model(case, activation=functions.SILU, factor=other))
