"""Operators of ONNX on the provider beyond ONNX's own small cases: every finite float16, random floats over their whole
range, shapes of many workgroups, broadcasting, all pairs of types. Expected values are NumPy's in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from simulated import run

Array = NDArray[Any]
ONNX_TYPES = {
    "float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int64": TensorProto.INT64,
    "int32": TensorProto.INT32, "int8": TensorProto.INT8, "uint8": TensorProto.UINT8, "bool": TensorProto.BOOL,
}  # fmt: skip


def execute(jobs: list[dict[str, Any]], inputs: str, target: str) -> dict[str, Any]:
    """In the child: each job's one node over arrays of the file ``inputs``; results to ``target``."""
    import gpu

    arrays = dict(np.load(inputs))
    results: dict[str, Array] = {}
    placements = {}
    with gpu.registered():
        for job in jobs:
            feeds = {name: arrays[name] for name in job["inputs"] if name}
            opened = gpu.session(bytes.fromhex(job["model"]))
            placements[job["name"]] = gpu.placement(opened)
            got = opened.run(None, {k: v for k, v in feeds.items() if k not in job["constants"]})
            results |= {f"{job['name']}/{i}": value for i, value in enumerate(got)}
            del opened
    np.savez(target, **results)
    return {"placements": placements, "live": gpu.live()}


def job(
    name: str,
    operator: str,
    feeds: dict[str, Array],
    outputs: list[str],
    *,
    constants: tuple[str, ...] = (),
    domain: str = "",
    opset: int = 20,
    **attributes: Any,
) -> dict[str, Any]:
    """One node; ``outputs`` are types. Dimensions are left open, so that nothing is folded."""
    node = helper.make_node(
        operator, list(feeds), [f"out{i}" for i in range(len(outputs))], domain=domain, **attributes
    )

    def info(key: str, kind: str, rank: int | None) -> onnx.ValueInfoProto:
        shape = None if rank is None else [f"{key}_{d}" for d in range(rank)]
        return helper.make_tensor_value_info(key, ONNX_TYPES[kind], shape)

    graph = helper.make_graph(
        [node],
        name,
        [info(k, v.dtype.name, v.ndim) for k, v in feeds.items() if k and k not in constants],
        [info(f"out{i}", kind, None) for i, kind in enumerate(outputs)],
        [onnx.numpy_helper.from_array(feeds[k], k) for k in constants],
    )
    sets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=sets, ir_version=10)
    return {
        "name": name,
        "model": model.SerializeToString().hex(),
        "inputs": list(feeds),
        "constants": list(constants),
    }


def run_jobs(jobs: list[dict[str, Any]], arrays: dict[str, Array], tmp_path: Any) -> dict[str, Array]:
    """Results by "job/output"; every job ran on the provider alone and left nothing behind."""
    np.savez(tmp_path / "in.npz", **arrays)
    result = run(execute, jobs, str(tmp_path / "in.npz"), str(tmp_path / "out.npz"))
    assert {name: list(p) for name, p in result["placements"].items()} == {
        j["name"]: ["MxortExecutionProvider"] for j in jobs
    }
    assert result["live"] == {}
    return dict(np.load(tmp_path / "out.npz"))


# ---- functions of one number ---------------------------------------------------------------------------------------

erf = np.vectorize(math.erf, otypes=[np.float64])


def sigmoid(x: Array) -> Array:
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))


def softplus(x: Array) -> Array:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


UNARY: dict[str, Callable[[Array], Array]] = {
    "Abs": np.abs, "Neg": np.negative, "Relu": lambda x: np.where(x < 0, 0, x), "Sqrt": np.sqrt,
    "Reciprocal": lambda x: 1 / x, "Exp": np.exp, "Log": np.log, "Erf": erf, "Tanh": np.tanh, "Sigmoid": sigmoid,
    "Softplus": softplus, "Sin": np.sin, "Cos": np.cos, "Floor": np.floor, "Ceil": np.ceil, "Round": np.rint,
    "Gelu": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))), "Mish": lambda x: x * np.tanh(softplus(x)),
    "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1), "Elu": lambda x: np.where(x < 0, np.expm1(x), x),
    "HardSigmoid": lambda x: np.clip(np.float32(0.2) * x + 0.5, 0, 1),
    "LeakyRelu": lambda x: np.where(x < 0, np.float64(np.float32(0.01)) * x, x),
    "Sign": np.sign,
}  # fmt: skip

