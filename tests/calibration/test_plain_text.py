"""Text files as samples: the windows and lines that they are cut into, and what is no text."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import mxort
from decoders import prefix_sums
from mxort.calibration.data import samples
from mxort.calibration.plain_text import windows
from mxort.calibration.self_written import SelfWritten, asked_for
from mxort.errors import MxortError

LETTERS = "abcdefghijklmnopqrst"


def tokenizer(folder):
    """Letter n of the alphabet is token n; an encoder's texts stand between 22 and 23, and are shortened to 3."""
    vocabulary = {letter: i for i, letter in enumerate(LETTERS)} | {"[UNK]": 21, "[CLS]": 22, "[SEP]": 23}
    result = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    result.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    result.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 22), ("[SEP]", 23)]
    )
    result.enable_truncation(3)
    result.save(str(folder / "tokenizer.json"))


def graph(output, *inputs):
    values = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "seq"]) for name in inputs]
    made = [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", "seq", 4])]
    return ir.from_proto(helper.make_model(helper.make_graph([], "g", values, made)))


DECODER = graph("logits", "input_ids")
ENCODER = graph("last_hidden_state", "input_ids", "attention_mask")


def test_a_decoder_reads_windows(tmp_path):
    tokenizer(tmp_path)
    file = tmp_path / "a.txt"
    file.write_text((LETTERS * 60)[:1100])
    found = windows(file, DECODER, tmp_path / "model.onnx")
    whole = np.arange(1100) % len(LETTERS)
    np.testing.assert_array_equal(found, [whole[:512], whole[512:1024]])
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 33}')
    np.testing.assert_array_equal(
        windows(file, DECODER, tmp_path / "model.onnx"), whole[: 33 * 33].reshape(33, 33)
    )
    file.write_text("abc")
    np.testing.assert_array_equal(windows(file, DECODER, tmp_path / "model.onnx"), [[0, 1, 2]])


def test_windows_of_a_long_text_are_spread_over_it(tmp_path):
    tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"n_positions": 2}')
    file = tmp_path / "a.txt"
    file.write_text("ab" + "cd" * 298 + "ef")
    found = windows(file, DECODER, tmp_path / "model.onnx")
    assert len(found) == 128
    np.testing.assert_array_equal(found[0], [0, 1])
    np.testing.assert_array_equal(found[-1], [4, 5])


def test_an_encoder_reads_lines(tmp_path):
    tokenizer(tmp_path)
    (tmp_path / "onnx").mkdir()  # as optimum has it: the tokenizer is a folder above
    file = tmp_path / "a.txt"
    file.write_text("\ufeffabcd\n\n  \nb\r\n?\n")
    found = windows(file, ENCODER, tmp_path / "onnx" / "model.onnx")
    assert [tokens.tolist() for tokens in found] == [[22, 0, 1, 2, 3, 23], [22, 1, 23], [22, 21, 23]]


def test_several_sources(tmp_path):
    tokenizer(tmp_path)
    (tmp_path / "a.txt").write_text("abc")
    np.save(tmp_path / "b.npy", np.array([4, 5]))
    data = [np.array([7]), tmp_path / "a.txt", [np.array([8, 9]), str(tmp_path / "b.npy")]]
    found = [s["input_ids"][0].tolist() for s in samples(data, DECODER, str(tmp_path / "model.onnx"))]
    assert found == [[7], [0, 1, 2], [8, 9], [4, 5]]


def test_a_model_writes_a_part(tmp_path):
    """Written and given windows both calibrate: the report says so, and either alone gives other weights."""
    tokenizer(tmp_path)
    model = prefix_sums(tmp_path / "m.onnx", cached=True)
    (tmp_path / "a.txt").write_text(LETTERS * 5)
    written = SelfWritten(4, 20)

    def converted(data):
        return mxort.convert(model, tmp_path / "out.onnx", calibration=data, min_elements=0, algorithm="gptq")

    both = converted([written, tmp_path / "a.txt"])
    assert both.calibration.startswith("4 windows of 20 tokens that the model wrote itself")
    assert both.calibration.endswith(", " + str(tmp_path / "a.txt"))
    gains = [
        [site.gain_db for site in report.converted]
        for report in (both, converted(written), converted(tmp_path / "a.txt"))
    ]
    assert gains[0] not in gains[1:]


@pytest.mark.parametrize("data", ["self", SelfWritten(), ["a.txt", "self"], ("a.txt", SelfWritten(2))])
def test_asked_for(data):
    assert asked_for(data)
    assert not asked_for(["a.txt", np.array([1])])


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff", "a.txt: not UTF-8"), (b"", "a.txt: no samples"), (b"\n \n", "a.txt: no samples")],
)
def test_no_text(tmp_path, content, message):
    tokenizer(tmp_path)
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(MxortError, match=message):
        list(samples(tmp_path / "a.txt", ENCODER, str(tmp_path / "model.onnx")))


def test_no_tokenizer(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(MxortError, match=r"model.onnx: has no tokenizer.json beside it, which text needs"):
        list(samples(tmp_path / "a.txt", DECODER, str(tmp_path / "model.onnx")))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(MxortError, match=r"tokenizer.json: no tokenizer: "):
        list(samples(tmp_path / "a.txt", DECODER, str(tmp_path / "model.onnx")))
