"""Products on the provider: MatMul, FusedMatMul, Gemm of every form, and the operators with quantised weights."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from simulated import run

import op_model
import oracle
from mxort.converters import functions

FLOAT_EPSILON = 2.0**-24
TYPES = {"float": (TensorProto.FLOAT, 2.0**-24), "float16": (TensorProto.FLOAT16, 2.0**-11),
         "bfloat16": (TensorProto.BFLOAT16, 2.0**-8)}  # fmt: skip


def evaluate(folder: str, count: int) -> dict[str, Any]:
    """In the child: models 0.onnx ... with 0.npz ... of inputs; what ran where. Outputs go to 0.npy ..."""
    import gpu
    import numpy as np

    placements, errors = [], []
    with gpu.registered():
        for i in range(count):
            opened = gpu.session(f"{folder}/{i}.onnx")
            placements.append(gpu.placement(opened))
            feeds = dict(np.load(f"{folder}/{i}.npz"))
            try:
                np.save(f"{folder}/{i}.npy", opened.run(None, feeds)[0])
                errors.append("")
            except Exception as error:
                errors.append(gpu.message(error))
            del opened
    return {"placements": placements, "errors": errors, "live": gpu.live()}


class Cases:
    """Models of one node that are run in one process."""

    def __init__(self, folder: Path):
        self.folder, self.count = folder, 0

    def add(self, proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> int:
        onnx.save(proto, self.folder / f"{self.count}.onnx")
        np.savez(self.folder / f"{self.count}.npz", **feeds)
        self.count += 1
        return self.count - 1

    def run(self, **variables: str) -> list[np.ndarray]:
        result = run(evaluate, str(self.folder), self.count, **variables)
        assert not any(result["errors"]), result["errors"]
        assert all(list(p) == ["MxortExecutionProvider"] for p in result["placements"]), result["placements"]
        assert result["live"] == {}
        return [np.load(self.folder / f"{i}.npy") for i in range(self.count)]


def product_model(
    operator: str, inputs: dict[str, np.ndarray], kind: str, domain: str = "", **attributes: Any
) -> onnx.ModelProto:
    """All inputs are the graph's, float outside; inside they are cast to the type."""
    elem, _ = TYPES[kind]
    nodes = [helper.make_node("Cast", [name], [f"{name}_in"], to=elem) for name in inputs]
    nodes.append(helper.make_node(operator, [f"{n}_in" for n in inputs], ["y"], domain=domain, **attributes))
    nodes.append(helper.make_node("Cast", ["y"], ["Y"], to=TensorProto.FLOAT))
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * x.ndim) for n, x in inputs.items()],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
    )
    opsets = [helper.make_opsetid("", 22), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def rounded(x: np.ndarray, kind: str) -> np.ndarray:
    """To the type's numbers, as float."""
    if kind == "bfloat16":
        bits = x.astype(np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    return x.astype(np.float16 if kind == "float16" else np.float32).astype(np.float32)


def check(y: np.ndarray, a: np.ndarray, b: np.ndarray, kind: str, alpha: float = 1, bias: Any = 0) -> None:
    """One rounding of a sum in float for each of K products, of the bias and the factors; then one to the type."""
    a, b, bias = (np.asarray(x, np.float64) for x in (a, b, bias))
    expected = alpha * np.matmul(a, b) + bias
    magnitude = abs(alpha) * np.matmul(np.abs(a), np.abs(b)) + np.abs(bias)
    assert y.shape == expected.shape
    allowed = (
        (a.shape[-1] + 12) * FLOAT_EPSILON * magnitude + 1.01 * TYPES[kind][1] * np.abs(expected) + 2.0**-25
    )
    assert (np.abs(y - expected) <= allowed).all()


SHAPES = [
    ((5, 40), (40, 24)),
    ((40,), (40, 9)),
    ((7, 40), (40,)),
    ((40,), (40,)),
    ((2, 3, 5, 16), (2, 3, 16, 6)),
    ((2, 1, 3, 8), (4, 8, 4)),
    ((3, 20, 33), (33, 17)),
    ((1, 2048), (2048, 72)),  # K is split
    ((66, 30), (30, 70)),
    ((2, 0, 8), (8, 4)),
    ((3, 0), (0, 4)),
]


@pytest.mark.parametrize("arch", ["gfx950", "gfx942"])
def test_matmul_of_every_rank(tmp_path: Path, arch: str) -> None:
    rng, cases, checks = np.random.default_rng(0), Cases(tmp_path), []
    for kind in TYPES if arch == "gfx950" else ["float16"]:
        for shapes in SHAPES:
            a, b = (rounded(rng.standard_normal(s), kind) for s in shapes)
            cases.add(product_model("MatMul", {"A": a, "B": b}, kind), {"A": a, "B": b})
            checks.append((a, b, kind))
    for y, (a, b, kind) in zip(cases.run(HIPSIM_DEVICES=arch), checks, strict=True):
        check(y, a, b, kind)


def test_fused_matmul_transposes_batches_and_matrices(tmp_path: Path) -> None:
    rng, cases, checks = np.random.default_rng(1), Cases(tmp_path), []
    for transposed in itertools.product((0, 1), repeat=4):
        flags = dict(zip(("transA", "transB", "transBatchA", "transBatchB"), transposed, strict=True))
        stored = []
        for rows, columns, swap, batch in (
            (5, 12, transposed[0], transposed[2]),
            (12, 7, transposed[1], transposed[3]),
        ):
            x = rng.standard_normal((2, 3, rows, columns)).astype(np.float32)
            if swap:
                x = x.swapaxes(-1, -2)
            stored.append(np.moveaxis(x, -2, 0) if batch else x)
            checks.append(x.swapaxes(-1, -2) if swap else x)
        feeds = {"A": np.ascontiguousarray(stored[0]), "B": np.ascontiguousarray(stored[1])}
        cases.add(product_model("FusedMatMul", feeds, "float", "com.microsoft", alpha=0.5, **flags), feeds)
    for i, y in enumerate(cases.run()):
        check(y, checks[2 * i], checks[2 * i + 1], "float", alpha=0.5)


def test_gemm_with_every_bias(tmp_path: Path) -> None:
    rng, cases, checks = np.random.default_rng(2), Cases(tmp_path), []
    biases: list[tuple[int, ...] | None] = [None, (), (1,), (20,), (9, 1), (1, 20), (9, 20)]
    for i, (shape, kind) in enumerate(itertools.product(biases, TYPES)):
        transposed = (i % 2, i // 2 % 2)
        a, b = rounded(rng.standard_normal((9, 24)), kind), rounded(rng.standard_normal((24, 20)), kind)
        feeds = {"A": a.T.copy() if transposed[0] else a, "B": b.T.copy() if transposed[1] else b}
        bias: Any = 0
        if shape is not None:
            feeds["C"] = rounded(rng.standard_normal(shape), kind)
            bias = 0.5 * feeds["C"].astype(np.float64)
        flags = {"transA": transposed[0], "transB": transposed[1], "alpha": 2.0, "beta": 0.5}
        cases.add(product_model("Gemm", feeds, kind, **flags), feeds)
        checks.append((a, b, kind, bias))
    for y, (a, b, kind, bias) in zip(cases.run(), checks, strict=True):
        check(y, a, b, kind, 2.0, bias)


# ---- quantised weights -----------------------------------------------------------------------------------------------

FORMATS = ["mxfp4", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8_e4m3", "mxint8"]
ACTIVATIONS = {  # by the number of the attribute; in double
    0: lambda x: x,
    1: lambda x: np.maximum(x, 0),
    2: lambda x: x * (1 + np.vectorize(__import__("math").erf)(x / np.sqrt(2))) / 2,
    3: lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    4: lambda x: x / (1 + np.exp(-x)),
}


@pytest.mark.parametrize("arch", ["gfx950", "gfx942"])
def test_products_of_every_weight_format(tmp_path: Path, arch: str) -> None:
    rng, cases, checks = np.random.default_rng(3), Cases(tmp_path), []
    for weights, rows in itertools.product(FORMATS, (3, 21)):
        case = oracle.random_case(rng, 40, 96, 32, weights, accuracy_level=1)
        a = rng.standard_normal((1, rows, 96)).astype(np.float32)
        cases.add(op_model.model(case), {"A": a})
        checks.append((case, a[0]))
    for y, (case, a) in zip(cases.run(HIPSIM_DEVICES=arch), checks, strict=True):
        exact, bound = oracle.evaluate(case, a)
        assert (np.abs(y[0] - exact) <= bound).all(), case.weight_format


@pytest.mark.parametrize("kind", TYPES)
def test_what_follows_a_product(tmp_path: Path, kind: str) -> None:
    """f(P), and f(P) times a factor: f moves an error of P by at most 1.13 times, and costs 3e-7 of its argument."""
    rng, cases, checks = np.random.default_rng(4), Cases(tmp_path), []
    elem, epsilon = TYPES[kind]
    for activation, gated in itertools.product(ACTIVATIONS, (False, True)):
        case, other = (oracle.random_case(rng, 40, 64, accuracy_level=1) for _ in range(2))
        a = rounded(rng.standard_normal((1, 5, 64)), kind)
        factor = other if gated else None
        proto = op_model.model(case, elem_type=elem, activation=activation, factor=factor)
        cases.add(proto, {"A": a.astype(np.float16) if kind == "float16" else a})
        checks.append((case, factor, a[0], activation))
    for y, (case, factor, a, activation) in zip(cases.run(), checks, strict=True):
        exact, bound = oracle.evaluate(case, a)
        expected, allowed = ACTIVATIONS[activation](exact), 1.13 * bound + 3e-7 * np.abs(exact)
        if factor is not None:
            times, error = oracle.evaluate(factor, a)
            allowed = allowed * (np.abs(times) + error) + np.abs(expected) * error
            expected = expected * times
        allowed = allowed + epsilon * 1.01 * np.abs(expected) + 2.0**-24
        wrong = ~(np.abs(y[0] - expected) <= allowed)
        assert not wrong.any(), (activation, factor is not None, exact[wrong], y[0][wrong], expected[wrong])


@pytest.mark.parametrize("kind", ["float", "float16"])
def test_gathers_are_bit_equal_to_the_cpu(tmp_path: Path, kind: str) -> None:
    rng, cases, checks = np.random.default_rng(5), Cases(tmp_path), []
    elem, _ = TYPES[kind]
    for weights, index in itertools.product(FORMATS, (np.int64, np.int32)):
        case = oracle.random_case(rng, 20, 100, weight_format=weights)
        operator, own = functions.operator_of(weights, gather=True)
        multiplier = case.column_scale.astype(helper.tensor_dtype_to_np_dtype(elem))
        tensors = {"B": case.codes, "B_scale": case.scales, "multiplier": multiplier}
        node = helper.make_node(operator, ["indices", *tensors], ["Y"], domain="mxort", K=case.K, **own)
        indices = rng.integers(-20, 20, (2, 3)).astype(index)
        graph = helper.make_graph(
            [node],
            "gather",
            [
                helper.make_tensor_value_info(
                    "indices", helper.np_dtype_to_tensor_dtype(indices.dtype), [2, 3]
                )
            ],
            [helper.make_tensor_value_info("Y", elem, None)],
            [numpy_helper.from_array(v, name) for name, v in tensors.items()],
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("mxort", 1)]
        proto = helper.make_model(
            graph, opset_imports=opsets, functions=[functions.function(operator, 21)], ir_version=10
        )
        cases.add(proto, {"indices": indices})
        checks.append(op_model.session(proto).run(None, {"indices": indices})[0])
    for y, expected in zip(cases.run(), checks, strict=True):
        np.testing.assert_array_equal(y, expected)


# ---- convolutions ----------------------------------------------------------------------------------------------------

CONVOLUTIONS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 8, 12), (10, 3, 4, 4), {"strides": [4, 4]}),  # a ViT's patches
    ((2, 8, 5, 7), (6, 8, 1, 1), {}),  # a product as it lies
    ((1, 2, 9, 8), (5, 2, 3, 2), {"pads": [1, 0, 2, 1], "dilations": [2, 1], "strides": [2, 1]}),
    ((2, 3, 11), (4, 3, 3), {"pads": [1, 1]}),
    ((1, 3, 7, 7), (4, 3, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ((1, 3, 8, 7), (4, 3, 4, 2), {"auto_pad": "SAME_LOWER"}),
    ((1, 3, 8, 7), (4, 3, 4, 2), {"auto_pad": "VALID"}),
    ((1, 2, 6), (3, 2, 1), {"strides": [2]}),
]


@pytest.mark.parametrize("kind", TYPES)
def test_convolutions(tmp_path: Path, kind: str) -> None:
    """Against onnxruntime's convolution of the same numbers in float, of which both sides may be K roundings off."""
    rng, cases, checks = np.random.default_rng(6), Cases(tmp_path), []
    for i, (shape, window, attributes) in enumerate(CONVOLUTIONS):
        feeds = {
            "X": rounded(rng.standard_normal(shape), kind),
            "W": rounded(rng.standard_normal(window), kind),
        }
        if i % 2 == 0:
            feeds["B"] = rounded(rng.standard_normal(window[:1]), kind)
        cases.add(product_model("Conv", feeds, kind, **attributes), feeds)
        on_cpu = op_model.session(product_model("Conv", feeds, "float", **attributes), library=False)
        magnitudes = {name: np.abs(x) for name, x in feeds.items()}
        checks.append((*(on_cpu.run(None, f)[0] for f in (feeds, magnitudes)), int(np.prod(window[1:]))))
    for y, (expected, magnitude, k) in zip(cases.run(), checks, strict=True):
        assert y.shape == expected.shape
        allowed = (
            2 * (k + 12) * FLOAT_EPSILON * magnitude + 1.01 * TYPES[kind][1] * np.abs(expected) + 2.0**-25
        )
        assert (np.abs(y - expected) <= allowed).all()
