"""Every candidate is found and has an outcome; what is left alone says why."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx.helper
import onnx_ir as ir
import pytest
from onnx import numpy_helper

import mxort
from mxort.converters import sites

TWO = "(T[b,k] x) => (T[b,n] y) "


def normal(*shape):
    return np.random.default_rng(1).standard_normal(shape, dtype=np.float32)


def skip_reasons(model, **selection):
    found = sites.find(ir.from_proto(model), sites.Selection(**selection))
    return {site.name: site.skip for site in found}


REASONS = {
    "computed": (
        "(T[b,s,k] x, T[b,k,n] w) => (T[b,s,n] y) { y = MatMul(x, w) }",
        {},
        "no operand is constant",
    ),
    "left": (TWO + "{ y = Gemm(w, x) }", {"w": normal(64, 64)}, "the constant is the left operand"),
    "batched": (
        "(T[b,s,k] x) => (T[b,s,n] y) { y = MatMul(x, w) }",
        {"w": normal(4, 64, 32)},
        "weight of shape [4, 64, 32] is not a matrix",
    ),
    "vector": (
        "(T[b,k] x) => (T[b] y) { y = MatMul(x, w) }",
        {"w": normal(64)},
        "weight of shape [64] is not a matrix",
    ),
    "adds a dimension": (
        "(T[b,k] x) => (T[a,b,n] y) { y = MatMul(x, w) }",
        {"w": normal(1, 64, 32)},
        "weight of shape [1, 64, 32] adds dimensions to A of rank 2",
    ),
    "no elements": (
        TWO + "{ y = MatMul(x, w) }",
        {"w": normal(64, 0)},
        "weight of shape [64, 0] has no elements",
    ),
    "no length": (
        TWO + "{ y = MatMul(x, w) }",
        {"w": normal(0, 64)},
        "weight of shape [0, 64] has no elements",
    ),
    "tiny K": (
        TWO + "{ y = MatMul(x, w) }",
        {"w": normal(3, 1024)},
        "weight of shape [3, 1024] would not become smaller",
    ),
    "double": (
        "(double[b,k] x) => (double[b,n] y) { y = MatMul(x, w) }",
        {"w": normal(64, 32).astype(np.float64)},
        "weight is double; float, float16 and bfloat16 are converted",
    ),
    "integer": (
        "(int32[b,k] x) => (int32[b,n] y) { y = MatMul(x, w) }",
        {"w": np.ones((64, 32), np.int32)},
        "weight is int32; float, float16 and bfloat16 are converted",
    ),
    "dequantized": (
        TWO + "{ w = DequantizeLinear(q, s) y = MatMul(x, w) }",
        {"q": np.arange(2048).reshape(64, 32).astype(np.int8), "s": np.float32(1) * np.ones((), np.float32)},
        "weight is quantised already (DequantizeLinear)",
    ),
    "cast from int8": (
        TWO + "{ w = Cast<to=1>(q) y = MatMul(x, w) }",
        {"q": np.ones((64, 32), np.int8)},
        "weight is cast from INT8 to FLOAT",
    ),
    "constant subgraph": (
        TWO + "{ f = Cast<to=1>(q) w = Mul(f, s) y = MatMul(x, w) }",
        {"q": np.ones((64, 32), np.int8), "s": normal(32)},
        "weight is cast from INT8 to FLOAT",
    ),
    "sum with an input": (
        TWO + "{ w = Add(v, x) y = MatMul(x, w) }",
        {"v": normal(64, 64)},
        "no operand is constant",
    ),
    "gemm, beta and computed C": (
        "(T[b,k] x, T[b,n] c) => (T[b,n] y) { y = Gemm<beta=0.5>(x, w, c) }",
        {"w": normal(64, 32)},
        "beta is 0.5 and C is not a constant row of 32 numbers",
    ),
}


@pytest.mark.parametrize(("text", "weights", "reason"), REASONS.values(), ids=REASONS)
def test_reason(tools, text, weights, reason):
    model = tools.make_model(text, weights)
    before = model.SerializeToString()
    (found,) = [r for name, r in skip_reasons(model).items() if name.startswith(("MatMul", "Gemm"))]
    assert found == reason
    report = mxort.convert(model)
    assert report.converted == ()
    assert report.warnings == ("nothing was converted",)
    after = onnx.ModelProto.FromString(report.model.SerializeToString())
    assert after.opset_import == onnx.ModelProto.FromString(before).opset_import
    assert after.metadata_props == model.metadata_props, "a model that was not converted is not marked"
    assert not after.functions


@pytest.mark.parametrize(
    ("selection", "reason"),
    [
        ({"min_elements": 2049}, "weight has 2048 elements, fewer than min_elements = 2049"),
        ({"min_elements": 2048}, ""),
        ({"op_types": ("Gemm",)}, "op_types leaves MatMul alone"),
        ({"name_reason": lambda name: f"not {name}"}, "not MatMul_0"),
    ],
)
def test_selection(tools, selection, reason):
    model = tools.make_model(TWO + "{ y = MatMul(x, w) }", {"w": normal(64, 32)})
    assert skip_reasons(model, **selection) == {"MatMul_0": reason}


def test_patterns_of_the_recipe(tools):
    text = TWO + "{ [enc_0] a = MatMul(x, w) [enc_1] b = MatMul(a, w) [dec_0] y = MatMul(b, w) }"
    model = tools.make_model(text, {"w": normal(64, 64)})
    report = mxort.convert(model, include=("enc_*",), exclude=("*_1",))
    assert [s.node for s in report.converted] == ["enc_0"]
    assert [(s.node, s.reason) for s in report.skipped] == [
        ("enc_1", "excluded by pattern '*_1'"),
        ("dec_0", "matches no include pattern"),
    ]


def test_nameless_node_is_called_after_its_output(tools):
    model = tools.make_model(TWO + "{ y = MatMul(x, w) }", {"w": normal(64, 64)})
    model.graph.node[0].ClearField("name")
    assert skip_reasons(model) == {"MatMul(y)": ""}


def test_ids_are_unique_where_names_are_not(tools):
    text = TWO + "{ [fc] a = MatMul(x, w) [fc] b = MatMul(a, w) y = Relu(b) }"
    found = sites.find(ir.from_proto(tools.make_model(text, {"w": normal(64, 64)})), sites.Selection())
    assert [(s.name, s.id) for s in found] == [("fc", "a"), ("fc", "b")]


def test_branches_that_use_a_name_twice_have_two_ids(tools):
    text = """(bool c, T[b,k] x) => (T[b,n] y) { y = If (c) <
        then_branch = g1 () => (T[b,n] r) { [fc] r = MatMul(x, w) },
        else_branch = g2 () => (T[b,n] r) { [fc] r = MatMul(x, v) } > }"""
    model = tools.make_model(text, {"w": normal(64, 64), "v": normal(64, 64)})
    found = sites.find(ir.from_proto(model), sites.Selection())
    assert [(s.name, s.id, s.weight.name) for s in found] == [("fc", "r", "w"), ("fc", "r#2", "v")]


def test_the_id_of_an_operator_without_its_first_output(tools):
    text = "(T[s,b,32] x) => (T[d,b,h] z) { none, z = LSTM<hidden_size=16>(x, w, r) }"
    model = tools.make_model(text, {"w": normal(1, 64, 32), "r": normal(1, 64, 16)})
    model.graph.node[0].output[0] = ""
    model.graph.node[0].ClearField("name")
    (site,) = sites.find(ir.from_proto(model), sites.Selection())
    assert (site.id, site.name) == ("z", "LSTM(z)")


@pytest.mark.parametrize("ir_version", [3, 4, 8])
def test_initializer_that_is_a_graph_input(tools, ir_version):
    """A default that may be overridden, except before IR version 4: there all initializers were inputs."""
    model = tools.make_model(
        "(T[b,k] x, T[64,32] w) => (T[b,n] y) { y = MatMul(x, w) }", {"w": normal(64, 32)}
    )
    model.ir_version = ir_version
    (reason,) = skip_reasons(model).values()
    if ir_version >= 4:
        assert reason == "weight is the default of a graph input, which a caller may override"
        return
    converted = mxort.convert(model).model
    assert [i.name for i in converted.graph.input] == ["x"]
    x = normal(2, 64)
    expected = x @ tools.fake_quantize(normal(64, 32))
    np.testing.assert_allclose(tools.run_onnxruntime(converted, {"x": x})[0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rotation", [1, 64])
def test_not_finite(tools, bad, strict, rotation):
    w = normal(64, 32)
    w[5, 7] = bad
    model = tools.make_model(TWO + "{ a = MatMul(x, v) y = MatMul(x, w) }", {"v": normal(64, 32), "w": w})
    if strict:
        with pytest.raises(mxort.MxortError, match=r"node 'MatMul_1': weight 'w' has a NaN or an infinity"):
            mxort.convert(model, strict=True, rotation=rotation)
        return
    report = mxort.convert(model, rotation=rotation)
    assert [(s.node, s.reason) for s in report.skipped] == [
        ("MatMul_1", "weight 'w' has a NaN or an infinity")
    ]
    kept = {t.name: numpy_helper.to_array(t) for t in report.model.graph.initializer}
    np.testing.assert_array_equal(kept["w"], w)
    assert "v" not in kept


def test_inside_a_function(tools):
    """A function's weights reach it as inputs or are its constants; both are reported."""
    model = tools.make_model(TWO + "{ y = local.linear(x) }", {})
    inner = [
        onnx.helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(normal(64, 32))),
        onnx.helper.make_node("MatMul", ["a", "w"], ["b"], name="inner"),
    ]
    imports = [onnx.helper.make_opsetid("", 17)]
    model.functions.append(onnx.helper.make_function("local", "linear", ["a"], ["b"], inner, imports))
    model.opset_import.append(onnx.helper.make_opsetid("local", 1))
    assert skip_reasons(model) == {
        "inner": "is inside the model-local function local::linear (inline it first)"
    }


