"""Normalisations in the launch of the products that read them: the bits of the nodes apart, and fewer launches."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from simulated import run

import op_model
import oracle

TYPES = {"float": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
FORMS = {
    "LayerNormalization": ("", ["x", "scale", "shift"], 1),
    "RMSNormalization": ("", ["x", "scale"], 1),
    "SimplifiedLayerNormalization": ("", ["x", "scale"], 1),
    "SkipLayerNormalization": ("com.microsoft", ["x", "skip", "scale", "shift", "bias"], 4),
    "SkipSimplifiedLayerNormalization": ("com.microsoft", ["x", "skip", "scale", "bias"], 4),
}
"""Domain, inputs, and how many outputs there are before and with the sum."""

ACTIVATION_FORMATS = ["none", "mxfp8_e4m3", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp4"]
K = 160


def normalised(
    proto: onnx.ModelProto,
    form: str,
    kind: str,
    sum_wanted: bool = False,
    second: onnx.ModelProto | None = None,
) -> onnx.ModelProto:
    """The one product of ``proto`` behind a normalisation; ``second``: another product of the same rows, to Y2."""
    domain, names, outputs = FORMS[form]
    rng = np.random.default_rng(len(form))
    elem = TYPES[kind]
    graph = proto.graph
    (node,) = (n for n in graph.node if n.name == "node")
    constants = [n for n in names if n not in ("x", "skip")]
    for name in constants:
        values = rng.standard_normal(K).tolist()
        graph.initializer.append(helper.make_tensor(f"norm_{name}", elem, [K], values))
    made = ["normal", *[""] * (outputs - 2), "total"] if sum_wanted and outputs > 1 else ["normal"]
    inputs = ["A_in" if n in ("x", "skip") else f"norm_{n}" for n in names]
    extra = [helper.make_node(form, inputs, made, name="norm", domain=domain, epsilon=1e-5)]
    node.input[0] = "normal"
    outside = graph.output[0].type.tensor_type.elem_type
    if sum_wanted and outputs > 1:
        extra.append(helper.make_node("Cast", ["total"], ["S"], to=outside))
        graph.output.append(helper.make_tensor_value_info("S", outside, None))
    if second is not None:
        (other,) = (n for n in second.graph.node if n.name == "node")
        renamed = [f"second_{name}" for name in other.input[1:]]
        for tensor in second.graph.initializer:
            tensor.name = f"second_{tensor.name}"
            graph.initializer.append(tensor)
        other.name = "second"
        del other.input[:], other.output[:]
        other.input.extend(["normal", *renamed])
        other.output.append("Y2_out")
        extra += [other, helper.make_node("Cast", ["Y2_out"], ["Y2"], to=outside)]
        graph.output.append(helper.make_tensor_value_info("Y2", outside, None))
        known = {f.name for f in proto.functions}
        proto.functions.extend(f for f in second.functions if f.name not in known)
    nodes = [graph.node[0], *extra, *graph.node[1:]]
    del graph.node[:]
    graph.node.extend(nodes)
    if form == "RMSNormalization":
        proto.opset_import[0].version = 23
    elif domain:
        proto.opset_import.append(helper.make_opsetid(domain, 1))
    return proto


def compared(folder: str, count: int, width: int) -> list[dict[str, Any]]:
    """In the child: every model with and without fusion, few rows and many: whether all bits agree, and launches."""
    import gpu
    import numpy as np

    results: list[dict[str, Any]] = []
    with gpu.registered():
        for i in range(count):
            made: dict[str, Any] = {"equal": [], "launches": {}, "finite": True}
            sessions = {on: gpu.session(f"{folder}/{i}.onnx", options={"fusion": on}) for on in (0, 1)}
            made["placement"] = [gpu.placement(s) for s in sessions.values()]
            for rows in (1, 5, 40):
                rng = np.random.default_rng(rows)
                dtype = np.float16 if "float16" in sessions[0].get_inputs()[0].type else np.float32
                a = rng.standard_normal((1, rows, width)).astype(dtype)
                outputs = {}
                for on, opened in sessions.items():
                    before = gpu.sim.counters()["launches"]
                    outputs[on] = opened.run(None, {"A": a})
                    made["launches"].setdefault(str(rows), []).append(gpu.sim.counters()["launches"] - before)
                made["equal"] += [np.array_equal(x, y) for x, y in zip(*outputs.values(), strict=True)]
                made["finite"] &= all(bool(np.isfinite(y).all()) for y in outputs[1])
            results.append(made)
            del sessions, opened
    return [*results, {"live": gpu.live()}]


def check(folder: Path, models: list[onnx.ModelProto], **variables: str) -> list[dict[str, Any]]:
    for i, proto in enumerate(models):
        onnx.save(proto, folder / f"{i}.onnx")
    *results, last = run(compared, str(folder), len(models), K, **variables)
    assert last["live"] == {}
    for result in results:
        assert all(result["equal"]) and result["finite"], result
        assert result["placement"][0] == result["placement"][1]
        assert list(result["placement"][1]) == ["MxortExecutionProvider"]
    return results


def test_every_normalisation_and_format(tmp_path: Path) -> None:
    models = []
    for kind in TYPES:
        rng = np.random.default_rng(6)
        pairs = (
            itertools.product(FORMS, ACTIVATION_FORMATS)
            if kind == "float16"
            else zip(FORMS, ACTIVATION_FORMATS, strict=True)
        )
        for form, fmt in pairs:
            case = oracle.random_case(rng, 40, K, 32, activation_format=fmt)
            models.append(
                normalised(op_model.model(case, elem_type=TYPES[kind]), form, kind, sum_wanted=fmt != "none")
            )
    for result in check(tmp_path, models):
        for rows in ("1", "5"):
            apart, fused = result["launches"][rows]
            assert apart - fused == 1
        apart, fused = result["launches"]["40"]  # more rows than one kernel takes: the same launches
        assert apart == fused


@pytest.mark.parametrize("arch", ["gfx950", "gfx942"])
def test_gates_and_products_that_share_rows(arch: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    one, two, three = (oracle.random_case(rng, n, K, accuracy_level=1) for n in (40, 40, 24))
    gate = op_model.model(one, activation=4, factor=two)
    models = [
        normalised(gate, "SkipSimplifiedLayerNormalization", "float", sum_wanted=True),
        normalised(op_model.model(one), "RMSNormalization", "float", second=op_model.model(three)),
        normalised(
            op_model.model(one),
            "SkipLayerNormalization",
            "float",
            sum_wanted=True,
            second=op_model.model(three),
        ),
    ]
    results = check(tmp_path, models, HIPSIM_DEVICES=arch)
    for result in results:
        apart, fused = result["launches"]["5"]
        assert apart - fused == 1  # each of two products normalises the rows itself


def added_before(
    proto: onnx.ModelProto, kind: str, other: list[int] | None, sum_wanted: bool
) -> onnx.ModelProto:
    """The normalisation of ``proto`` behind a sum: of its rows and their sines, or a constant of shape ``other``."""
    graph = proto.graph
    (norm,) = (n for n in graph.node if n.name == "norm")
    norm.input[0] = "sum"
    extra = [helper.make_node("Add", ["A_in", "other"], ["sum"], name="add")]
    if other is None:
        extra.insert(0, helper.make_node("Sin", ["A_in"], ["other"]))
    else:
        values = np.random.default_rng(len(other)).standard_normal(int(np.prod(other))).tolist()
        graph.initializer.append(helper.make_tensor("other", TYPES[kind], other, values))
    outside = graph.output[0].type.tensor_type.elem_type
    if sum_wanted:
        extra.append(helper.make_node("Cast", ["sum"], ["S"], to=outside))
        graph.output.append(helper.make_tensor_value_info("S", outside, None))
    nodes = [graph.node[0], *extra, *graph.node[1:]]
    del graph.node[:]
    graph.node.extend(nodes)
    if norm.op_type != "RMSNormalization" and not norm.domain:
        proto.opset_import[0].version = max(proto.opset_import[0].version, 22)  # Sin of bfloat16
    return proto


SUMS = {
    "its own shape": None,
    "rows": [K],
    "rows of a batch": [1, 1, K],
    "a number": [],
    "more of them": [2, 1, K],
}


def test_sums_that_are_normalised(tmp_path: Path) -> None:
    """The sum is part of the launch; one that is no rows of the other operand's shape has a launch of its own."""
    rng = np.random.default_rng(10)
    forms = [form for form, (domain, _, _) in FORMS.items() if not domain]
    made = []
    for i, (kind, shape) in enumerate(itertools.product(TYPES, SUMS)):
        case = oracle.random_case(rng, 40, K, 32, activation_format=ACTIVATION_FORMATS[i % 5])
        proto = normalised(op_model.model(case, elem_type=TYPES[kind]), forms[i % 3], kind)
        made.append(added_before(proto, kind, SUMS[shape], sum_wanted=i % 2 == 0))
    results = check(tmp_path, made)
    for (_, shape), result in zip(itertools.product(TYPES, SUMS), results, strict=True):
        for rows, most in (("1", 2), ("5", 2), ("40", 1)):  # 40 are more rows than one kernel takes
            apart, fused = result["launches"][rows]
            own = shape == "a number" or (shape == "more of them" and rows != "1")
            assert apart - fused == most - own, (shape, rows)


