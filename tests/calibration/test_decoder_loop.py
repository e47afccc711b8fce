"""The loop over a decoder: with every kind of cache the logits of the whole sequence; what is no decoder is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from decoders import VOCABULARY, logits_of, prefix_sums
from mxort.calibration.data import complete
from mxort.calibration.decoder_loop import DecoderLoop
from mxort.converters import model_io
from mxort.errors import MxortError
from mxort.runtime.session import open_session
from sliding_window import HEAD, HEADS, WINDOW, sliding_window
from tiny_models import mlp


def loop_of(path, batch=2, capacity=0):
    return DecoderLoop(open_session(path), model_io.load(path).model, "m.onnx", batch, capacity)


def stepwise(loop, tokens):
    """float32 [batch, n, vocabulary] of tokens [batch, n], one by one."""
    return np.stack([loop.step(tokens[:, [i]]) for i in range(tokens.shape[1])], axis=1)


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_logits_of_whole_sequences(tmp_path, cached, positions):
    loop = loop_of(prefix_sums(tmp_path / "m.onnx", cached=cached, positions=positions), batch=3)
    assert loop.cached == cached
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (3, 20))
    expected = np.stack([logits_of(row, positions) for row in tokens])
    np.testing.assert_allclose(stepwise(loop, tokens), expected, atol=1e-4)
    loop.reset()
    first = loop.step(tokens[:, :7])
    np.testing.assert_allclose(first, expected[:, 6], atol=1e-4, err_msg="several tokens at once")
    np.testing.assert_allclose(loop.step(tokens[:, 7:9]), expected[:, 8], atol=1e-4)


@pytest.mark.parametrize("capacity", [0, 3 * WINDOW, 100])
@pytest.mark.parametrize("layers", [1, 2], ids=["a cache", "a cache that slides"])
def test_group_query_attention(tmp_path, layers, capacity):
    path = sliding_window(tmp_path / "m.onnx", layers)
    loop = loop_of(path, 3, capacity)
    slides = (layers - 1) * 2 * HEADS * WINDOW * HEAD * 4
    assert (
        loop.cache_bytes(20) == slides + 2 * HEADS * (capacity if capacity and layers == 1 else 20) * HEAD * 4
    )
    tokens = np.random.default_rng(0).integers(0, loop.vocabulary, (3, 3 * WINDOW))
    session, graph = open_session(path), model_io.load(path).model
    expected = np.stack([session.run(["logits"], complete(row, graph, "m"))[0][0] for row in tokens])
    np.testing.assert_allclose(stepwise(loop, tokens), expected, atol=2e-4 * np.abs(expected).max())
    loop.reset()
    np.testing.assert_allclose(
        stepwise(loop, tokens[:, :5]), expected[:, :5], atol=2e-4 * np.abs(expected).max()
    )


def test_a_fixed_batch_and_narrow_tokens(tmp_path):
    loop = loop_of(prefix_sums(tmp_path / "m.onnx", fixed_batch=4, tokens="int32"), batch=2)
    assert loop.batch == 4
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (4, 5))
    np.testing.assert_allclose(stepwise(loop, tokens)[2], logits_of(tokens[2]), atol=1e-4)


def optimum_merged(path):
    """A model with the inputs of optimum's merged decoders whose logits are made of those inputs."""
    value, node = helper.make_tensor_value_info, helper.make_node
    inputs = [
        value("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"]),
        value("attention_mask", TensorProto.INT64, ["batch_size", "past_sequence_length + sequence_length"]),
        value("position_ids", TensorProto.INT64, [3, "batch_size", "sequence_length"]),
        value("token_type_ids", TensorProto.INT64, ["batch_size", "sequence_length"]),
        value("past_key_values.0.key", TensorProto.FLOAT, ["batch_size", 1, "past_sequence_length", 1]),
        value("use_cache_branch", TensorProto.BOOL, [1]),
        value("num_logits_to_keep", TensorProto.INT64, []),
    ]
    nodes = [
        node("ReduceSum", ["attention_mask", "one"], ["total"], keepdims=1),  # [batch, 1]
        node("ReduceMax", ["position_ids"], ["last"], axes=[0], keepdims=0),  # [batch, n]
        node("Cast", ["use_cache_branch"], ["branch"], to=TensorProto.INT64),
        node("Add", ["num_logits_to_keep", "token_type_ids"], ["kept"]),
        node("Mul", ["total", "like"], ["a"]),
        node("Add", ["last", "zero"], ["b"]),
        node("Add", ["branch", "zero"], ["c"]),
        node("Add", ["a", "token_type_ids"], ["a1"]),
        node("Add", ["c", "token_type_ids"], ["c1"]),
        *(node("Unsqueeze", [name, "two"], [f"{name}u"]) for name in ("a1", "b", "c1", "kept")),
        node("Concat", ["a1u", "bu", "c1u", "keptu"], ["numbers"], axis=2),
        node("Cast", ["numbers"], ["logits"], to=TensorProto.FLOAT),
        node("Cast", ["input_ids"], ["own"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["own", "edges"], ["key"]),
        node("Concat", ["past_key_values.0.key", "key"], ["present.0.key"], axis=2),
    ]
    constants = {
        "one": np.int64([1]),
        "two": np.int64([2]),
        "edges": np.int64([1, 3]),
        "zero": np.int64(0),
        "like": np.int64([[1]]),
    }
    outputs = [
        value("logits", TensorProto.FLOAT, ["batch_size", "sequence_length", 4]),
        value("present.0.key", TensorProto.FLOAT, ["batch_size", 1, "total_sequence_length", 1]),
    ]
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "merged", inputs, outputs, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_every_input_has_its_content(tmp_path):
    loop = loop_of(optimum_merged(tmp_path / "m.onnx"))
    steps = stepwise(loop, np.ones((2, 3), np.int64))
    # tokens that the mask has, position, whether there is a cache, logits to keep
    expected = [[1, 0, 0, 1], [2, 1, 1, 1], [3, 2, 1, 1]]
    np.testing.assert_array_equal(steps, [expected, expected])


def with_input(path, name, kind, shape):
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info(name, kind, shape))
    onnx.save(model, path)
    return path


