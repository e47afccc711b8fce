"""MoEMXFP4 on the provider, on both architectures: against the double oracle, with its bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto
from simulated import run, start
from test_products import Cases

import moe_model
import moe_oracle
import oracle
from hipsim import mutate
from moe_oracle import Experts, random_experts

ARCHITECTURES = ["gfx950", "gfx942"]
SHAPES_OF_GATES = {
    "swiglu_oai": {"activation": moe_oracle.SILU, "swiglu_fusion": 1, "activation_alpha": 1.702,
                   "activation_beta": 1.0, "swiglu_limit": 7.0},
    "silu_halves": {"activation": moe_oracle.SILU, "swiglu_fusion": 2},
    "gelu_interleaved": {"activation": moe_oracle.GELU, "swiglu_fusion": 1},
    "gelu_tanh_halves": {"activation": moe_oracle.GELU_TANH, "swiglu_fusion": 2, "swiglu_limit": 0.5},
    "relu": {"activation": moe_oracle.RELU, "swiglu_fusion": 0},
    "gelu": {"activation": moe_oracle.GELU, "swiglu_fusion": 0},
    "none": {"activation": moe_oracle.NONE, "swiglu_fusion": 0},
}  # fmt: skip
TYPES = {"float": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
ELEMENTS = {"float": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


def kernel_of(experts: Experts, arch: str) -> str:
    """What the oracle must know of how a device rounds A: two terms, or one of bfloat16, as AMX."""
    return oracle.TWO_TERMS_KERNEL if arch == "gfx950" else oracle.BFLOAT16_KERNELS[0]


def rows(
    experts: Experts, count: int, dtype: type = np.float32, seed: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([seed, count])
    x = rng.standard_normal((count, experts.gate_up[0].K)).astype(np.float32).astype(dtype)
    return x, (2 * rng.standard_normal((count, len(experts.down)))).astype(np.float32).astype(dtype)


class Layers:
    """Layers that are run in one process, each checked against the oracle."""

    def __init__(self, folder: Path):
        self.cases = Cases(folder)
        self.expected: list[tuple[str, Experts, np.ndarray, np.ndarray]] = []

    def add(
        self, what: str, experts: Experts, x: np.ndarray, logits: np.ndarray, **options: Any
    ) -> onnx.ModelProto:
        proto = moe_model.model(experts, elem_type=ELEMENTS[str(x.dtype).replace("32", "")], **options)
        outside = np.float32 if x.dtype == ml_dtypes.bfloat16 else x.dtype
        self.cases.add(proto, {"X": x.astype(outside), "router": logits.astype(outside)})
        self.expected.append((what, experts, x, logits))
        return proto

    def run(self, arch: str) -> list[np.ndarray]:
        results = self.cases.run(HIPSIM_DEVICES=arch)
        for (what, experts, x, logits), y in zip(self.expected, results, strict=True):
            moe_oracle.assert_close(experts, x, logits, y.astype(x.dtype), what, kernel_of(experts, arch))
        return results


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_formats_and_levels(arch: str, tmp_path: Path) -> None:
    layers = Layers(tmp_path)
    rng = np.random.default_rng(3)
    for fmt, level in oracle.FORMATS_AND_LEVELS:
        for count, rotation in ((5, 32), (40, 64)):  # few rows, many
            experts = random_experts(
                rng, 5, 192, 160 if rotation == 32 else 128, 2, rotation=rotation, activation_format=fmt,
                accuracy_level=level,
            )  # fmt: skip
            layers.add(f"{fmt} {level} {count}", experts, *rows(experts, count))
    results = layers.run(arch)
    # The promised error (docs/format.md) of two products, whose errors add as the root of the sum of squares; 1.13 is
    # the largest slope between them, of both factors of a gate.
    for (what, experts, x, logits), y in zip(layers.expected, results, strict=True):
        fmt, level, _ = what.split()
        if promised := {"3": 3e-3, "4": 1e-2}.get(level if fmt == "none" else ""):
            exact, _ = moe_oracle.evaluate(experts, x, logits)
            assert oracle.relative_rms(y, exact) <= promised * np.hypot(1, 1.13 * np.sqrt(2)), what


@pytest.mark.parametrize("arch", ["gfx950", pytest.param("gfx942", marks=pytest.mark.slow)])
def test_gates_and_types(arch: str, tmp_path: Path) -> None:
    """Every activation and layout, few rows and many, in each type; column factors and biases in the type too."""
    layers = Layers(tmp_path)
    rng = np.random.default_rng(4)
    for n, (what, shape) in enumerate(SHAPES_OF_GATES.items()):
        for count in (1 + n, 30 + n):
            dtype = list(TYPES)[(n + count) % 3]
            experts = random_experts(
                rng, 6, 96, 64, 3, accuracy_level=1, normalize_routing_weights=n % 2, **shape
            )
            x, logits = rows(experts, count, TYPES[dtype])
            layers.add(f"{what} {dtype} {count}", experts, x, logits)
    layers.run(arch)


def special_logits(experts: int, count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([6, count])
    normal = rng.standard_normal((count, experts)).astype(np.float32)
    one = normal.copy()
    one[:, 1] = 60
    return {"normal": normal, "ties": np.round(normal), "equal": np.zeros_like(normal), "one": one}


def test_choices(tmp_path: Path) -> None:
    """Ties, experts without rows, all rows on one, all experts chosen."""
    layers = Layers(tmp_path)
    rng = np.random.default_rng(7)
    for k in (1, 3, 7):
        experts = random_experts(rng, 7, 64, 32, k, accuracy_level=1, normalize_routing_weights=int(k < 7))
        for count in (16, 17, 75):
            for what, logits in special_logits(7, count).items():
                layers.add(f"{what} {k} {count}", experts, rows(experts, count)[0], logits)
    layers.run("gfx950")


def test_rows_without_an_order_of_logits_and_weights_that_are_nan(tmp_path: Path) -> None:
    """NaN stays in the rows that have it, or that chose it."""
    rng = np.random.default_rng(8)
    experts = random_experts(rng, 5, 64, 32, 2, accuracy_level=1)
    broken = random_experts(rng, 5, 64, 32, 2, accuracy_level=1)
    broken.down[1].scales[:, 0] = 0xFF
    cases = Cases(tmp_path)
    feeds = []
    for made in (experts, broken):
        for count in (6, 40):
            x, logits = rows(made, count)
            if made is experts:
                logits[1, 2], logits[3], logits[4, 0] = np.nan, -np.inf, np.inf
                logits[5, 1:] = -np.inf
                x[2, 3] = np.nan
            cases.add(moe_model.model(made), {"X": x, "router": logits})
            feeds.append((made, x, logits))
    for (made, x, logits), y in zip(feeds, cases.run(), strict=True):
        if made is experts:
            lost = np.isin(np.arange(len(x)), [1, 2, 3, 4])
            assert np.isfinite(y[5]).all()
            right = ~lost & (np.arange(len(x)) != 5)
        else:
            lost = (np.argsort(-logits, axis=-1)[:, :2] == 1).any(axis=-1)
            right = ~lost
        assert 0 < lost.sum() < len(x) and np.isnan(y[lost]).all()
        moe_oracle.assert_close(made, x[right], logits[right], y[right])


def test_shapes_and_no_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    experts = random_experts(rng, 5, 64, 32, 2, accuracy_level=1)
    cases = Cases(tmp_path)
    x, logits = rows(experts, 24)
    for flat in (False, True):
        router = logits if flat else logits.reshape(2, 12, -1)
        proto = moe_model.model(experts, dims=("batch", "rows"), flat_router=flat)
        cases.add(proto, {"X": x.reshape(2, 12, -1), "router": router})
    cases.add(moe_model.model(experts), {"X": x[:0], "router": logits[:0]})
    *filled, empty = cases.run()
    for y in filled:
        assert y.shape == (2, 12, 64)
        moe_oracle.assert_close(experts, x, logits, y.reshape(x.shape))
    assert empty.shape == (0, 64)


@pytest.mark.parametrize("count", [700, pytest.param(8192, marks=pytest.mark.slow)])
def test_many_rows(count: int, tmp_path: Path) -> None:
    """More waves route than a workgroup has, tiles of several sizes, of 8,192 rows more than one launch takes."""
    layers = Layers(tmp_path)
    rng = np.random.default_rng(10)
    experts = random_experts(rng, 16, 32, 32, 8, activation_format="mxfp4")
    layers.add(str(count), experts, *rows(experts, count))
    layers.run("gfx950")


def counted(model: str, counts: list[int]) -> list[dict[str, Any]]:
    """Launches and copies of a second run, for each number of rows."""
    import gpu
    import numpy as np
    import onnxruntime as ort

    found = []
    with gpu.registered():
        opened = gpu.session(model)
        for count in counts:
            binding = opened.io_binding()
            for name, width in (("X", 64), ("router", 8)):
                value = np.random.default_rng(0).standard_normal((count, width)).astype(np.float16)
                binding.bind_ortvalue_input(
                    name, ort.OrtValue.ortvalue_from_numpy(value, "gpu", 0, gpu.VENDOR)
                )
            out = ort.OrtValue.ortvalue_from_numpy(np.zeros((count, 64), np.float16), "gpu", 0, gpu.VENDOR)
            binding.bind_ortvalue_output("Y", out)
            opened.run_with_iobinding(binding)
            before = gpu.sim.counters()
            opened.run_with_iobinding(binding)
            now = gpu.sim.counters()
            found.append({k: now[k] - before[k] for k in ("launches", "copies_to_host", "copies_to_device")})
            found[-1]["casts"] = gpu.placement(opened)[gpu.EP].count("Cast")
            binding = out = None
        opened = None
    return found


def test_launches(tmp_path: Path) -> None:
    """Four of few rows, seven of many; nothing is copied. The Casts are the model's."""
    rng = np.random.default_rng(11)
    experts = random_experts(rng, 8, 64, 32, 2)
    proto = moe_model.model(experts, elem_type=TensorProto.FLOAT16)
    onnx.save(proto, tmp_path / "m.onnx")
    few, many = run(counted, str(tmp_path / "m.onnx"), [1, 64])
    assert few["launches"] - few["casts"] == 4
    assert many["launches"] - many["casts"] == 7
    assert few["copies_to_host"] == few["copies_to_device"] == many["copies_to_host"] == 0


