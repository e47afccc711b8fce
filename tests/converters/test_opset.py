"""Raising the opset: only as far as needed, and without changing what a model computes."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx.defs
import onnx.helper
import pytest

import mxort
from mxort.converters import opset
from mxort.converters.functions import MIN_OPSET


def normal(*shape):
    return np.random.default_rng(5).standard_normal(shape, dtype=np.float32)


def versions(model):
    return {o.domain: o.version for o in model.opset_import}


@pytest.mark.parametrize("version", range(11, 23))
def test_every_opset(check, tools, version):
    def build(weights, dtype):
        return tools.make_model(
            "(T[b,k] x) => (T[b,n] y) { y = MatMul(x, w) }", weights, opset=version, dtype=dtype, ir_version=7
        )

    model = check(build, {"w": normal(64, 32)}, {"x": normal(3, 64)})
    assert versions(model)[""] == max(version, MIN_OPSET)
    assert model.ir_version == opset.IR_VERSION
    (function,) = model.functions
    assert {o.domain: o.version for o in function.opset_import} == {"": max(version, MIN_OPSET)}


def test_later_versions_are_kept(tools):
    model = tools.make_model(
        "(T[b,k] x) => (T[b,n] y) { y = MatMul(x, w) }", {"w": normal(64, 32)}, opset=23, ir_version=11
    )
    converted = mxort.convert(model).model
    assert (converted.ir_version, versions(converted)[""]) == (11, 23)


def test_too_old(tools):
    model = tools.make_model("(T[b,k] x) => (T[b,n] y) { y = MatMul(x, w) }", {"w": normal(64, 32)}, opset=10)
    with pytest.raises(mxort.MxortError, match="opset 10 is too old to be raised to 15") as caught:
        mxort.convert(model)
    assert "\n" not in str(caught.value)


def test_long_name_of_the_default_domain(tools):
    model = tools.make_model("(T[b,k] x) => (T[b,n] y) { y = MatMul(x, w) }", {"w": normal(64, 32)}, opset=13)
    model.opset_import[0].domain = "ai.onnx"
    converted = mxort.convert(model).model
    assert versions(converted) == {"": MIN_OPSET, "com.microsoft": 1, "mxort": 1}
    expected = normal(3, 64) @ tools.fake_quantize(normal(64, 32))
    np.testing.assert_allclose(tools.run_reference(converted, {"x": normal(3, 64)})[0], expected, atol=1e-4)


ADAPTED = {
    "Softmax, last axis": "y = Softmax<axis=2>(p)",
    "Softmax, default axis": "y = Softmax(p)",
    "Softmax, first axis": "y = Softmax<axis=0>(p)",
    "Softmax, negative axis": "y = Softmax<axis=-2>(p)",
    "LogSoftmax": "y = LogSoftmax<axis=1>(p)",
    "Hardmax": "y = Hardmax<axis=1>(p)",
    "ReduceSum": "y = ReduceSum<axes=[1], keepdims=0>(p)",
    "ReduceSum of all": "y = ReduceSum(p)",
    "Squeeze": "u = Unsqueeze<axes=[0, 3]>(p) q = Squeeze<axes=[3]>(u) y = Relu(q)",
    "Squeeze of all": "u = Unsqueeze<axes=[0]>(p) y = Squeeze(u)",
    "Split": "a, b = Split<axis=2, split=[10, 22]>(p) y = Concat<axis=2>(b, a)",
    "Split evenly": "a, b = Split<axis=2>(p) y = Concat<axis=2>(b, a)",
    "Dropout": "y = Dropout<ratio=0.5>(p)",
    "BatchNormalization": "t = Transpose<perm=[0,2,1]>(p) y = BatchNormalization(t, s, s, s, s)",
    "in a branch": "t = Constant<value = bool {1}>() "
    "y = If (t) <then_branch = a () => (float[b,s,n] c) { c = Softmax<axis=1>(p) }, "
    "else_branch = d () => (float[b,s,n] e) { f = Unsqueeze<axes=[0]>(p) e = Squeeze<axes=[0]>(f) }>",
}


@pytest.mark.parametrize("known_shapes", [True, False])
@pytest.mark.parametrize("version", [11, 12])
@pytest.mark.parametrize("body", ADAPTED.values(), ids=ADAPTED)
def test_adapters_change_nothing_but_the_version(tools, body, version, known_shapes):
    """The original at its opset and the converted one at 15 differ by rounding alone in onnxruntime."""
    if version == 12:
        body = body.replace("Dropout<ratio=0.5>", "Dropout")  # the ratio is an input from 12 on
    text = "(T[b,s,k] x) => (T[] y) { p = MatMul(x, w) " + body + " }"
    weights = {"w": tools.fake_quantize(normal(64, 32)), "s": np.abs(normal(32)) + 1}
    model = tools.make_model(text, weights, opset=version, ir_version=7)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    if known_shapes:
        model = onnx.shape_inference.infer_shapes(model)
    feeds = {"x": normal(2, 3, 64)}
    expected = tools.run_onnxruntime(model, feeds)[0]
    converted = mxort.convert(model).model
    assert versions(converted)[""] == MIN_OPSET
    onnx.shape_inference.infer_shapes(converted, check_type=True, strict_mode=True)
    assert [o.name for o in converted.graph.output] == ["y"]
    for run in (tools.run_onnxruntime, tools.run_reference):
        got = run(converted, feeds)[0]
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_functions_are_raised_too(tools):
    model = tools.make_model(
        "(T[b,k] x) => (T[b,n] y) { p = MatMul(x, w) y = local.soft(p) }", {"w": normal(64, 32)}, opset=12
    )
    body = [
        onnx.helper.make_node("Unsqueeze", ["a"], ["u"], axes=[1]),
        onnx.helper.make_node("Softmax", ["u"], ["b"]),
    ]
    imports = [onnx.helper.make_opsetid("", 12)]
    model.functions.append(onnx.helper.make_function("local", "soft", ["a"], ["b"], body, imports))
    model.opset_import.append(onnx.helper.make_opsetid("local", 1))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model.ir_version = 8
    feeds = {"x": normal(2, 64)}
    weights = {t.name: t for t in model.graph.initializer}
    weights["w"].raw_data = tools.fake_quantize(normal(64, 32)).tobytes()
    expected = tools.run_reference(model, feeds)[0]
    converted = mxort.convert(model).model
    assert {f.name: f.opset_import[0].version for f in converted.functions} == {"soft": 15, "MatMulMXFP4": 15}
    np.testing.assert_allclose(tools.run_onnxruntime(converted, feeds)[0], expected, rtol=1e-4, atol=1e-5)


def test_attribute_of_a_function_cannot_become_an_input(tools):
    model = tools.make_model(
        "(T[b,k] x) => (T[] y) { p = MatMul(x, w) y = local.wide<axes=[1]>(p) }",
        {"w": normal(64, 32)},
        opset=12,
    )
    node = onnx.helper.make_node("Unsqueeze", ["a"], ["b"])
    node.attribute.add(name="axes", ref_attr_name="axes", type=onnx.AttributeProto.INTS)
    function = onnx.helper.make_function(
        "local", "wide", ["a"], ["b"], [node], [onnx.helper.make_opsetid("", 12)], ["axes"]
    )
    model.functions.append(function)
    model.opset_import.append(onnx.helper.make_opsetid("local", 1))
    model.ir_version = 8
    with pytest.raises(mxort.MxortError, match="takes 'axes' from its function"):
        mxort.convert(model)


def test_training_batch_normalization_is_refused(tools):
    text = (
        "(T[b,s,k] x) => (T[] y, T[] m) { p = MatMul(x, w) "
        "y, m, v, a, c = BatchNormalization(p, s, s, s, s) }"
    )
    model = tools.make_model(text, {"w": normal(64, 32), "s": normal(32)}, opset=11)
    with pytest.raises(mxort.MxortError, match="BatchNormalization in training mode"):
        mxort.convert(model)


def changed_operators():
    """(version, operator, older, newer schema) of every change of the default domain after OLDEST."""
    history: dict[str, list[onnx.defs.OpSchema]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            history.setdefault(schema.name, []).append(schema)
    for name, schemas in sorted(history.items()):
        schemas.sort(key=lambda s: s.since_version)
        for older, newer in itertools.pairwise(schemas):
            if opset.OLDEST < newer.since_version <= opset.NEWEST:
                yield newer.since_version, name, older, newer


NARROWED = {
    "Erf": "opset 13 dropped integers, of which no model takes the error function",
    "QuantizeLinear": "opset 23 calls T3 what was T2, and takes scales of a type of their own",
}


def accepts(newer, older):
    """Whether every node valid by the older schema is valid by the newer, as far as schemas can tell."""
    types = lambda s: {c.type_param_str: set(c.allowed_type_strs) for c in s.type_constraints}  # noqa: E731
    inputs = [(p.name, p.option) for p in older.inputs]
    return (
        set(older.attributes) <= set(newer.attributes)
        and all(not a.required or n in older.attributes for n, a in newer.attributes.items())
        and len(newer.inputs) >= len(inputs)
        and all(
            i.option != onnx.defs.OpSchema.FormalParameterOption.Single for i in newer.inputs[len(inputs) :]
        )
        and len(newer.outputs) == len(older.outputs)
        and (older.name in NARROWED or all(v <= types(newer).get(k, v) for k, v in types(older).items()))
        and all(
            a.default_value == newer.attributes[n].default_value
            for n, a in older.attributes.items()
            if n in newer.attributes
        )
        and not newer.deprecated
    )


@pytest.mark.parametrize(
    ("version", "name", "older", "newer"),
    [pytest.param(*row, id=f"{row[1]}-{row[0]}") for row in changed_operators()],
)
def test_table_covers_every_incompatible_change(version, name, older, newer):
    """An operator outside the table must accept its older nodes."""
    if (version, name) not in opset.ADAPTERS and (version, name) not in opset.REFUSED:
        assert accepts(newer, older)
