"""mxort/inspection.py: what it says of a model before and after conversion, against the conversion itself."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx.inliner
import pytest
from onnx import TensorProto, helper, numpy_helper

import mxort
from mxort.conversion.inspection import CONVERTIBLE, inspect
from mxort.conversion.recipe import Recipe
from mxort.conversion.report import CONVERTED, SKIPPED
from mxort.errors import MxortError
from tiny_models import WIDTHS, mlp


def language_model(path, tied=False):
    """ids -> Gather -> MatMul -> logits, the head's weight being the table (transposed) where ``tied``."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((200, 64), dtype=np.float32)
    head = table.T.copy() if tied else rng.standard_normal((64, 200), dtype=np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["e"], name="embed"),
            helper.make_node("MatMul", ["e", "w"], ["h"], name="proj"),
            helper.make_node("MatMul", ["h", "head"], ["scores" if tied else "logits"], name="lm_head"),
        ],
        "lm",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "seq"])],
        [
            helper.make_tensor_value_info(
                "scores" if tied else "logits", TensorProto.FLOAT, ["batch", "seq", 200]
            )
        ],
        [
            numpy_helper.from_array(array, name)
            for name, array in (
                ("table", table),
                ("w", rng.standard_normal((64, 64), np.float32)),
                ("head", head),
            )
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_an_unconverted_model(tmp_path):
    path = mlp(tmp_path / "m.onnx")
    found = inspect(path)
    assert not found.converted
    assert [(site.node, site.status, site.K, site.N) for site in found.sites] == [
        ("fc1", CONVERTIBLE, *WIDTHS[:2]),
        ("fc2", CONVERTIBLE, *WIDTHS[1:]),
    ]
    assert found.file_bytes == path.stat().st_size
    assert (found.opset, found.ir_version, found.nodes, found.lm_head) == (17, 8, 4, "")


def test_the_estimate_is_what_conversion_writes(tmp_path):
    path, out = mlp(tmp_path / "m.onnx"), tmp_path / "out.onnx"
    mxort.convert(path, out, fuse=False)  # what is fused brings a function more, of 3 KB
    saved = path.stat().st_size - out.stat().st_size
    estimated = path.stat().st_size - inspect(path).estimated_bytes
    assert 0 <= estimated - saved < 3_000  # names, attributes and metadata


def test_a_converted_model_says_how_it_was_made(tmp_path):
    path, out = mlp(tmp_path / "m.onnx"), tmp_path / "out.onnx"
    report = mxort.convert(path, out, activation_format="mxfp6_e2m3", rotation=32, exclude=("fc2",))
    found = inspect(out)
    assert found.converted
    assert found.recipe == report.recipe
    assert found.mxort_version == report.mxort_version
    assert found.source_sha256 == report.source_sha256 == inspect(path).source_sha256
    assert found.estimated_bytes == found.file_bytes == out.stat().st_size
    (ours,) = (site for site in found.sites if site.status == CONVERTED)
    assert (ours.node, ours.K, ours.N) == ("fc1", *WIDTHS[:2])
    assert (ours.rotation, ours.activation_format) == (32, "mxfp6_e2m3")
    assert ours.converted_bytes == WIDTHS[0] * WIDTHS[1] * 17 // 32 == report.converted[0].converted_bytes
    (left,) = (site for site in found.sites if site.status == SKIPPED)
    assert (left.node, left.reason) == ("fc2", "excluded by pattern 'fc2'")


def test_the_operators_definition_is_no_site(tmp_path):
    """Its function multiplies too; only the user's nodes are listed."""
    mxort.convert(mlp(tmp_path / "m.onnx"), tmp_path / "out.onnx")
    assert {site.node for site in inspect(tmp_path / "out.onnx").sites} == {"fc1", "fc2"}


def test_a_node_that_conversion_refused_stays_refused(tmp_path):
    path = mlp(tmp_path / "m.onnx", scale=np.nan)
    assert inspect(path).count(CONVERTIBLE) == 2  # weights are not read for this
    mxort.convert(path, tmp_path / "out.onnx")
    found = inspect(tmp_path / "out.onnx")
    assert [(s.node, s.reason) for s in found.sites if s.status == SKIPPED] == [
        ("fc2", "left alone by the conversion")
    ]


@pytest.mark.parametrize("tied", [False, True])
def test_the_output_projection(tmp_path, tied):
    path, out = language_model(tmp_path / "m.onnx", tied), tmp_path / "out.onnx"
    assert inspect(path, Recipe(table_format="float")).lm_head.startswith("skipped: lm_head")
    mxort.convert(path, out, table_format="float")
    assert inspect(out).lm_head.startswith("skipped: lm_head")


def test_the_output_projection_converted(tmp_path):
    path, out = language_model(tmp_path / "m.onnx"), tmp_path / "out.onnx"
    assert inspect(path).lm_head == CONVERTIBLE
    mxort.convert(path, out)
    assert inspect(out).lm_head == CONVERTED


def test_json(tmp_path):
    values = json.loads(json.dumps(inspect(mlp(tmp_path / "m.onnx")).to_dict(), allow_nan=False))
    assert values["recipe"] == Recipe().to_dict()
    assert [site["node"] for site in values["sites"]] == ["fc1", "fc2"]


def test_bad_files(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    for name in ("bad.onnx", "absent.onnx"):
        with pytest.raises(MxortError, match=name):
            inspect(tmp_path / name)


def test_operators_that_another_tool_has_unfolded(tmp_path):
    """onnx's inliner puts the bodies of the functions in the place of the operators: right, but no kernel of ours."""
    mxort.convert(mlp(tmp_path / "m.onnx"), tmp_path / "out.onnx")
    assert inspect(tmp_path / "out.onnx").warnings == ()
    onnx.save(onnx.inliner.inline_local_functions(onnx.load(tmp_path / "out.onnx")), tmp_path / "flat.onnx")
    (warning,) = inspect(tmp_path / "flat.onnx").warnings
    assert "no kernel of mxort runs" in warning and "before converting" in warning