def fixed_length(path):
    prefix_sums(path)
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 8
    onnx.save(model, path)
    return path


def without(path, **renamed):
    """The cached decoder with some of its inputs or outputs called otherwise."""
    prefix_sums(path, cached=True)
    model = onnx.load(path)
    for item in (*model.graph.input, *model.graph.output):
        item.name = renamed.get(item.name.split(".")[0], item.name)
    for node in model.graph.node:
        node.input[:] = [renamed.get(name.split(".")[0], name) for name in node.input]
        node.output[:] = [renamed.get(name.split(".")[0], name) for name in node.output]
    onnx.save(model, path)
    return path


REFUSED = {
    "no tokens": (mlp, "input x is no integers [batch, tokens]"),
    "an encoder": (lambda path: prefix_sums(path, encoder=True), "its logits depend on later tokens"),
    "a fixed length": (fixed_length, "input_ids has a fixed length of 8"),
    "an encoder before it": (
        lambda path: with_input(prefix_sums(path), "encoder_hidden_states", TensorProto.FLOAT, ["b", "s", 8]),
        "what to feed its input encoder_hidden_states is not known",
    ),
    "a cache that goes nowhere": (
        lambda path: without(path, present="elsewhere"),
        "input past_key_values.0.key has no output present.0.key to go on with",
    ),
    "two inputs without a name": (
        lambda path: without(path, input_ids="ids"),
        "it has no input input_ids (it has: ids, attention_mask, past_key_values.0.key)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_decoder(tmp_path, case):
    make, why = REFUSED[case]
    path = make(tmp_path / "m.onnx")
    with pytest.raises(MxortError) as caught:
        loop_of(path)
    assert str(caught.value).startswith("m.onnx: is no decoder that can write text: ")
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_logits_by_another_name(tmp_path):
    """The only output as wide as the vocabulary."""
    loop = loop_of(without(tmp_path / "m.onnx", logits="linear_14"))
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (2, 4))
    np.testing.assert_allclose(stepwise(loop, tokens)[1], logits_of(tokens[1]), atol=1e-4)
