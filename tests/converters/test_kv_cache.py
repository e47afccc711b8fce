"""A conversion that gives a decoder another cache: what it changes, and what it refuses."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.checker
import pytest
from onnx import TensorProto

import mxort
from attention_models import HEADS, KV_HEADS, SIZE, WIDTH, decoder, feeds
from mxort.converters import kv_cache
from mxort.errors import MxortError
from op_model import session
from ops.test_kv_cache import packed, unpacked


def converted(kv, **options):
    return mxort.convert(decoder(**options), kv_cache=kv, accuracy_level=1)


@pytest.mark.parametrize("packed_qkv", [True, False], ids=["packed", "separate"])
@pytest.mark.parametrize("cache", kv_cache.CACHES)
def test_inputs_and_outputs_change(cache, packed_qkv):
    report = converted(cache, packed=packed_qkv)
    onnx.checker.check_model(report.model)
    nbytes = kv_cache.row_bytes(SIZE, kv_cache.CACHES[cache])
    assert nbytes == {"mxfp8": 33, "mxfp4": 17}[cache]
    values = [
        v
        for v in (*report.model.graph.input, *report.model.graph.output)
        if "key" in v.name or "value" in v.name
    ]
    assert len(values) == 4
    for value in values:
        assert value.type.tensor_type.elem_type == TensorProto.UINT8
        assert value.type.tensor_type.shape.dim[3].dim_value == nbytes
    assert report.cache_bytes == mxort.Report.from_json(report.to_json()).cache_bytes == nbytes
    assert [f.name for f in report.model.functions if f.name == "GroupQueryAttention"] == []


@pytest.mark.parametrize("cache", kv_cache.CACHES)
def test_tokens_one_by_one_are_what_the_float_cache_computes_of_rounded_rows(cache):
    """Three steps; after each, the float model gets the cache as the other one rounded it."""
    rough, exact = converted(cache).model, converted("float").model
    ours, theirs = session(rough), session(exact)
    rows = [np.zeros((1, KV_HEADS, 0, kv_cache.row_bytes(SIZE, kv_cache.CACHES[cache])), np.uint8)] * 2
    for step, length in enumerate((5, 1, 1)):
        f = feeds(length, rows[0].shape[2])
        f["x"] = np.random.default_rng(step).standard_normal((1, length, WIDTH)).astype(np.float32)
        y, *rows_now = ours.run(None, f | {"past_key": rows[0], "past_value": rows[1]})
        want, key, value = theirs.run(
            None, f | {"past_key": unpacked(rows[0], cache), "past_value": unpacked(rows[1], cache)}
        )
        for got, now in zip(rows_now, (key, value), strict=True):
            assert (got != packed(now, cache)).mean() < 0.01  # ties, where the rotation rounded otherwise
        # The float model sees the new rows before they are rounded: by at most half a step of the format.
        step_size = 2.0 ** -kv_cache.CACHES[cache].mantissa_bits
        assert np.abs(y - want).max() < step_size * np.abs(value).max() * np.sqrt(HEADS * SIZE)
        rows = rows_now


@pytest.mark.parametrize("cache", kv_cache.CACHES)
def test_without_the_library_the_cache_holds_the_same(cache):
    model = converted(cache).model
    f = feeds(3, 6)
    f |= {name: packed(f[name], cache) for name in ("past_key", "past_value")}
    ours, stock = session(model).run(None, f), session(model, library=False).run(None, f)
    for a, b in zip(ours[1:], stock[1:], strict=True):
        assert a.shape == b.shape and (a != b).mean() < 0.01
        np.testing.assert_array_equal(a[:, :, :6], b[:, :, :6])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"qk_output": 1}, "no attention with a cache that this library knows"),
        ({"cache": TensorProto.FLOAT16}, "no attention with a cache that this library knows"),
    ],
)
def test_attention_that_has_no_such_cache(model, message):
    with pytest.raises(MxortError, match=message):
        converted("mxfp8", **model)


def test_a_cache_that_something_else_reads():
    proto = decoder()
    proto.graph.node.append(onnx.helper.make_node("Shape", ["past_key"], ["shape"]))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("shape", TensorProto.INT64, [4]))
    with pytest.raises(MxortError, match="the cache of 'attention' is not an input and output of the model"):
        mxort.convert(proto, kv_cache="mxfp8")


def test_another_attention_that_keeps_its_cache():
    """genai makes all caches of the size that the configuration names."""
    proto = decoder()
    (old,) = (n for n in proto.graph.node if n.op_type == "GroupQueryAttention")
    other = proto.graph.node.add()
    other.CopyFrom(old)
    other.name = "scored"
    other.attribute.append(onnx.helper.make_attribute("qk_output", 1))
    other.output[:] = ["a2", "present_key2", "present_value2"]
    for name, value in zip(other.output, ("y", "present_key", "present_value"), strict=True):
        (like,) = (v for v in proto.graph.output if v.name == value)
        made = proto.graph.output.add()
        made.CopyFrom(like)
        made.name = name
        made.type.tensor_type.ClearField("shape")
    with pytest.raises(MxortError, match="'scored' keeps its own kernel and cache"):
        mxort.convert(proto, kv_cache="mxfp8")


def test_options():
    with pytest.raises(MxortError, match="kv_cache mxfp8: would change nothing: got no fuse, expected fuse"):
        mxort.convert(decoder(), kv_cache="mxfp8", fuse=False)
    with pytest.raises(MxortError, match="kv_cache"):
        mxort.Recipe(kv_cache="mxfp5")
    assert mxort.Recipe.from_json(mxort.Recipe(kv_cache="mxfp4").to_json()).kv_cache == "mxfp4"