ABSOLUTE = {
    # Where the result is a difference of larger numbers, an error counts against those: a Gelu far below zero is
    # x (1 - 1 + tiny), HardSwish goes through x / 6 + 1 / 2.
    "Gelu": np.abs,
    "Mish": lambda x: np.abs(x * np.tanh(softplus(x))), "HardSwish": np.abs,
    "HardSigmoid": lambda x: np.ones_like(x), "Log": lambda x: np.maximum(np.abs(np.log(np.abs(x))), 1),
    "Sin": lambda x: np.ones_like(x), "Cos": lambda x: np.ones_like(x),
}  # fmt: skip
ULPS = (
    6  # of float32, of the result or of what ABSOLUTE says; the device's exp, log and reciprocal have 1 each
)


def check_unary(operator: str, x: Array, got: Array) -> None:
    wide = x.astype(np.float64)
    with np.errstate(all="ignore"):
        want = UNARY[operator](wide)
        size = ABSOLUTE.get(operator, lambda _: np.abs(want))(wide)
        bound = ULPS * 2.0**-23 * np.maximum(np.abs(size), np.abs(want)) + 2.0**-126
        if x.dtype == np.float16:  # rounded once more: half of the distance between float16s
            bound = bound + np.maximum(np.abs(want) * 2.0**-11, 2.0**-25)
        rounded = want.astype(x.dtype)
        bad = ~(
            (np.abs(got.astype(np.float64) - want) <= bound)
            | (got == rounded)
            | (np.isnan(got) & np.isnan(want))
        )
    assert not bad.any(), (operator, x[bad][:5], got[bad][:5], want[bad][:5])


def test_functions_of_one_number(tmp_path: Any) -> None:
    """Every float16, and floats of every exponent (for the circular functions up to 2^20)."""
    rng = np.random.default_rng(0)
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    floats = np.ldexp(rng.uniform(1, 2, 6000), rng.integers(-149, 128, 6000)) * rng.choice([-1, 1], 6000)
    near = np.concatenate([rng.uniform(-12, 12, 6000), np.linspace(-1.2, 1.2, 2001)])
    specials = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0])
    with np.errstate(over="ignore"):
        wide = np.concatenate([floats, near, specials]).astype(np.float32)
    turns = np.concatenate([rng.uniform(-(2.0**20), 2.0**20, 4000), near, specials[[0, 1, 4, 5]]]).astype(
        np.float32
    )
    jobs, arrays = [], {"half": halves, "wide": wide, "turns": turns}
    for operator in UNARY:
        source = "turns" if operator in ("Sin", "Cos") else "wide"
        opset = 20 if operator != "Swish" else 24
        jobs.append(job(f"{operator}_half", operator, {"half": halves}, ["float16"], opset=opset))
        jobs.append(job(f"{operator}_float", operator, {source: arrays[source]}, ["float32"], opset=opset))
    got = run_jobs(jobs, arrays, tmp_path)
    for operator in UNARY:
        check_unary(operator, halves, got[f"{operator}_half/0"])
        check_unary(operator, turns if operator in ("Sin", "Cos") else wide, got[f"{operator}_float/0"])


# ---- two and three operands ----------------------------------------------------------------------------------------


def test_powers(tmp_path: Any) -> None:
    rng = np.random.default_rng(1)
    x = np.concatenate(
        [np.ldexp(rng.uniform(1, 2, 4000), rng.integers(-20, 20, 4000)), -rng.uniform(0, 9, 500)]
    )
    y = np.concatenate([rng.uniform(-6, 6, 4000), rng.integers(-9, 9, 500).astype(float)])
    specials = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 2.0, -3.0, 0.5])
    a, b = (g.ravel() for g in np.meshgrid(specials, specials))
    x, y = np.concatenate([x, a]).astype(np.float32), np.concatenate([y, b]).astype(np.float32)
    got = run_jobs([job("pow", "Pow", {"x": x, "y": y}, ["float32"])], {"x": x, "y": y}, tmp_path)["pow/0"]
    with np.errstate(all="ignore"):
        want = np.power(x.astype(np.float64), y.astype(np.float64))
        rounded = want.astype(np.float32)
    fits = (got == rounded) | (np.isnan(got) & np.isnan(rounded))
    with np.errstate(invalid="ignore"):
        fits |= np.abs(got - want) <= 4 * 2.0**-23 * np.abs(want) + 2.0**-149
    assert fits.all(), (x[~fits][:5], y[~fits][:5], got[~fits][:5], want[~fits][:5])