OTHERS = {
    "Conv": ("(T[b,3,h,v] x) => (T[b,8,h,v] y) { y = Conv(x, w) }", normal(8, 3, 3, 3)),
    "ConvTranspose": ("(T[b,3,h,v] x) => (T[b,8,h,v] y) { y = ConvTranspose(x, w) }", normal(3, 8, 3, 3)),
    "Einsum": (TWO + '{ y = Einsum<equation="bk,kn->bn">(x, w) }', normal(64, 32)),
    "Gather": ("(int64[b] x) => (T[b,n] y) { y = Gather(w, x) }", normal(100, 32)),
    "LSTM": ("(T[s,b,32] x) => (T[s,d,b,h] y) { y = LSTM<hidden_size=16>(x, w, r) }", normal(1, 64, 32)),
    "MatMulInteger": (
        "(uint8[b,k] x) => (int32[b,n] y) { y = MatMulInteger(x, w) }",
        np.ones((64, 32), np.int8),
    ),
    "MatMulNBits": (
        TWO + "{ y = com.microsoft.MatMulNBits<K=64, N=32, bits=4, block_size=32>(x, w, s) }",
        np.ones((32, 2, 16), np.uint8),
    ),
    "Attention": (
        "(T[b,s,k] x) => (T[b,s,n] y) { y = com.microsoft.Attention<num_heads=2>(x, w) }",
        normal(64, 192),
    ),
    "FusedMatMul": (TWO + "{ y = com.microsoft.FusedMatMul(x, w) }", normal(64, 32)),
}


