"""``mxort.convert`` as a whole: its interface, its report, and models larger than memory should be."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.reference
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import mxort
from mxort.conversion.inspection import inspect
from mxort.conversion.pipeline import peak_rss_bytes
from mxort.conversion.report import CONVERTED
from mxort.formats import WEIGHT_FORMATS
from mxort.runtime.op_models import relative_rms


def linear(*shapes: tuple[int, int]) -> onnx.ModelProto:
    """A model of MatMuls in a row."""
    rng = np.random.default_rng(9)
    nodes = [
        onnx.helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"], name=f"layer.{i}")
        for i in range(len(shapes))
    ]
    weights = [
        numpy_helper.from_array(rng.standard_normal(shape, dtype=np.float32), f"w{i}")
        for i, shape in enumerate(shapes)
    ]
    value = onnx.helper.make_tensor_value_info
    inputs = [value("x0", onnx.TensorProto.FLOAT, ["b", shapes[0][0]])]
    outputs = [value(f"x{len(shapes)}", onnx.TensorProto.FLOAT, ["b", shapes[-1][1]])]
    graph = onnx.helper.make_graph(nodes, "g", inputs, outputs, weights)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def test_report(tmp_path):
    onnx.save(linear((64, 96), (96, 10)), tmp_path / "in.onnx")
    report = mxort.convert(tmp_path / "in.onnx", tmp_path / "out.onnx", "w4a8", exclude=("layer.1",))
    first, second = report.sites
    assert (first.node, first.op_type, first.status, first.K, first.N) == (
        "layer.0",
        "MatMul",
        "converted",
        64,
        96,
    )
    assert (first.weight, first.original_bytes, first.converted_bytes) == ("w0", 64 * 96 * 4, 96 * 2 * 17)
    assert (first.activation_format, first.algorithm, first.rotation) == ("mxfp8_e4m3", "rtn", 1)
    assert 19 < first.sqnr_db < 21
    assert (second.status, second.reason) == ("skipped", "excluded by pattern 'layer.1'")
    assert (second.K, second.N, second.original_bytes) == (96, 10, 96 * 10 * 4)
    assert report.recipe == mxort.Recipe.from_preset("w4a8", exclude=("layer.1",))
    assert (report.source, report.output) == (str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"))
    assert (report.opset, report.ir_version) == (17, 8)
    assert report.seconds > 0 and report.peak_rss_bytes > 10**7
    assert report.model is None
    assert mxort.Report.from_json(report.to_json()) == report


def test_patterns_that_match_nothing_are_named(tmp_path):
    onnx.save(linear((64, 96), (96, 64)), tmp_path / "in.onnx")
    options = {
        "include": ("layer.*", "Layer.0"),
        "exclude": ("layre.1",),
        "layer_formats": ("zzz=mxfp8_e4m3", "layer.1=mxfp6_e2m3"),
    }
    expected = (
        "include: 'Layer.0' matches no node with a weight; close to it: layer.0, layer.1",
        "exclude: 'layre.1' matches no node with a weight; close to it: layer.1, layer.0",
        "layer_formats: 'zzz' matches no node with a weight",
    )
    assert mxort.convert(tmp_path / "in.onnx", tmp_path / "out.onnx", **options).warnings == expected
    assert inspect(tmp_path / "in.onnx", mxort.Recipe(**options)).warnings == expected
    assert inspect(tmp_path / "out.onnx").warnings == ()
    nothing = mxort.convert(tmp_path / "in.onnx", tmp_path / "out.onnx", include=("layer1",))
    assert nothing.warnings[0].startswith(
        "include: 'layer1' matches no node with a weight; close to it: layer.1"
    )
    assert nothing.warnings[1:] == ("nothing was converted",)


def test_a_name_with_brackets_is_its_own_pattern():
    model = linear((64, 96), (96, 64))
    model.graph.node[0].name, model.graph.node[1].name = "/b[0]/fc", "/b[1]/fc"
    report = mxort.convert(model, exclude=("/b[0]/fc",), layer_formats=("/b[1]/fc=mxfp8_e4m3",))
    assert [s.weight_format for s in report.converted] == ["mxfp8_e4m3"]
    assert [s.node for s in report.skipped] == ["/b[0]/fc"]
    assert report.warnings == ()


def test_recipe_may_be_an_object():
    recipe = mxort.Recipe(rotation=32, min_elements=5000)
    report = mxort.convert(linear((64, 96), (96, 10)), recipe=recipe, strict=True)
    assert report.recipe == mxort.Recipe(rotation=32, min_elements=5000, strict=True)
    assert [s.status for s in report.sites] == ["converted", "skipped"]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"recipe": "fast"}, "unknown preset: got 'fast', expected one of weight-only, mi355x, w4a8, w4a4"),
        ({"rotation": 5}, "unknown rotation"),
        ({"colour": 5}, "unknown option: got 'colour'"),
    ],
)
def test_bad_options_come_first(arguments, match):
    """Before the model is read: nobody should wait for a typo."""
    with pytest.raises(mxort.MxortError, match=match):
        mxort.convert("missing.onnx", "out.onnx", **arguments)


def test_progress(tmp_path):
    onnx.save(linear((64, 96), (96, 32), (32, 64)), tmp_path / "in.onnx")
    calls = []
    mxort.convert(tmp_path / "in.onnx", tmp_path / "out.onnx", progress=lambda *call: calls.append(call))
    what, fractions = zip(*calls, strict=True)
    assert list(fractions) == sorted(fractions)
    assert fractions[0] == 0 and fractions[-1] == 1
    assert [w for w in what if w.startswith("quantising")] == [f"quantising layer.{i}" for i in range(3)]


def test_peak_memory_is_that_of_this_process():
    """ru_maxrss would not do: it starts at what the parent had when it forked."""
    ballast = np.ones(400_000_000, np.uint8)
    code = "from mxort.conversion.pipeline import peak_rss_bytes; print(peak_rss_bytes())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 20_000_000 < int(run.stdout) < ballast.nbytes < peak_rss_bytes()


def test_equal_inputs_give_equal_files(tmp_path):
    onnx.save(linear((64, 96), (96, 32)), tmp_path / "in.onnx")
    for name in ("a.onnx", "b.onnx"):
        mxort.convert(tmp_path / "in.onnx", tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_public_names():
    assert set(mxort.__all__) >= {"convert", "Recipe", "Report", "MxortError", "register", "InferenceSession"}
    for name in ("convert", "Recipe", "Report", "SiteReport", "MxortError", "PRESETS"):
        assert getattr(mxort, name) is not None
        assert name in dir(mxort)
    with pytest.raises(AttributeError, match="no attribute 'convrt'"):
        _ = mxort.convrt


def test_importing_mxort_is_light():
    """A serving process registers the library; it should not load the converter for that."""
    code = "import sys, mxort; print([m for m in ('onnx', 'onnx_ir', 'onnxruntime', 'torch') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


_MEASURE = textwrap.dedent("""
    import json, sys
    import mxort
    report = mxort.convert(sys.argv[1], sys.argv[2], **json.loads(sys.argv[3]))
    print(json.dumps({"peak": report.peak_rss_bytes, "converted": len(report.converted)}))
