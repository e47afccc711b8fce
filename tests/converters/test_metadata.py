"""Converted models can be merged as far as their metadata go, and old files are read."""

from __future__ import annotations

import onnx
import onnx.inliner
from onnx import TensorProto, compose, helper, numpy_helper

import mxort
from exact_models import exact, run
from mxort.conversion.inspection import inspect
from mxort.converters import model_io, rewrite
from mxort.converters.metadata import Conversion, conversions


def half(source, target, w, folder, **options):
    """source -> target, converted."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", [source, f"w_{target}"], [target], name=f"to_{target}")],
        f"g_{target}",
        [helper.make_tensor_value_info(source, TensorProto.FLOAT, ["b", len(w)])],
        [helper.make_tensor_value_info(target, TensorProto.FLOAT, ["b", w.shape[1]])],
        [numpy_helper.from_array(w, f"w_{target}")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / f"{target}.onnx")
    mxort.convert(folder / f"{target}.onnx", folder / f"{target}.mxfp4.onnx", **options)
    return onnx.load(folder / f"{target}.mxfp4.onnx")


def test_merging(tmp_path):
    """Two conversions of different files with different recipes: onnx merges them once the function is there once."""
    first = half("x", "h", exact(), tmp_path)
    second = half("h", "y", exact(1, 48, 48), tmp_path, activation_format="mxfp8_e4m3")
    del second.functions[:]
    renamed = compose.add_prefix(
        second, "second/", rename_inputs=False, rename_outputs=False, rename_edges=False
    )
    merged = compose.merge_models(first, renamed, io_map=[("h", "h")])
    assert len(run(merged, library=True)) == 1
    held = {p.key: p.value for p in merged.metadata_props}
    assert {mxort.Recipe.from_json(made.recipe).activation_format for made in conversions(held)} == {
        "none",
        "mxfp8_e4m3",
    }
    onnx.save(merged, tmp_path / "merged.onnx")
    assert inspect(tmp_path / "merged.onnx").count("converted") == 2


def test_equal_conversions_have_equal_keys(tmp_path):
    first, second = (half("x", "h", exact(), tmp_path) for _ in range(2))
    assert first.metadata_props == second.metadata_props


def test_keys_of_before():
    old = {"mxort.version": "0.1.0", "mxort.recipe": "{}", "mxort.source_sha256": "ab", "author": "somebody"}
    assert conversions(old) == [Conversion("0.1.0", "{}", "ab")]
    assert conversions({"mxortx.version": "1", "mxort.recipe.x": "2"}) == []


def test_unfolded(tmp_path):
    """As onnxruntime saves a model that it ran without the library."""
    model = half("x", "h", exact(), tmp_path)
    assert not rewrite.is_unfolded(model_io.from_memory(model).model)
    unfolded = onnx.inliner.inline_local_functions(model)
    assert rewrite.is_unfolded(model_io.from_memory(unfolded).model)