@pytest.mark.parametrize("op_type", OTHERS)
def test_other_operators_with_weights_are_reported(tools, op_type):
    text, weight = OTHERS[op_type]
    others = {"r": normal(1, 64, 16)} if op_type == "LSTM" else {}
    others |= {"s": normal(64)} if op_type == "MatMulNBits" else {}
    model = tools.make_model(text, {"w": weight, **others})
    domain = model.graph.node[0].domain
    (reason,) = skip_reasons(model, min_elements=64).values()
    assert reason == sites.OTHER_WEIGHT_OPS[(domain, op_type)]
    assert skip_reasons(model, min_elements=10**6) == {}


def test_activation_products_of_other_operators_are_not_reported(tools):
    model = tools.make_model(
        '(T[a,b] x, T[b,c] z) => (T[a,c] y) { y = Einsum<equation="ab,bc->ac">(x, z) }', {}
    )
    assert skip_reasons(model) == {}


def test_bfloat16_and_half_are_converted(tools):
    for name, dtype in (("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)):
        model = tools.make_model(
            f"({name}[b,k] x) => ({name}[b,n] y) {{ y = MatMul(x, w) }}", {"w": normal(64, 32).astype(dtype)}
        )
        assert skip_reasons(model) == {"MatMul_0": ""}