def replayed(model: str, feeds: str, target: str, graphs: int) -> dict[str, Any]:
    """A recorded run, and the same recording with other inputs."""
    import gpu
    import numpy as np
    import onnxruntime as ort

    given = np.load(feeds)
    with gpu.registered():
        opened = gpu.session(model, options={"graph_capture": 1})
        values = {
            n: ort.OrtValue.ortvalue_from_numpy(given[n][0], "gpu", 0, gpu.VENDOR) for n in ("X", "router")
        }
        blank = np.zeros_like(given["X"][0])
        out = ort.OrtValue.ortvalue_from_numpy(blank, "gpu", 0, gpu.VENDOR)
        binding = opened.io_binding()
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output("Y", out)
        settings = ort.RunOptions()
        settings.add_run_config_entry("gpu_graph_id", "1")
        results = []
        for i in range(graphs):
            for name, value in values.items():
                value.update_inplace(given[name][i])
            out.update_inplace(blank)
            opened.run_with_iobinding(binding, settings)
            results.append(out.numpy())
        np.save(target, np.stack(results))
        calls = gpu.sim.calls()
        opened = binding = out = value = None
        values.clear()
    return {
        "recorded": calls["hipStreamBeginCapture"],
        "launched": calls["hipGraphLaunch"],
        "live": gpu.live(),
    }