def test_a_sum_that_is_normalised_for_others(tmp_path: Path) -> None:
    """No quantised product reads the rows: one launch for two nodes."""
    case = oracle.random_case(np.random.default_rng(11), 40, K, accuracy_level=1)
    proto = added_before(normalised(op_model.model(case), "LayerNormalization", "float"), "float", None, True)
    (node,) = (n for n in proto.graph.node if n.name == "node")
    node.input[0] = "A_in"
    proto.graph.output.append(helper.make_tensor_value_info("normal", TensorProto.FLOAT, None))
    (result,) = check(tmp_path, [proto])
    assert all(apart - fused == 1 for apart, fused in result["launches"].values())


def test_normalised_rows_that_others_read_too(tmp_path: Path) -> None:
    """Another operator and the application get what the product's kernel made of the rows."""
    case = oracle.random_case(np.random.default_rng(8), 40, K, accuracy_level=1)
    proto = normalised(op_model.model(case), "SkipSimplifiedLayerNormalization", "float", sum_wanted=True)
    proto.graph.node.append(helper.make_node("Neg", ["normal"], ["negative"]))
    for name in ("normal", "negative"):
        proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    (result,) = check(tmp_path, [proto])
    apart, fused = result["launches"]["1"]
    assert apart - fused == 1


def test_what_is_not_fused(tmp_path: Path) -> None:
    """A normalisation along several axes; one whose rows no quantised product reads."""
    case = oracle.random_case(np.random.default_rng(9), 40, K, accuracy_level=1)
    axes = normalised(op_model.model(case, dims=(1, "M")), "LayerNormalization", "float")
    (norm,) = (n for n in axes.graph.node if n.name == "norm")
    norm.attribute.append(helper.make_attribute("axis", 2))  # the last, but not said as -1
    other = normalised(op_model.model(case), "RMSNormalization", "float")
    (node,) = (n for n in other.graph.node if n.name == "node")
    node.input[0] = "A_in"
    other.graph.output.append(helper.make_tensor_value_info("normal", TensorProto.FLOAT, None))
    for result in check(tmp_path, [axes, other]):
        assert all(apart == fused for apart, fused in result["launches"].values())
