"""docs/pipelines.md, Triton: what the server would read, by its own schema, and what it would then do."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

import mxort.triton
from document import run_blocks
from mxort.errors import MxortError
from tiny_models import mlp


def read(folder):
    """config.pbtxt; unknown fields are errors."""
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def test_the_blocks(tmp_path):
    mlp(tmp_path / "model.onnx", external=True)
    run_blocks("Triton Inference Server", tmp_path)
    config = read(tmp_path / "models" / "encoder")
    assert (config.name, config.backend, config.max_batch_size) == ("encoder", "onnxruntime", 0)
    (library,) = config.model_operations.op_library_filename
    options = ort.SessionOptions()
    options.register_custom_ops_library(library)
    x = {"x": np.ones((2, 64), np.float32)}
    session = ort.InferenceSession(tmp_path / "models" / "encoder" / "1" / "model.onnx", options)
    expected = mxort.InferenceSession(tmp_path / "model.mxfp4.onnx", device="cpu")
    np.testing.assert_array_equal(session.run(None, x)[0], expected.run(None, x)[0])


def test_a_repository_that_the_server_sees_elsewhere(tmp_path):
    (tmp_path / "models").mkdir()
    folder = mxort.triton.write(mlp(tmp_path / "model.onnx"), tmp_path / "models", 'a"b', seen_at="/models")
    config = read(folder)
    assert config.name == 'a"b'
    assert list(config.model_operations.op_library_filename) == ['/models/a"b/libmxort.so']


@pytest.mark.parametrize("name", ["", "a/b", "..", "there"])
def test_what_cannot_be_written(tmp_path, name):
    model = mlp(tmp_path / "model.onnx")
    (tmp_path / "models" / "there").mkdir(parents=True)
    (tmp_path / "models" / "there" / "file").write_text("")
    named = "not empty$" if name == "there" else "expected that of a folder"
    with pytest.raises(MxortError, match=named):
        mxort.triton.write(model, tmp_path / "models", name)
    assert {path.name for path in tmp_path.rglob("*")} == {"model.onnx", "models", "there", "file"}