@pytest.mark.parametrize("count", [4, 40])
def test_a_recording_routes_other_rows(count: int, tmp_path: Path) -> None:
    """Other logits choose other experts, in another number: nothing of that is in the recording."""
    rng = np.random.default_rng(12)
    experts = random_experts(rng, 8, 64, 32, 2, accuracy_level=1)
    onnx.save(moe_model.model(experts), tmp_path / "m.onnx")
    cases = [rows(experts, count, seed=seed) for seed in range(4)]
    cases[1][1][:, 3:5] = 50  # all on two experts
    cases[2][1][0, 0] = np.nan
    np.savez(tmp_path / "x.npz", X=np.stack([x for x, _ in cases]), router=np.stack([r for _, r in cases]))
    result = run(
        replayed, str(tmp_path / "m.onnx"), str(tmp_path / "x.npz"), str(tmp_path / "y.npy"), len(cases)
    )
    assert result["recorded"] == 1 and result["launched"] >= 3 and result["live"] == {}
    for (x, logits), y in zip(cases, np.load(tmp_path / "y.npy"), strict=True):
        lost = np.isnan(logits).any(axis=-1)
        assert np.isnan(y[lost]).all()
        moe_oracle.assert_close(experts, x[~lost], logits[~lost], y[~lost])


def placed(model: str) -> dict[str, list[str]]:
    import gpu

    with gpu.registered():
        return gpu.placement(gpu.session(model))


