"""converters/storage.py: what it works out is what a conversion then does, on models where it is known by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import mxort
from mxort.conversion.inspection import inspect
from mxort.conversion.recipe import Recipe
from mxort.converters import model_io, sites, storage
from mxort.converters.storage import after

K = 256
RNG = np.random.default_rng(0)
FLOAT_BYTES = 4 * K * K


def info(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes, outputs, weights, inputs=()):
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", ["b", K]), *inputs],
        [info(name, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def matrix(*shape):
    return RNG.standard_normal(shape or (K, K), dtype=np.float32)


def product(weight, out, source="x", name=""):
    return helper.make_node("MatMul", [source, weight], [out], name=name or out)


def worked_out(proto, **options):
    source = model_io.from_memory(proto)
    found = sites.find(source.model, sites.Selection(**options))
    return after(source.model, found), found


def initializer_bytes(proto):
    return sum(len(numpy_helper.to_array(tensor).tobytes()) for tensor in proto.graph.initializer)


def transposed(name, source):
    return helper.make_node("Transpose", [source], [name], perm=[1, 0])


MODELS = {
    "one": (model([product("w", "y")], ["y"], {"w": matrix()}), FLOAT_BYTES),
    "shared": (model([product("w", "y"), product("w", "z")], ["y", "z"], {"w": matrix()}), FLOAT_BYTES),
    "behind steps": (
        model([transposed("t", "w"), product("t", "y")], ["y"], {"w": matrix()}),
        FLOAT_BYTES,
    ),
    "behind steps, read by others": (
        model(
            [
                transposed("t", "w"),
                product("t", "y"),
                helper.make_node("Add", ["y", "t2"], ["z"]),
                transposed("t2", "w"),
            ],
            ["z"],
            {"w": matrix()},
            [],
        ),
        0,
    ),
    "of which the transpose is an output": (
        model([transposed("t", "w"), product("t", "y")], ["y", "t"], {"w": matrix()}),
        0,
    ),
    "with a bias": (
        model(
            [product("w", "p"), helper.make_node("Add", ["p", "b"], ["y"])],
            ["y"],
            {"w": matrix(), "b": matrix(K)},
        ),
        FLOAT_BYTES + 4 * K,
    ),
    "with a bias that others read": (
        model(
            [
                product("w", "p"),
                helper.make_node("Add", ["p", "b"], ["y"]),
                helper.make_node("Neg", ["b"], ["z"]),
            ],
            ["y", "z"],
            {"w": matrix(), "b": matrix(K)},
        ),
        FLOAT_BYTES,
    ),
    "two halves of one": (
        model(
            [
                helper.make_node("Split", ["w"], ["l", "r"], axis=1),
                product("l", "y"),
                product("r", "z"),
            ],
            ["y", "z"],
            {"w": matrix(K, 2 * K)},
        ),
        2 * FLOAT_BYTES,
    ),
    "in a Constant node": (
        model(
            [
                helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(matrix(), "w")),
                product("w", "y"),
            ],
            ["y"],
            {},
        ),
        FLOAT_BYTES,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_goes(name):
    proto, freed = MODELS[name]
    stored, found = worked_out(proto)
    assert stored.freed == freed
    assert stored.tensors - stored.freed == sum(stored.read_by.values())
    report = mxort.convert(proto)
    assert [s.node for s in report.converted] == [s.name for s in found if not s.skip] != []


@pytest.mark.parametrize("name", MODELS)
def test_the_size_is_that_of_the_file(name, tmp_path):
    proto, _ = MODELS[name]
    onnx.save(proto, tmp_path / "m.onnx")
    mxort.convert(tmp_path / "m.onnx", tmp_path / "out.onnx")
    size = (tmp_path / "out.onnx").stat().st_size
    assert abs(inspect(tmp_path / "m.onnx").estimated_bytes - size) < 3_000


def test_copies_are_stored_once_by_the_conversion_but_not_known_to_be_equal():
    """The estimate reads no weights: two equal initializers count twice, which is never too little."""
    w = matrix()
    stored, _ = worked_out(model([product("a", "y"), product("b", "z")], ["y", "z"], {"a": w, "b": w}))
    assert stored.freed == 2 * FLOAT_BYTES
    assert stored.added > 2 * FLOAT_BYTES * 17 / 32 / 4


def test_who_reads_a_weight_in_float():
    nodes = [
        product("w", "y"),
        helper.make_node("Transpose", ["w"], ["t"]),
        helper.make_node("Mul", ["x", "t"], ["z"], name="m"),
    ]
    proto = model(nodes, ["y", "z"], {"w": matrix()})
    stored, _ = worked_out(proto)
    assert [node.name for node in stored.float_too["y"]] == ["m"]
    report = mxort.convert(proto)
    assert "its weight stays in float too, for 'm'" in report.converted[0].note
    assert any("other nodes read weights in float too" in warning for warning in report.warnings)


def test_dead_readers_do_not_count():
    nodes = [product("w", "y"), helper.make_node("Mul", ["x", "w"], ["nobody"], name="m")]
    stored, _ = worked_out(model(nodes, ["y"], {"w": matrix()}))
    assert (stored.freed, stored.float_too) == (FLOAT_BYTES, {})


def test_bytes_go_to_the_nodes_that_read_them():
    nodes = [
        helper.make_node("Unsqueeze", ["x", "axes"], ["u"]),
        helper.make_node("Conv", ["u", "kernel"], ["c"], name="conv"),
        helper.make_node("Gather", ["table", "ids"], ["e"], name="gather"),
        product("head", "y", "e", "head"),
        transposed("head", "table"),
    ]
    weights = {"axes": np.int64([1]), "kernel": matrix(64, 1, 99), "table": matrix(500, K)}
    proto = model(nodes, ["c", "y"], weights, [info("ids", ["b"], TensorProto.INT64)])
    stored, _ = worked_out(proto)
    by_name = {node.name: nbytes for node, nbytes in stored.read_by.items()}
    assert by_name["conv"] == 4 * 64 * 99
    assert by_name["head"] == 4 * 500 * K, "of the readers of a table, the product is the one to show"
    skipped = {site.node: site.original_bytes for site in mxort.convert(proto, table_format="float").skipped}
    assert skipped["head"] == 4 * 500 * K
    assert skipped["conv"] == 4 * 64 * 99


def test_nothing_large_goes_unlisted(tmp_path):
    """A table that Slice reads, what no node reads, and what is no tensor at all."""
    nodes = [
        product("w", "p"),
        helper.make_node("Slice", ["cache", "zero", "n", "zero"], ["rows"], name="rope"),
        helper.make_node("Add", ["p", "rows"], ["y"], name="add"),
    ]
    weights = {"w": matrix(), "cache": matrix(300, K), "zero": np.int64([0]), "spare": matrix(200, K)}
    proto = model(nodes, ["y"], weights, [info("n", [1], TensorProto.INT64)])
    proto.graph.node[2].metadata_props.add(key="pkg.torch.onnx.stack_trace", value="x" * 100_000)
    onnx.save(proto, tmp_path / "m.onnx")
    for rows in (
        inspect(tmp_path / "m.onnx").sites,
        mxort.convert(tmp_path / "m.onnx", tmp_path / "out.onnx").skipped,
        inspect(tmp_path / "out.onnx").sites,
    ):
        listed = {row.node or row.reason: row.original_bytes for row in rows}
        assert listed["rope"] == 4 * 300 * K + 8  # with its bound
        assert listed["constants that no node reads"] == 4 * 200 * K
        assert listed["nodes, names and notes (doc_string, metadata_props)"] > 100_000


def language_model():
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], name="embed"),
        product("w", "h", "e"),
        transposed("t", "table"),
        product("t", "logits", "h", "head"),
    ]
    graph = helper.make_graph(
        nodes,
        "lm",
        [info("ids", ["b", "s"], TensorProto.INT64)],
        [info("logits", None)],
        [numpy_helper.from_array(a, n) for n, a in {"table": matrix(4000, K), "w": matrix()}.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_what_options_would_gain(tmp_path):
    onnx.save(language_model(), tmp_path / "m.onnx")
    report = mxort.convert(tmp_path / "m.onnx", tmp_path / "out.onnx")
    (gain,) = report.gains
    assert gain.options == {"table_format": "mxfp4"}
    mxort.convert(tmp_path / "m.onnx", tmp_path / "small.onnx", **gain.options)
    assert abs(gain.nbytes - (tmp_path / "small.onnx").stat().st_size) < 3_000
    assert inspect(tmp_path / "m.onnx").gains == report.gains
    assert inspect(tmp_path / "m.onnx", Recipe(table_format="mxfp4")).gains == ()
    assert [g.options for g in inspect(tmp_path / "m.onnx", Recipe(table_format="float")).gains] == [
        {"table_format": "mxint8"},
        {"table_format": "mxfp4"},
    ]
    text = " ".join(line for line in mxort.conversion.tables.options(report.gains, report.converted_bytes))
    assert text.startswith("with --table-format mxfp4: about ")


def test_the_same_of_fuzzed_models():
    """Whatever a generator builds: the bytes of the tensors that are left are those worked out."""
    from fuzz.models import Builder

    for seed in range(40):
        proto = Builder(np.random.default_rng(seed)).model()
        for node in proto.graph.node:
            node.name = ""
        source = model_io.from_memory(proto)
        found = sites.find(source.model, sites.Selection(min_elements=1))
        want = storage.after(source.model, found)
        made = mxort.convert(proto, min_elements=1, column_multiplier=False).model
        left = sum(place.tensor.nbytes for place in storage.tensors(model_io.from_memory(made).model))
        # The estimate counts equal vectors twice, and all of the functions.
        assert left <= want.tensors - want.freed + want.added, seed
        assert left >= want.tensors - want.freed, seed
