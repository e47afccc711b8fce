"""GroupQueryAttention nodes of com.microsoft get this library's kernel, or keep theirs and say why."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

import mxort
from attention_models import SIZE, decoder, feeds
from mxort.converters import attention
from op_model import session


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("length", "past"), [(1, 40), (20, 0)])
def test_the_same_with_and_without(packed: bool, length: int, past: int) -> None:
    proto = decoder(packed=packed, softcap=3.0)
    fused = mxort.convert(proto, accuracy_level=1).model
    plain = mxort.convert(proto, accuracy_level=1, fuse=False).model
    onnx.checker.check_model(fused)
    assert [(n.domain, n.op_type) for n in fused.graph.node if n.op_type == attention.NAME] == [
        ("mxort", attention.NAME)
    ]
    assert [n.domain for n in plain.graph.node if n.op_type == attention.NAME] == ["com.microsoft"]
    assert ("Concat" in {n.op_type for n in fused.graph.node}) != packed
    f = feeds(length, past)
    want = session(plain).run(None, f)
    for got in (session(fused).run(None, f), session(fused, library=False).run(None, f)):
        for x, y in zip(got, want, strict=True):
            # Two products in float, 1e-6 each, and a softmax between them that doubles the first.
            assert np.linalg.norm(x - y) <= 4e-6 * np.linalg.norm(y)


@pytest.mark.parametrize(("packed", "known"), [(True, SIZE), (False, "kv_cache_dim")])
def test_a_cache_of_named_size_gets_its_number(packed: bool, known: int | str) -> None:
    """genai's builder writes a name. The other dimensions keep theirs; what a Split gives has no known width."""
    proto = decoder(packed=packed)
    caches = [v for v in (*proto.graph.input, *proto.graph.output) if v.name.startswith(("past", "present"))]
    for value in caches:
        value.type.tensor_type.shape.dim[3].dim_param = "kv_cache_dim"
    made = mxort.convert(proto).model
    onnx.checker.check_model(made)
    assert [n.domain for n in made.graph.node if n.op_type == attention.NAME] == ["mxort"]
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*made.graph.input, *made.graph.output)
    }
    for before in caches:
        assert shapes[before.name] == ["b", 2, "past" if "past" in before.name else "all", known]
    assert len(caches) == 4
    assert session(made).run(None, feeds(1, 40))[1].shape == (1, 2, 41, SIZE)


NAME_IN = attention.NAME
REFUSED = [
    ({"qk_output": 1}, "attribute qk_output"),
    ({"something_new": 1}, "attribute something_new"),
    ({"do_rotary": 0}, "it does not rotate"),
    ({"cache": TensorProto.FLOAT16}, "its cache is not float, or of unknown type"),
    ({"extra": ("positions",)}, "it has an input beyond sin_cache (positions, a bias, scales)"),
]


@pytest.mark.parametrize(("changes", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_what_the_kernel_does_not_know_is_left_alone(changes: dict[str, Any], reason: str) -> None:
    model = ir.serde.deserialize_model(decoder(**changes))
    fused = attention.fuse(model)
    assert (fused.count, dict(fused.left)) == (0, {reason: 1})
    assert "mxort" not in model.opset_imports and not model.functions


WIDER = [
    ({"local_window_size": 16}, attention.WINDOW),
    ({"smooth_softmax": 1}, attention.SINK),
    ({"local_window_size": 3, "smooth_softmax": 1}, attention.SINK),
    ({"sink": True}, attention.SINK),
]


@pytest.mark.parametrize("cache", ["float", "mxfp8"])
@pytest.mark.parametrize(("options", "operator"), WIDER, ids=str)
def test_windows_and_sinks(options: dict[str, Any], operator: str, cache: str) -> None:
    """Their own operators. With a cache that is rounded the function attends before that: only floats are compared."""
    proto = decoder(packed=False, **options)
    made = mxort.convert(proto, accuracy_level=1, kv_cache=cache).model
    onnx.checker.check_model(made)
    suffix = "" if cache == "float" else "MXFP8"
    assert [n.op_type for n in made.graph.node if NAME_IN in n.op_type] == [operator + suffix]
    assert [f.name for f in made.functions if NAME_IN in f.name] == [operator + suffix]
    if cache != "float":
        return
    plain = mxort.convert(proto, accuracy_level=1, fuse=False).model
    for length, past in ((1, 40), (20, 0)):
        f = feeds(length, past)
        want = session(plain).run(None, f)
        for got in (session(made).run(None, f), session(made, library=False).run(None, f)):
            for x, y in zip(got, want, strict=True):
                assert np.linalg.norm(x - y) <= 4e-6 * np.linalg.norm(y)  # as above


def test_two_sinks_are_left_alone() -> None:
    model = ir.serde.deserialize_model(decoder(sink=True, smooth_softmax=1))
    assert dict(attention.fuse(model).left) == {"it has two sinks": 1}


def test_attributes_that_ask_for_nothing_are_no_hindrance() -> None:
    model = ir.serde.deserialize_model(decoder(local_window_size=-1, smooth_softmax=0, scale=0.25))
    assert attention.fuse(model).count == 1
    (node,) = [n for n in model.graph if n.op_type == attention.NAME]
    assert {a.name for a in node.attributes.values()} == {"num_heads", "kv_num_heads", "do_rotary", "scale"}


def test_inspection_lists_only_weights(tmp_path) -> None:
    onnx.save(decoder(), tmp_path / "m.onnx")
    mxort.convert(tmp_path / "m.onnx", tmp_path / "out.onnx")
    found = mxort.inspect(tmp_path / "out.onnx")
    assert [row.op_type for row in found.sites if row.status == "converted"] == ["MatMulMXFP4"] * 2
