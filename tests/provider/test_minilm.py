"""A real model end to end on the provider."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from simulated import run

import mxort
import oracle

pytestmark = pytest.mark.e2e

MINILM = (
    Path(__file__).parents[2] / "build" / "models" / "minilm" / "model.onnx"
)  # `make demo` leaves it there
PRODUCTS = 18
"""MatMulMXFP4 nodes of the converted model."""

LEVEL_3_ERROR = 3e-3
"""What each product promises where activations are not rounded, relative RMS."""

END_TO_END = 2 * LEVEL_3_ERROR * np.sqrt(PRODUCTS)
"""Of the model's outputs, between GPU and CPU: errors of either side add up as the root of their sum of squares. With a
format the products agree to 1e-6, but one operand that lies on the other side of a rounding boundary moves the outputs
by as much as this."""


@pytest.fixture(scope="module")
def minilm_mxfp4() -> onnx.ModelProto:
    model = mxort.convert(onnx.load(MINILM), fuse=False).model  # as for a GPU: docs/usage.md
    assert isinstance(model, onnx.ModelProto)
    return model


def minilm_run(model: str, inputs: str, target: str) -> dict[str, Any]:
    import gpu
    import numpy as np

    with gpu.registered():
        opened = gpu.session(model)
        names = [o.name for o in opened.get_outputs()]
        np.savez(target, **dict(zip(names, opened.run(None, dict(np.load(inputs))), strict=True)))
        placement = gpu.placement(opened)
        del opened
    return {"placement": placement, "live": gpu.live()}


def cases(model: onnx.ModelProto) -> list[tuple[str, str, oracle.Case]]:
    """(input, output, the node as the oracle sees it) of each product."""
    weights = {t.name: t for t in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type != "MatMulMXFP4":
            continue
        codes, scales, column_scale, bias = (numpy_helper.to_array(weights[name]) for name in node.input[1:])
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        case = oracle.Case(
            codes,
            scales,
            attributes["K"],
            attributes.get("rotation", 1),
            attributes["activation_format"].decode(),
            attributes.get("accuracy_level", 0),
            column_scale,
            bias,
        )
        found.append((node.input[0], node.output[0], case))
    return found


@pytest.mark.parametrize("activation_format", ["none", "mxfp8_e4m3", "mxfp6_e2m3", "mxfp4"])
def test_minilm(activation_format: str, minilm_mxfp4: onnx.ModelProto, tmp_path: Path) -> None:
    """Every product of the model, as it ran on the GPU inside the whole graph, against the oracle with the operand
    that it really had: so the accumulation's tolerance applies, where a comparison of the model's outputs would have to
    allow for operands that rounding put on the other side of a boundary."""
    path = tmp_path / "minilm.onnx"
    model = onnx.ModelProto()
    model.CopyFrom(minilm_mxfp4)
    for node in model.graph.node:  # the weights are the same for all formats
        for attribute in node.attribute:
            if attribute.name == "activation_format":
                attribute.s = activation_format.encode()
    onnx.save(model, path)
    products = cases(model)
    assert len(products) == PRODUCTS
    outputs = [o.name for o in model.graph.output]
    shown = {name for a, y, _ in products for name in (a, y)} - set(outputs)
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in sorted(shown)
    )
    onnx.save(model, tmp_path / "shown.onnx")
    tokens = np.random.default_rng(1).integers(1000, 30000, (2, 10))
    feeds = {i.name: tokens if "ids" in i.name else np.ones_like(tokens) for i in model.graph.input}
    np.savez(tmp_path / "x.npz", **feeds)
    result = run(minilm_run, *(str(tmp_path / n) for n in ("shown.onnx", "x.npz", "y.npz")))
    placement = result["placement"]
    assert placement["MxortExecutionProvider"].count("MatMulMXFP4") == PRODUCTS
    assert "MatMulMXFP4" not in placement["CPUExecutionProvider"]
    assert result["live"] == {}
    got = np.load(tmp_path / "y.npz")
    for a, y, case in products:
        x, result = got[a].reshape(-1, case.K), got[y].reshape(-1, case.N)
        if activation_format == "none":
            exact, _ = oracle.evaluate(case, x)
            assert oracle.relative_rms(result, exact) <= LEVEL_3_ERROR, y
        else:
            oracle.assert_close(case, x, result, y)
    on_cpu = mxort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(outputs, feeds)
    for name, expected in zip(outputs, on_cpu, strict=True):
        assert oracle.relative_rms(got[name], expected) <= END_TO_END, name