def test_broadcasting(tmp_path: Any) -> None:
    """Against NumPy, which computes the same single operation: equal to the bit."""
    rng = np.random.default_rng(2)
    shapes = [
        ((3, 1, 5), (4, 1)),
        ((2, 3, 4, 1, 2), (3, 1, 5, 1)),
        ((1500,), ()),
        ((33, 40), (33, 40)),
        ((0, 3), (1, 3)),
    ]
    jobs, arrays, want = [], {}, {}
    for n, (left, right) in enumerate(shapes):
        x, y = rng.standard_normal(left).astype(np.float32), rng.standard_normal(right).astype(np.float32)
        i, j = rng.integers(-50, 50, left), rng.integers(1, 50, right)
        feeds = {f"x{n}": x, f"y{n}": y}, {f"i{n}": i, f"j{n}": j}
        arrays |= feeds[0] | feeds[1]
        for operator, f in {"Add": np.add, "Mul": np.multiply, "Sub": np.subtract, "Min": np.minimum}.items():
            jobs.append(job(f"{operator}f{n}", operator, feeds[0], ["float32"]))
            jobs.append(job(f"{operator}i{n}", operator, feeds[1], ["int64"]))
            want |= {f"{operator}f{n}/0": f(x, y), f"{operator}i{n}/0": f(i, j)}
        jobs.append(job(f"Divi{n}", "Div", feeds[1], ["int64"]))
        want[f"Divi{n}/0"] = (np.sign(i) * (np.abs(i) // j)).astype(np.int64)  # towards zero
        jobs.append(job(f"Less{n}", "Less", feeds[0], ["bool"]))
        want[f"Less{n}/0"] = x < y
        c = rng.integers(0, 2, left).astype(bool)
        arrays[f"c{n}"] = c
        jobs.append(job(f"Where{n}", "Where", {f"c{n}": c, f"x{n}": x, f"y{n}": y}, ["float32"]))
        want[f"Where{n}/0"] = np.where(c, x, y)
    got = run_jobs(jobs, arrays, tmp_path)
    for name, expected in want.items():
        np.testing.assert_array_equal(got[name], expected, err_msg=name)


def test_casts(tmp_path: Any) -> None:
    """All pairs of types, of numbers that both hold."""
    rng = np.random.default_rng(3)
    kinds = ["float32", "float16", "int64", "int32", "int8", "uint8", "bool"]
    numbers = rng.integers(0, 100, 1100)
    numbers[::3] = 0
    arrays = {k: (numbers.astype(bool) if k == "bool" else numbers.astype(k)) for k in kinds}
    jobs = [
        job(f"{a}_{b}", "Cast", {a: arrays[a]}, [b], to=ONNX_TYPES[b]) for a in kinds for b in kinds if a != b
    ]
    fraction = (rng.standard_normal(3000) * 100).astype(np.float32)
    arrays["fraction"] = fraction
    jobs += [
        job(f"fraction_{b}", "Cast", {"fraction": fraction}, [b], to=ONNX_TYPES[b])
        for b in ("float16", "int32")
    ]
    got = run_jobs(jobs, arrays, tmp_path)
    for a in kinds:
        for b in kinds:
            if a != b:
                np.testing.assert_array_equal(got[f"{a}_{b}/0"], arrays[a].astype(b), err_msg=f"{a} to {b}")
    np.testing.assert_array_equal(got["fraction_float16/0"], fraction.astype(np.float16))
    np.testing.assert_array_equal(got["fraction_int32/0"], np.trunc(fraction).astype(np.int32))


# ---- movement ------------------------------------------------------------------------------------------------------


def test_movement(tmp_path: Any) -> None:
    """Each element size and alignment: what is moved 16 bytes at a time, and what is not."""
    rng = np.random.default_rng(4)
    jobs, arrays, want = [], {}, {}
    for kind in ("float32", "float16", "uint8", "int64"):
        for tail in (16, 7):
            x = rng.integers(0, 100, (3, 5, 4, tail)).astype(kind)
            key = f"{kind}_{tail}"
            arrays[key] = x
            for perm in ((0, 2, 1, 3), (3, 0, 1, 2), (0, 1, 3, 2)):
                name = f"transpose_{key}_{''.join(map(str, perm))}"
                jobs.append(job(name, "Transpose", {key: x}, [kind], perm=perm))
                want[name + "/0"] = x.transpose(perm)
            ids = np.array([2, -1, 0, 9, 1], np.int64)  # 9 is beyond the axis: zeros
            arrays["ids"] = ids
            jobs.append(job(f"gather_{key}", "Gather", {key: x, "ids": ids}, [kind], axis=1))
            padded = np.concatenate([x, np.zeros_like(x[:, :1])], axis=1)
            want[f"gather_{key}/0"] = padded[:, np.where(ids == 9, 5, ids % 5)]
            starts, ends, axes, steps = (np.array(v, np.int64) for v in ([3, 0], [-9, 4], [1, 3], [-2, 2]))
            feeds = {key: x, "starts": starts, "ends": ends, "axes": axes, "steps": steps}
            arrays |= feeds
            own = tuple(k for k in feeds if k != key)
            jobs.append(job(f"slice_{key}", "Slice", feeds, [kind], constants=own))
            want[f"slice_{key}/0"] = x[:, 3::-2, :, 0:4:2]
            jobs.append(job(f"concat_{key}", "Concat", {key: x, f"{key}_b": x[:, :2]}, [kind], axis=1))
            arrays[f"{key}_b"] = x[:, :2].copy()
            want[f"concat_{key}/0"] = np.concatenate([x, x[:, :2]], axis=1)
    got = run_jobs(jobs, arrays, tmp_path)
    for name, expected in want.items():
        np.testing.assert_array_equal(got[name], expected, err_msg=name)


# ---- rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_rows(kind: str, tmp_path: Any) -> None:
    """Rows of a wave, of a workgroup, and along an inner axis. Sums of n terms in float, in 64 or 256 lanes and a tree:
    at most n / 64 + 8 roundings each of 2^-24 of the sum of magnitudes; the results are rounded to the type."""
    rng = np.random.default_rng(5)
    jobs, arrays = [], {}
    shapes = [(9, 1), (5, 63), (3, 512), (2, 1025), (4, 6, 5), (3, 2, 700)]
    for n, shape in enumerate(shapes):
        x = (rng.standard_normal(shape) * 2).astype(kind)
        scale = rng.standard_normal(shape[-1]).astype(kind)
        arrays |= {f"x{n}": x, f"s{n}": scale}
        for axis in {1, len(shape) - 1}:
            jobs.append(job(f"softmax{n}_{axis}", "Softmax", {f"x{n}": x}, [kind], axis=axis))
            jobs.append(job(f"max{n}_{axis}", "ArgMax", {f"x{n}": x}, ["int64"], axis=axis))
        feeds = {f"x{n}": x, f"s{n}": scale}
        jobs.append(job(f"norm{n}", "LayerNormalization", feeds, [kind]))
        skip = {f"x{n}": x, f"k{n}": x[::-1].copy(), f"s{n}": scale}
        arrays |= skip
        if len(shape) == 3:
            jobs.append(
                job(
                    f"skip{n}",
                    "SkipSimplifiedLayerNormalization",
                    skip,
                    [kind],
                    domain="com.microsoft",
                    epsilon=1e-5,
                )
            )
    got = run_jobs(jobs, arrays, tmp_path)
    half = 2.0**-11 if kind == "float16" else 2.0**-24
    for n, shape in enumerate(shapes):
        x, scale = arrays[f"x{n}"].astype(np.float64), arrays[f"s{n}"].astype(np.float64)
        for axis in {1, len(shape) - 1}:
            e = np.exp(x - x.max(axis, keepdims=True))
            want = e / e.sum(axis, keepdims=True)
            bound = want * (half + 2.0**-24 * (shape[axis] / 64 + 16)) + 2.0**-25 * (kind == "float16")
            assert (np.abs(got[f"softmax{n}_{axis}/0"] - want) <= bound).all(), (shape, axis)
            best = np.expand_dims(x.argmax(axis), axis)
            np.testing.assert_array_equal(got[f"max{n}_{axis}/0"], best)
        for name, v, mean in (("norm", x, True), ("skip", x + arrays[f"k{n}"].astype(np.float64), False)):
            if f"{name}{n}/0" not in got:
                continue
            d = v - v.mean(-1, keepdims=True) if mean else v
            inverse = 1 / np.sqrt((d**2).mean(-1, keepdims=True) + 1e-5)
            want = d * inverse * scale
            # Relative: the variance's error, and that of the mean against the values it is taken from.
            steps = shape[-1] / 64 + 16
            bound = (
                np.abs(want) * (half + 2.0**-24 * steps)
                + 2.0**-24 * steps * inverse * np.abs(scale) * (np.abs(v).mean(-1, keepdims=True) + np.abs(v))
                + 2.0**-25 * (kind == "float16")
            )
            assert (np.abs(got[f"{name}{n}/0"] - want) <= bound).all(), (name, shape)


def test_the_best_of_a_row(tmp_path: Any) -> None:
    rng = np.random.default_rng(6)
    x = rng.integers(-20, 20, (5, 130)).astype(np.float32)  # many ties: the lower index comes first
    k = np.array([8], np.int64)
    jobs = [
        job(
            f"top{largest}", "TopK", {"x": x, "k": k}, ["float32", "int64"], constants=("k",), largest=largest
        )
        for largest in (0, 1)
    ]
    got = run_jobs(jobs, {"x": x, "k": k}, tmp_path)
    for largest in (0, 1):
        order = np.argsort(-x if largest else x, axis=1, kind="stable")[:, :8]
        np.testing.assert_array_equal(got[f"top{largest}/1"], order)
        np.testing.assert_array_equal(got[f"top{largest}/0"], np.take_along_axis(x, order, 1))


def test_reductions(tmp_path: Any) -> None:
    """Over axes that are neighbours and over those that are not, axes as an attribute and as an input."""
    rng = np.random.default_rng(7)
    x = rng.standard_normal((3, 5, 4, 70)).astype(np.float32)
    i = rng.integers(-5, 6, (3, 5, 70))
    positive = np.abs(x) + 1
    arrays: dict[str, Array] = {"x": x, "i": i, "p": positive}
    jobs, want = [], {}
    functions: dict[str, Callable[..., Array]] = {
        "ReduceSum": np.sum, "ReduceMean": np.mean, "ReduceMax": np.max, "ReduceMin": np.min,
        "ReduceL1": lambda v, **k: np.abs(v).sum(**k), "ReduceL2": lambda v, **k: np.sqrt((v**2).sum(**k)),
        "ReduceSumSquare": lambda v, **k: (v**2).sum(**k), "ReduceLogSum": lambda v, **k: np.log(v.sum(**k)),
        "ReduceLogSumExp": lambda v, **k: np.log(np.exp(v).sum(**k)),
    }  # fmt: skip
    for axes in ((3,), (1, 2), (0, 2), (1, 3)):
        key = f"axes{''.join(map(str, axes))}"
        arrays[key] = np.array(axes, np.int64)
        for operator, f in functions.items():
            source = "p" if operator == "ReduceLogSum" else "x"
            name = f"{operator}_{key}"
            feeds = {source: arrays[source], key: arrays[key]}
            jobs.append(job(name, operator, feeds, ["float32"], constants=(key,), opset=18))
            want[name] = f(arrays[source].astype(np.float64), axis=axes, keepdims=True)
            if operator != "ReduceSum":
                jobs.append(
                    job(name + "_old", operator, {source: arrays[source]}, ["float32"], opset=13, axes=axes)
                )
                want[name + "_old"] = want[name]
    arrays["one"] = np.array([1], np.int64)
    jobs.append(
        job("whole", "ReduceSum", {"i": i, "one": arrays["one"]}, ["int64"], constants=("one",), keepdims=0)
    )
    got = run_jobs(jobs, arrays, tmp_path)
    np.testing.assert_array_equal(got["whole/0"], i.sum(1))
    for name, expected in want.items():
        # At most 350 terms of magnitude up to 5 in 64 lanes and a tree: 14 roundings of their sum.
        np.testing.assert_allclose(
            got[f"{name}/0"], expected, rtol=16 * 2.0**-24, atol=16 * 2.0**-24 * 350, err_msg=name
        )
