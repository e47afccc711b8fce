"""Calibration: the stages compute what the model computes, in order, within memory; conversion uses it."""

from __future__ import annotations

import gc
import threading

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import mxort
from branching import OPERANDS, K, branching, feeds
from mxort.calibration import calibrate, executor
from mxort.calibration.data import samples
from mxort.calibration.operator import Operator
from mxort.conversion import weights as packing
from mxort.converters import model_io, sites, stages
from mxort.formats import dequantize_mxfp4
from mxort.quantize import QuantizedWeight, Statistics


@pytest.fixture
def model(tmp_path):
    return branching(tmp_path / "model.onnx")


def fetch(path, names, data, session=ort.InferenceSession):
    """Values inside a model, for all samples."""
    proto = onnx.load(path)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    running = session(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return [dict(zip(names, running.run(list(names), feed), strict=True)) for feed in data]


def calibrated(path, data, quantize=lambda site, statistics: None, **settings):
    source = model_io.load(path)
    found = [s for s in sites.find(source.model, sites.Selection()) if not s.skip]
    reached = [s for s in found if not stages.refusal(source.model, s)]
    plain = Operator(1, "none", 1)
    calibrate.run(
        source.model, reached, data, quantize, calibrate.Settings(lambda site: plain, threads=1, **settings)
    )
    return found, reached


@pytest.mark.parametrize("memory", [1 << 30, 30_000, 0])
@pytest.mark.parametrize("sequential", [False, True])
def test_statistics_are_those_of_the_model(model, memory, sequential):
    """Where no weight changes, every site sees what the float model computes; on disk or in memory."""
    data, seen = feeds(), {}
    found, reached = calibrated(
        model, data, lambda site, s: seen.update({site.name: s}), memory=memory, sequential=sequential
    )
    assert {s.name for s in found} - {s.name for s in reached} == {"inside"}
    assert list(seen) == ["a", "b", "c", "d", "g", "last"], "every site once, in the order of the graph"
    values = fetch(model, sorted(set(OPERANDS.values())), data)
    for name, operand in OPERANDS.items():
        x = np.concatenate([v[operand].T if name == "g" else v[operand] for v in values]).astype(np.float64)
        np.testing.assert_allclose(seen[name].hessian, x.T @ x / len(x), rtol=1e-3, atol=1e-4)
        assert seen[name].rows == len(x)
    assert seen["a"] is seen["b"], "one operand has one Hessian"
    for s in seen.values():
        assert (s.drift is not None) == sequential
        if sequential:
            assert np.abs(s.drift).max() < 1e-4


def test_sequential_sees_the_quantised_layers_before(model, tmp_path):
    """The operand is what the converted model computes, and the drift leads back to the float model's."""
    data, seen = feeds(), {}
    original = packing.Packer._calibrated

    def spy(self, site, statistics):
        seen[site.name] = statistics
        return original(self, site, statistics)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing.Packer, "_calibrated", spy)
        mxort.convert(
            model,
            tmp_path / "out.onnx",
            algorithm="gptq",
            calibration=data,
            accuracy_level=1,
            exclude=("inside",),
        )
    names = sorted(set(OPERANDS.values()) - {"et"})
    quantised = fetch(tmp_path / "out.onnx", names, data, mxort.InferenceSession)
    plain = fetch(model, names, data)
    for name in ("a", "d", "last"):
        x, wanted = (np.concatenate([v[OPERANDS[name]] for v in values]) for values in (quantised, plain))
        np.testing.assert_allclose(seen[name].hessian, x.T @ x / len(x), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(seen[name].drift, (wanted - x).T @ x / len(x), rtol=1e-2, atol=1e-3)
    assert np.abs(seen["a"].drift).max() < 1e-6 < 1e-3 < np.abs(seen["last"].drift).max()


def test_outputs_of_layers_are_kept_for_one_sample_only(model, monkeypatch):
    stores, most = [], {}

    class Watched(executor.Store):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.states = []
            stores.append(self)

        def sample(self, inputs):
            self.states.append(super().sample(inputs))
            return self.states[-1]

        def keep(self, value):
            for store in stores:
                names = [name for state in store.states for name in state]
                most.update({name: max(most.get(name, 0), names.count(name)) for name in names})
            return super().keep(value)

    monkeypatch.setattr(calibrate, "Store", Watched)
    calibrated(model, feeds(5))
    assert most["x"] == most["scaled"] == most["ta"] == 5, "inputs and operands wait for the quantised weight"
    assert most["a"] == most["b0"] == most["g"] == 1
    assert most["b"] == 5, "what a later stage reads is kept all the same"


def output_error(path, reference, data):
    pair = [fetch(p, ["y"], data, mxort.InferenceSession) for p in (path, reference)]
    new, old = (np.concatenate([v["y"] for v in values]) for values in pair)
    return float(((new - old) ** 2).sum() / (old**2).sum())


@pytest.mark.parametrize("activation_format", ["none", "mxfp8_e4m3", "mxfp4"])
def test_calibrated_models_are_nearer_on_other_data(model, tmp_path, activation_format):
    data, other = feeds(20), feeds(30)[20:]
    errors = {}
    for algorithm in ("rtn", "gptq", "mr-gptq", "auto"):
        report = mxort.convert(
            model,
            tmp_path / f"{algorithm}.onnx",
            algorithm=algorithm,
            calibration=None if algorithm == "rtn" else data,
            activation_format=activation_format,
        )
        errors[algorithm] = output_error(tmp_path / f"{algorithm}.onnx", model, other)
        by_name = {site.node: site for site in report.converted}
        assert by_name["inside"].algorithm == "rtn"
        if algorithm != "rtn":
            assert by_name["a"].algorithm == ("mr-gptq" if algorithm == "auto" else algorithm)
            assert by_name["inside"].note == "inside a subgraph: not calibrated"
            assert by_name["a"].rotation == (1 if algorithm == "gptq" else 32)
    assert errors["gptq"] < errors["rtn"]
    assert errors["mr-gptq"] < errors["rtn"]
    assert errors["auto"] == errors["mr-gptq"]


def test_few_data_are_a_warning(model, tmp_path):
    """Where a layer has more inputs than it met rows."""
    rows = sum(len(f["x"]) for f in feeds(1))
    assert rows < K
    (warning,) = mxort.convert(model, tmp_path / "out.onnx", calibration=feeds(1)).warnings
    assert warning.startswith("few calibration data: ")
    assert "inputs: several times as many do better" in warning
    many = feeds(2 + 2 * K // rows)
    assert mxort.convert(model, tmp_path / "out.onnx", calibration=many).warnings == ()


def test_needs_data(model, tmp_path):
    with pytest.raises(mxort.MxortError, match=r"algorithm gptq: needs calibration data"):
        mxort.convert(model, tmp_path / "out.onnx", algorithm="gptq")
    with pytest.raises(mxort.MxortError, match=r"algorithm rtn: makes nothing of calibration data"):
        mxort.convert(model, tmp_path / "out.onnx", algorithm="rtn", calibration=feeds())
    with pytest.raises(mxort.MxortError, match=r"sample 0: .*no array for input x"):
        mxort.convert(model, tmp_path / "out.onnx", calibration=[{}])
    with pytest.raises(mxort.MxortError, match="calibration data: no samples"):
        mxort.convert(model, tmp_path / "out.onnx", calibration=[])
    assert not (tmp_path / "out.onnx").exists()


def test_cache_resumes(model, tmp_path, monkeypatch):
    """A second run does no algebra; other data, options or a damaged file do it again."""
    from mxort.quantize import solver

    solved = []
    solve = solver.solve
    monkeypatch.setattr(solver, "solve", lambda *a: solved.append(1) or solve(*a))

    def convert(name, data, **options):
        solved.clear()
        calibration = packing.Calibration(data, threads=1, cache=tmp_path / "cache")
        mxort.convert(model, tmp_path / name, "weight-only", calibration=calibration, **options)
        return len(solved)

    assert convert("a.onnx", feeds()) == len(OPERANDS)
    assert convert("b.onnx", feeds()) == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert convert("c.onnx", feeds(4)) == len(OPERANDS)
    assert convert("c.onnx", feeds(), damping=0.1) == len(OPERANDS)
    files = sorted((tmp_path / "cache").iterdir())
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    assert convert("b.onnx", feeds()) == len(OPERANDS)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_weight_used_twice_is_quantised_once(tmp_path):
    proto = onnx.load(branching(tmp_path / "model.onnx"))
    for node in proto.graph.node:
        if node.name == "last":
            node.input[1] = "w0"
    onnx.save(proto, tmp_path / "model.onnx")
    report = mxort.convert(tmp_path / "model.onnx", tmp_path / "out.onnx", calibration=feeds())
    by_name = {site.node: site for site in report.converted}
    assert "weight shared" in by_name["last"].note
    assert by_name["a"].converted_bytes > 0 == by_name["last"].converted_bytes


def test_float16(tmp_path):
    """Values keep their type between the stages."""
    weight = np.random.default_rng(3).standard_normal((K, K)).astype(np.float16) / 8
    constants = [numpy_helper.from_array(weight, "w0"), numpy_helper.from_array(weight.T.copy(), "w1")]
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w1"], ["y"], name="second"),
    ]
    value = helper.make_tensor_value_info
    ends = [value("x", TensorProto.FLOAT16, ["n", K])], [value("y", TensorProto.FLOAT16, ["n", K])]
    graph = helper.make_graph(nodes, "g", *ends, constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, tmp_path / "m.onnx")
    data = [{"x": feed["x"].astype(np.float16)} for feed in feeds()]
    report = mxort.convert(tmp_path / "m.onnx", tmp_path / "out.onnx", calibration=data)
    assert [site.algorithm for site in report.converted] == ["mr-gptq", "mr-gptq"]


def test_the_weight_of_a_result_reaches_the_next_layer(model):
    """A layer quantised to zero leaves the next one nothing but zeros."""
    seen = {}

    def zero(site, statistics):
        seen[site.name] = statistics
        codes, scales = np.zeros((site.N, K // 2), np.uint8), np.zeros((site.N, K // 32), np.uint8)
        assert not dequantize_mxfp4(codes, scales, K).any()
        weight = QuantizedWeight(codes, scales, np.ones(site.N, np.float32))
        return calibrate.Result(weight, Operator(1, "none", 1))

    calibrated(model, feeds(), zero)
    assert seen["a"].hessian.any()
    assert not seen["d"].hessian.any()


def test_threads_of_torch_are_given_back(model):
    before = torch.get_num_threads()
    seen = []
    calibrated(model, feeds(1), lambda site, s: seen.append(torch.get_num_threads()))
    assert set(seen) == {1}
    assert torch.get_num_threads() == before


def test_an_empty_sample_says_nothing(model):
    seen = {}
    calibrated(
        model, [*feeds(2), {"x": np.zeros((0, K), np.float32)}], lambda site, s: seen.update({site.name: s})
    )
    assert seen["last"].rows == 40 + 41
    assert np.isfinite(seen["last"].hessian).all()


def test_samples_are_read_once(model):
    """An iterator of more samples than memory holds may be given."""
    graph = model_io.load(model).model
    assert len(list(samples(iter(feeds()), graph, "m"))) == 5


@pytest.mark.parametrize("sequential", [False, True])
def test_rows_that_are_not_finite_change_nothing(model, sequential):
    """A position of padding is NaN all the way through: what is learnt is finite, and it is counted."""
    data = [{"x": feed["x"][:K].copy()} for feed in feeds(3, rows=K)]
    seen = ({}, {})
    for found in seen:
        calibrated(
            model, data, lambda site, s, found=found: found.update({site.name: s}), sequential=sequential
        )
        data = [{"x": np.concatenate([np.full((2, K), np.nan, np.float32), feed["x"]])[:K]} for feed in data]
    for name in ("a", "c", "d"):
        plain, padded = (found[name] for found in seen)
        assert (plain.left_out, padded.left_out, padded.rows) == (0, 6, plain.rows - 6)
        assert np.isfinite(padded.hessian).all()


def test_rows_left_out_are_told(model, tmp_path):
    """Two of 40, 41 and 42 rows, in every sample; every layer is calibrated all the same."""
    data = feeds(3)
    for feed in data:
        feed["x"][:2] = np.nan
    report = mxort.convert(model, tmp_path / "out.onnx", calibration=data, exclude=("g", "inside", "last"))
    notes = {site.node: site.note for site in report.converted}
    assert set(notes) == {"a", "b", "c", "d"}
    for site in report.converted:
        assert site.algorithm == "mr-gptq"
        assert "6 of 123 rows of its input are not finite and left out" in site.note
        assert "singular" not in site.note
    plain = mxort.convert(model, tmp_path / "plain.onnx", calibration=feeds(3))
    assert not any("left out" in site.note for site in plain.converted)


def test_nothing_large_outlives_a_conversion(model, tmp_path):
    mxort.convert(model, tmp_path / "out.onnx", calibration=feeds())
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) is Statistics]


class TestCache:
    """What the folder does and holds never changes the result."""

    def convert(self, model, tmp_path, folder):
        calibration = packing.Calibration(feeds(), threads=1, cache=folder)
        return mxort.convert(model, tmp_path / "out.onnx", calibration=calibration)

    def test_that_cannot_be_written_is_one_warning(self, model, tmp_path):
        (tmp_path / "file").write_text("in the way")
        report = self.convert(model, tmp_path, tmp_path / "file" / "cache")
        (warning,) = report.warnings
        assert "finished weights cannot be kept there" in warning
        assert len(report.converted) == len(OPERANDS) + 1

    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("codes", lambda a: a[:-1]),
            ("codes", lambda a: a.astype(np.int8)),
            ("scales", lambda a: a[:, :-1]),
            ("column_scale", lambda a: a.astype(np.float64)),
            ("losses", lambda a: a[:1]),
        ],
    )
    def test_that_holds_another_shape_or_type_is_made_again(self, model, tmp_path, name, change):
        self.convert(model, tmp_path, tmp_path / "cache")
        right = (tmp_path / "out.onnx").read_bytes()
        for file in (tmp_path / "cache").iterdir():
            with np.load(file) as kept:
                arrays = dict(kept)
            np.savez(file, **arrays | {name: change(arrays[name])})
        self.convert(model, tmp_path, tmp_path / "cache")
        assert (tmp_path / "out.onnx").read_bytes() == right

    def test_of_another_version_is_not_read(self, model, tmp_path, monkeypatch):
        self.convert(model, tmp_path, tmp_path / "cache")
        monkeypatch.setattr("mxort.conversion.cache.mxort_version", lambda: "0.0.1")
        self.convert(model, tmp_path, tmp_path / "cache")
        assert len(list((tmp_path / "cache").iterdir())) == 2 * len(OPERANDS)

    def test_shared_by_two_that_write_at_once(self, model, tmp_path):
        """Both make every weight, each over the other's files, and both are right."""
        outs = [tmp_path / "one.onnx", tmp_path / "two.onnx"]

        def run(out):
            calibration = packing.Calibration(feeds(), threads=1, cache=tmp_path / "cache")
            mxort.convert(model, out, calibration=calibration)

        threads = [threading.Thread(target=run, args=(out,)) for out in outs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outs[0].read_bytes() == outs[1].read_bytes()
        assert len(list((tmp_path / "cache").iterdir())) == len(OPERANDS)


def test_the_gain_is_what_the_outputs_gain(tmp_path):
    """One product, so that its operand is the data: the error of its outputs, measured outside of mxort."""
    rng = np.random.default_rng(3)
    w = rng.standard_normal((64, 48), dtype=np.float32)
    x = rng.standard_normal((400, 64), dtype=np.float32) @ rng.standard_normal((64, 64), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="p")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 48])],
        [numpy_helper.from_array(w, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def error(**options):
        report = mxort.convert(proto, min_elements=1, rotation=1, accuracy_level=1, **options)
        session = mxort.InferenceSession(report.model.SerializeToString(), device="cpu")
        return report.converted[0], float(((session.run(None, {"x": x})[0] - x @ w) ** 2).sum())

    plain, plain_error = error()
    solved, solved_error = error(algorithm="gptq", calibration=[{"x": x}])
    assert plain.gain_db is None
    assert solved.gain_db == pytest.approx(10 * np.log10(plain_error / solved_error), abs=0.02)
    assert solved.gain_db > 3
