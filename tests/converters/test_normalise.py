"""Models that onnxruntime opens although the specification has them otherwise: they convert, and compute the same."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import mxort
from exact_models import K, N, exact, run
from mxort.conversion.inspection import inspect
from mxort.converters import model_io, normalise
from mxort.errors import MxortError


def info(name, *shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def model(nodes, weights, *, opset=17, ir_version=8, outputs=("y",), functions=()):
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", "b", K)],
        [info(name, "rows", "columns") for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, functions=functions)


def assert_same(proto, converted, reference=None):
    """``converted`` products become ours; the result is that of ``reference``, by default the model's own.

    They differ by the order of float32 sums. A sum of K = 64 products errs by K eps at most, 4e-6 of the sum of
    magnitudes, which is some ten times its value.
    """
    want = run(reference or proto)
    report = mxort.convert(proto, min_elements=1, accuracy_level=1)
    assert len(report.converted) == converted, [(s.node, s.reason) for s in report.skipped]
    onnx.checker.check_model(report.model)
    for library in (True, False):
        for got, right in zip(run(report.model, library), want, strict=True):
            assert got.shape == right.shape
            np.testing.assert_allclose(got, right, rtol=0, atol=4e-5 * np.abs(right).max())
    return report


def product(left, right, out, **more):
    return helper.make_node("MatMul", [left, right], [out], **more)


def chain():
    return [product("x", "w", "h"), helper.make_node("Relu", ["h"], ["r"]), product("r", "v", "y")]


WEIGHTS = {"w": exact(), "v": exact(1, N, N)}


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 2, 0), (0, 2, 1)])
def test_unsorted(order):
    nodes = chain()
    assert_same(model([nodes[i] for i in order], WEIGHTS), 2)


def branches(nodes):
    """An If whose branches hold ``nodes``, which give "y0"."""
    out = info("y0", "rows", "columns")
    then = helper.make_graph(nodes, "then", [], [out])
    otherwise = helper.make_graph([helper.make_node("Identity", ["h"], ["y0"])], "else", [], [out])
    yes = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))
    return [helper.make_node("If", ["yes"], ["y"], then_branch=then, else_branch=otherwise), yes]


def test_unsorted_inside_and_around_a_subgraph():
    """The If stands before what its branches read, and a branch is out of order itself, which onnxruntime refuses."""
    inner = [helper.make_node("Relu", ["h"], ["r"]), product("r", "v", "y0")]
    reference = model([product("x", "w", "h"), *reversed(branches(inner))], WEIGHTS)
    assert_same(model([*branches(inner[::-1]), product("x", "w", "h")], WEIGHTS), 2, reference)


def test_a_circle_is_said_in_our_words():
    nodes = [product("a", "w", "b"), helper.make_node("Relu", ["b"], ["a"])]
    with pytest.raises(mxort.MxortError, match=r"its nodes need each other's outputs in a circle$"):
        mxort.convert(model([*nodes, helper.make_node("Relu", ["a"], ["y"])], WEIGHTS))


def test_order_is_kept_where_it_is_right():
    proto = model(chain(), WEIGHTS)
    before = proto.SerializeToString()
    normalise.normalise_proto(proto, "m")
    assert proto.SerializeToString() == before


@pytest.mark.parametrize("listed", [False, True])
def test_ir_version_3(listed):
    proto = model(chain(), WEIGHTS, opset=11, ir_version=3)
    if listed:
        proto.graph.input.extend([info("w", K, N), info("v", N, N)])
    report = assert_same(proto, 2)
    assert report.model.ir_version == 8
    assert [value.name for value in report.model.graph.input] == ["x"]


@pytest.mark.parametrize("version", [4, 6, 8, 9, 10, 11])
def test_the_ir_version_is_raised_to_8_at_most(version):
    assert mxort.convert(model(chain(), WEIGHTS, ir_version=version)).model.ir_version == max(8, version)


def sparse(array, places=1):
    flat = array.reshape(-1)
    at = np.flatnonzero(flat)
    indices = at if places == 1 else np.stack(np.unravel_index(at, array.shape), axis=1)
    return helper.make_sparse_tensor(
        numpy_helper.from_array(flat[at], "w"),
        numpy_helper.from_array(indices.astype(np.int64), "i"),
        array.shape,
    )


def pruned(count):
    """``count`` numbers that are not zero, each the largest of its block."""
    w = np.zeros((K, N), np.float32)
    w.reshape(-1)[:: w.size // count][:count] = 6
    return w


@pytest.mark.parametrize("places", [1, 2], ids=["linear", "by dimension"])
@pytest.mark.parametrize("constant", [False, True])
def test_sparse_weights_stay_sparse(constant, places):
    proto = model([product("x", "w", "h"), product("h", "v", "y")], {"v": WEIGHTS["v"]})
    if constant:
        node = helper.make_node("Constant", [], ["w"])
        node.attribute.add(
            name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR
        ).sparse_tensor.CopyFrom(sparse(pruned(20), places))
        proto.graph.node.insert(0, node)
    else:
        proto.graph.sparse_initializer.append(sparse(pruned(20), places))
    report = assert_same(proto, 1)
    assert [s.reason for s in report.skipped] == ["weight is stored sparse, which takes fewer bytes"]
    held = report.model.graph
    assert (
        len(held.sparse_initializer)
        + sum(a.type == onnx.AttributeProto.SPARSE_TENSOR for node in held.node for a in node.attribute)
        == 1
    )


def test_a_sparse_weight_that_is_larger_than_mxfp4_is_converted():
    proto = model([product("x", "w", "y")], {})
    proto.graph.sparse_initializer.append(sparse(exact()))
    assert_same(proto, 1)


def test_a_sparse_weight_that_lies_about_its_size():
    proto = model([product("x", "w", "y")], {})
    proto.graph.sparse_initializer.append(sparse(pruned(20)))
    proto.graph.sparse_initializer[0].dims[:] = [2**40, 2**20]
    with pytest.raises(
        mxort.MxortError, match=r"sparse tensor 'w' of shape .* takes \d+ bytes, expected at most"
    ):
        mxort.convert(proto)
    proto.graph.sparse_initializer[0].dims[:] = [2, 3]
    with pytest.raises(mxort.MxortError, match="an index is outside of the shape"):
        mxort.convert(proto)


def test_domains_that_are_not_imported():
    gelu = helper.make_node("Gelu", ["h"], ["r"], domain="com.microsoft")
    nodes = [product("x", "w", "h", domain="ai.onnx"), gelu, product("r", "v", "y")]
    proto = model(nodes, WEIGHTS)
    source = model_io.from_memory(proto)
    assert dict(source.model.opset_imports) == {"": 17, "com.microsoft": 1}
    report = mxort.convert(proto)
    assert len(report.converted) == 2
    run(report.model, library=True)


def function(name, nodes, domain="local"):
    return helper.make_function(domain, name, ["a", "b"], ["c"], nodes, [helper.make_opsetid("", 17)])


def test_products_in_functions_are_converted():
    """One function calls another, twice in the model."""
    inner = function("inner", [product("a", "b", "c")])
    outer = helper.make_function(
        "local",
        "outer",
        ["a", "b"],
        ["c"],
        [
            helper.make_node("inner", ["a", "b"], ["p"], domain="local"),
            helper.make_node("Relu", ["p"], ["c"]),
        ],
        [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)],
    )
    nodes = [helper.make_node("outer", ["x", "w"], ["h"], domain="local")]
    nodes.append(helper.make_node("outer", ["h", "v"], ["y"], domain="local"))
    proto = model(nodes, WEIGHTS, functions=[inner, outer])
    proto.opset_import.append(helper.make_opsetid("local", 1))
    assert_same(proto, 2)


def test_functions_without_products_stay():
    twice = helper.make_function(
        "local",
        "twice",
        ["a"],
        ["c"],
        [helper.make_node("Add", ["a", "a"], ["c"])],
        [helper.make_opsetid("", 17)],
    )
    proto = model([product("x", "w", "h"), helper.make_node("twice", ["h"], ["y"], domain="local")], WEIGHTS)
    proto.functions.append(twice)
    proto.opset_import.append(helper.make_opsetid("local", 1))
    report = assert_same(proto, 1)
    assert "twice" in {f.name for f in report.model.functions}


@pytest.mark.parametrize("size", [-1, -7])
def test_negative_sizes_are_unknown(size):
    proto = model(chain(), WEIGHTS)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = size
    assert model_io.from_memory(proto).model.graph.inputs[0].shape.is_unknown_dim(0)
    assert_same(proto, 2)


def test_nodes_of_one_name():
    """onnx.checker takes them, onnxruntime does not: what we write opens."""
    nodes = [product("x", "w", "h", name="p"), product("h", "v", "y", name="p")]
    report = mxort.convert(model(nodes, WEIGHTS))
    assert [site.node for site in report.converted] == ["p", "p_2"]
    run(report.model, library=True)


def test_names_that_new_nodes_would_have():
    gemm = helper.make_node("Gemm", ["x", "w", "c"], ["h"], name="fc")
    relu = helper.make_node("Relu", ["h"], ["y"], name="fc_add_C")
    proto = model([gemm, relu], {"w": exact(), "c": np.ones((3, N), np.float32)})
    report = assert_same(proto, 1)
    names = [node.name for node in report.model.graph.node if node.name]
    assert len(names) == len(set(names))


def test_dead_nodes_go_and_unread_initializers_stay():
    nodes = [*chain(), product("x", "dead", "nowhere")]
    weights = WEIGHTS | {"dead": exact(3), "unread": np.ones(3, np.float32)}
    report = assert_same(model(nodes, weights), 2)
    names = {tensor.name for tensor in report.model.graph.initializer}
    assert "unread" in names and not any("dead" in name for name in names)


def test_everything_at_once():
    """Each step must stand what the others leave."""
    proto = model([*branches([product("h", "v", "y0", name="p")]), product("x", "w", "h", name="p")], WEIGHTS)
    proto.graph.sparse_initializer.append(sparse(pruned(20)))
    proto.graph.sparse_initializer[0].values.name = "s"
    proto.graph.node.append(helper.make_node("Gelu", ["t"], ["z"], domain="com.microsoft"))
    proto.graph.node.append(product("x", "s", "t"))
    proto.graph.output.append(info("z", "rows", "columns"))
    report = mxort.convert(proto)
    assert len(report.converted) == 2
    run(report.model, library=True)


@pytest.mark.parametrize(
    ("op_type", "inputs", "message"),
    [
        ("MatMul", ["x"], "MatMul 'n' has 1 inputs, expected at least the first 2"),
        ("MatMul", ["x", ""], "MatMul 'n' has 1 inputs, expected at least the first 2"),
        ("Gemm", [], "Gemm 'n' has 0 inputs, expected at least the first 2"),
        ("Gather", ["", "x"], "Gather 'n' has 1 inputs, expected at least the first 2"),
        ("Relu", [], "Relu 'n' has 0 inputs, expected at least the first 1"),
    ],
)
def test_inputs_that_are_missing(op_type, inputs, message, tmp_path):
    broken = model([helper.make_node(op_type, inputs, ["y"], name="n")], {})
    onnx.save(broken, tmp_path / "m.onnx")
    with pytest.raises(MxortError, match=re.escape(message)):
        mxort.convert(broken)
    with pytest.raises(MxortError, match=re.escape(message)):
        inspect(tmp_path / "m.onnx")


def test_optional_inputs_may_be_missing():
    """Clip without bounds, and a Gemm of two inputs."""
    nodes = [helper.make_node("Clip", ["x", "", ""], ["c"]), helper.make_node("Gemm", ["c", "w"], ["y"])]
    assert_same(model(nodes, {"w": exact()}), 1)


@pytest.mark.parametrize("opset", [0, -1])
def test_an_opset_that_is_none(opset):
    with pytest.raises(MxortError, match=f"imports an opset {opset}, expected 1 or later"):
        mxort.convert(model([product("x", "w", "y")], {"w": exact()}, opset=opset))