""")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow, id="weight-only"),
        pytest.param(
            {"rotation": 64, "column_multiplier": True, "include": ["layer.0"]}, id="rotation and multiplier"
        ),
        pytest.param({"exclude": ["*"]}, marks=pytest.mark.slow, id="nothing converted"),
    ],
)
def test_memory_stays_bounded(tmp_path, options):
    """A 600 MB model in 100 MB tensors takes 1.5 tensors + 300 MB at most; read whole it would take 700 MB."""
    rows, columns, count = 5000, 5000, 6
    largest = rows * columns * 4
    model = _external_model(tmp_path, rows, columns, count)
    command = [sys.executable, "-c", _MEASURE, str(model), str(tmp_path / "out.onnx"), json.dumps(options)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    measured = json.loads(run.stdout)
    assert measured["peak"] <= 1.5 * largest + 300_000_000
    expected = {"include": 1, "exclude": 0}
    assert measured["converted"] == next((n for key, n in expected.items() if key in options), count)
    onnx.checker.check_model(str(tmp_path / "out.onnx"))


def _external_model(folder: Path, rows: int, columns: int, count: int) -> Path:
    """Writes MatMuls in a row whose weights differ, without holding them all."""
    rng = np.random.default_rng(10)
    block = rng.standard_normal((rows, columns), dtype=np.float32)
    model = linear(*[(32, 32)] * count)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = rows
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = columns
    with (folder / "big.data").open("wb") as file:
        for i, tensor in enumerate(model.graph.initializer):
            tensor.dims[:] = [rows, columns]
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", "big.data"), ("offset", file.tell()), ("length", block.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            file.write((block * np.float32(1 + i / 16)).data)
    (folder / "big.onnx").write_bytes(model.SerializeToString())
    return folder / "big.onnx"


@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
def test_every_weight_format(tmp_path: Path, weight_format: str) -> None:
    """Converted, described, and computed alike by the library, by stock onnxruntime and by onnx.reference."""
    source, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(linear((96, 64), (64, 100)), source)
    report = mxort.convert(source, out, weight_format=weight_format)
    stored = {"mxfp4": 4.25, "mxfp6_e2m3": 6.25, "mxfp6_e3m2": 6.25}.get(weight_format, 8.25)
    assert report.bits_per_weight == stored
    assert {s.weight_format for s in report.converted} == {weight_format}
    assert [s.weight_format for s in inspect(out).sites if s.status == CONVERTED] == [weight_format] * 2
    proto = onnx.load(out)
    onnx.checker.check_model(proto, full_check=True)
    a = np.random.default_rng(3).standard_normal((5, 96), dtype=np.float32)
    name = proto.graph.input[0].name
    expected = onnx.reference.ReferenceEvaluator(proto).run(None, {name: a})[0]
    for session in (mxort.InferenceSession(out), ort.InferenceSession(out)):
        assert relative_rms(session.run(None, {name: a})[0], expected) < 2e-2  # two layers of level 4
    float_y = ort.InferenceSession(source).run(None, {name: a})[0]
    sqnr = 10 * np.log10((float_y**2).sum() / ((float_y - expected) ** 2).sum())
    assert sqnr > {4: 15, 6: 21, 8: 27}[WEIGHT_FORMATS[weight_format].bits]


def test_a_format_for_each_layer(tmp_path: Path) -> None:
    """The first pattern that matches counts, and each operator's function is there once."""
    model = linear((64, 64), (64, 64), (64, 64), (64, 64))
    formats = ("layer.0=mxfp8_e4m3", "layer.[01]=mxfp6_e3m2", "*3=mxfp6_e2m3")
    report = mxort.convert(model, layer_formats=formats)
    assert [s.weight_format for s in report.converted] == ["mxfp8_e4m3", "mxfp6_e3m2", "mxfp4", "mxfp6_e2m3"]
    assert report.bits_per_weight == (8.25 + 6.25 + 4.25 + 6.25) / 4
    assert isinstance(report.model, onnx.ModelProto)
    assert sorted(f.name for f in report.model.functions) == ["MatMulMXFP4", "MatMulMXFP6", "MatMulMXFP8"]