def test_what_is_left_to_the_cpu(tmp_path: Path) -> None:
    """Weights that are no constants, more experts than the kernels route to."""
    rng = np.random.default_rng(13)
    given = moe_model.model(random_experts(rng, 5, 64, 32, 2))
    tensor = next(t for t in given.graph.initializer if t.name == "down_bias")
    given.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    given.graph.initializer.remove(tensor)
    many = random_experts(rng, 1, 32, 32, 1)
    many.gate_up, many.down = many.gate_up * 513, many.down * 513
    for n, proto in enumerate((given, moe_model.model(many))):
        onnx.save(proto, tmp_path / f"{n}.onnx")
        assert "MoEMXFP4" in run(placed, str(tmp_path / f"{n}.onnx"))["CPUExecutionProvider"]


# ---- self-check -----------------------------------------------------------------------------------------------------

OBJECTS = Path(__file__).resolve().parents[2] / "build" / "cmake" / "hip"


def checked(models: list[str], feeds: str, target: str) -> list[dict[str, Any]]:
    """Sessions with the self-check, their placement and launches; the last one's result."""
    import gpu
    import numpy as np

    found = []
    with gpu.registered():
        for model in models:
            opened = gpu.session(model, options={"self_check": 1})
            placement = gpu.placement(opened)
            opened.run(None, dict(np.load(feeds)))
            before = gpu.sim.counters()["launches"]
            np.save(target, opened.run(None, dict(np.load(feeds)))[0])
            found.append({"placement": placement, "launches": gpu.sim.counters()["launches"] - before})
            opened = None
    return found


def self_checked(
    folder: Path, forms: list[tuple[str, int]], **variables: str
) -> tuple[Any, np.ndarray, Experts]:
    rng = np.random.default_rng(14)
    models = []
    for n, (fmt, level) in enumerate(forms):
        experts = random_experts(
            rng, 4, 64, 64, 2, rotation=(32, 1)[n % 2], activation_format=fmt, accuracy_level=level
        )
        onnx.save(moe_model.model(experts), folder / f"{n}.onnx")
        models.append(str(folder / f"{n}.onnx"))
    x, logits = rows(experts, 5)
    np.savez(folder / "x.npz", X=x, router=logits)
    outcome = start(checked, models, str(folder / "x.npz"), str(folder / "y.npy"), **variables)
    assert outcome.code == 0, outcome.stderr
    y = np.load(folder / "y.npy")
    arch = variables.get("HIPSIM_DEVICES", "gfx950")
    moe_oracle.assert_close(experts, x, logits, y, kernel=kernel_of(experts, arch))
    return outcome, y, experts


SOME = [("none", 3), ("mxfp4", 0)]


@pytest.mark.parametrize(
    "arch, forms",
    [
        ("gfx950", SOME),
        *(pytest.param(arch, oracle.FORMATS_AND_LEVELS, marks=pytest.mark.slow) for arch in ARCHITECTURES),
    ],
)
def test_right_kernels_pass_their_check(arch: str, forms: list[tuple[str, int]], tmp_path: Path) -> None:
    outcome, _, _ = self_checked(tmp_path, forms, HIPSIM_DEVICES=arch)
    assert outcome.stderr == ""
    for result in outcome.result:
        assert list(result["placement"]) == ["MxortExecutionProvider"]


def broken(folder: Path, kernels: list[str]) -> str:
    folder.mkdir()
    image = (OBJECTS / "experts_mx.gfx950.co").read_bytes()
    for kernel in kernels:
        image = next(mutate.CodeObject(image).mutations(kernel, ["opsel_a"])).image
    (folder / "experts_mx.gfx950.co").write_bytes(image)
    return str(folder)


def test_a_wrong_kernel_of_few_rows_is_named_and_replaced(tmp_path: Path) -> None:
    folder = broken(tmp_path / "co", ["experts_fp4_up"])
    outcome, _, _ = self_checked(tmp_path, [("mxfp4", 0)], MXORT_CODE_OBJECTS=folder)
    (line,) = outcome.stderr.splitlines()
    assert "warning" in line and "experts_fp4_few" in line
    assert outcome.result[0]["launches"] >= 7


def test_where_no_kernel_of_experts_is_right_the_cpu_computes(tmp_path: Path) -> None:
    tiles = [f"experts_fp4_{tile}" for tile in ("64x64", "128x128", "256x256")]
    folder = broken(tmp_path / "co", tiles)
    outcome, _, _ = self_checked(tmp_path, [("mxfp4", 0)], MXORT_CODE_OBJECTS=folder)
    assert [tile for tile in tiles if tile not in outcome.stderr] == []
    assert "MoEMXFP4" in outcome.result[0]["placement"]["CPUExecutionProvider"]
