"""Everything that may hold samples, and what is said about what does not."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from mxort.calibration.data import complete, digest, samples
from mxort.errors import MxortError

TOKENS = [[1, 2, 3], [4, 5, 6, 7]]


def graph(*inputs):
    values = [helper.make_tensor_value_info(*value) for value in inputs]
    return ir.from_proto(helper.make_model(helper.make_graph([], "g", values, [])))


DECODER = graph(
    ("input_ids", TensorProto.INT64, ["batch", "seq"]),
    ("attention_mask", TensorProto.INT64, ["batch", "total_sequence_length"]),
    ("position_ids", TensorProto.INT64, ["batch", "seq"]),
    ("past_key_values.0.key", TensorProto.FLOAT, ["batch", 2, "past_sequence_length", 8]),
)


def check(found):
    assert [f["input_ids"].tolist() for f in found] == [[t] for t in TOKENS]
    for f, tokens in zip(found, TOKENS, strict=True):
        n = len(tokens)
        np.testing.assert_array_equal(f["attention_mask"], np.ones((1, n), np.int64))
        np.testing.assert_array_equal(f["position_ids"], [np.arange(n)])
        assert f["past_key_values.0.key"].shape == (1, 2, 0, 8)
        assert f["input_ids"].dtype == np.int64


def test_arrays():
    check(list(samples([np.array(t, np.int32) for t in TOKENS], DECODER, "m")))
    check(list(samples(({"input_ids": np.array([t])} for t in TOKENS), DECODER, "m")))


def test_files(tmp_path):
    for i, tokens in enumerate(TOKENS):
        np.save(tmp_path / f"{i}.npy", np.array(tokens))
    (tmp_path / "readme.txt").write_text("no sample")
    check(list(samples(tmp_path, DECODER, "m")))
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps({"input_ids": t}) + "\n" for t in TOKENS))
    check(list(samples(lines, DECODER, "m")))
    np.savez(tmp_path / "one.npz", input_ids=[TOKENS[0]])
    assert len(list(samples(tmp_path / "one.npz", DECODER, "m"))) == 1
    assert len(list(samples(str(tmp_path), DECODER, "m"))) == 5


def test_only_what_is_implied_is_made_up():
    model = graph(("input_ids", TensorProto.INT64, ["b", "s"]), ("pixels", TensorProto.FLOAT, ["b", 3]))
    with pytest.raises(MxortError, match="sample 0: m: no array for input pixels"):
        list(samples([np.array([1, 2])], model, "m"))


def test_the_only_input_needs_no_name():
    model = graph(("image", TensorProto.FLOAT, ["b", 4]))
    (found,) = samples([np.ones((2, 4), np.float32)], model, "m")
    assert found["image"].shape == (2, 4)
    two = graph(("a", TensorProto.FLOAT, ["b"]), ("c", TensorProto.FLOAT, ["b"]))
    with pytest.raises(MxortError, match="which of its inputs"):
        list(samples([np.ones((2, 4), np.float32)], two, "m"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", b"nothing", "not an .npy file"),
        ("a.npz", b"nothing", "not an .npz file"),
        ("a.jsonl", b"[1, 2]\n", "a.jsonl:1: expected a line like"),
        ("a.jsonl", b'{"input_ids": "text"}\n', "a.jsonl:1: expected a line like"),
        ("a.jsonl", b"\xff\n", "not UTF-8"),
        ("a.jsonl", b"", "no samples"),
        ("a.csv", b"text", "expected a folder or a file ending in"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MxortError, match=message):
        list(samples(tmp_path / name, DECODER, "m"))


def test_nothing_there(tmp_path):
    with pytest.raises(MxortError, match="no such file or folder"):
        list(samples(tmp_path / "absent", DECODER, "m"))
    with pytest.raises(MxortError, match="no samples"):
        list(samples(tmp_path, DECODER, "m"))


def test_digest_sees_names_types_shapes_and_numbers():
    base = {"a": np.zeros((2, 3), np.float32)}
    others = [
        {"b": base["a"]},
        {"a": np.zeros((2, 3), np.int32)},
        {"a": np.zeros((3, 2), np.float32)},
        {"a": np.ones((2, 3), np.float32)},
        {},
    ]
    assert len({digest(x) for x in (base, *others)}) == 6
    assert digest(base) == digest({"a": np.zeros((3, 2), np.float32).T.reshape(2, 3)})


def test_only_what_is_missing_is_made_up():
    """A given input of a type that nothing could be made up for is no obstacle."""
    ends = [
        helper.make_tensor_value_info("words", TensorProto.STRING, ["n"]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["n"]),
    ]
    out = helper.make_tensor_value_info("same", TensorProto.STRING, ["n"])
    graph = helper.make_graph([helper.make_node("Identity", ["words"], ["same"])], "g", ends, [out])
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    words = np.array(["a", "b", "c"], object)
    inputs = complete({"words": words}, model, "m")
    assert inputs["words"] is words
    np.testing.assert_array_equal(inputs["attention_mask"], [1, 1, 1])
