"""docs/pipelines.md, onnx-genai-server, whose wheel has the program onnx-genai."""

from __future__ import annotations

import onnx

from document import blocks, run
from serving import decoder_folder


def with_shapes(path):
    """The server reads sizes of a cache in the shapes of outputs, as onnxruntime-genai's builder writes them."""
    model = onnx.load(path)
    shapes = {"logits": ["batch_size", "sequence_length", 40]}
    for cache in model.graph.input[2:]:
        batch, heads, _, size = (d.dim_value or d.dim_param for d in cache.type.tensor_type.shape.dim)
        name = cache.name.replace("past_key_values", "present")
        shapes[name] = [batch, heads, "total_sequence_length", size]
    outputs = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in shapes.items()]
    assert [each.name for each in outputs] == [each.name for each in model.graph.output]
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    onnx.save(model, path)


def test_the_blocks(tmp_path):
    with_shapes(decoder_folder(tmp_path / "smollm2") / "model.onnx")
    convert, generate = blocks("onnx-genai-server")
    run(convert, tmp_path)
    path = tmp_path / "smollm2-mxfp4" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    assert any(node.domain == "mxort" for node in model.graph.node)
    del model.functions[:]  # now nobody but the library computes it
    onnx.save(model, path)
    assert run(generate, tmp_path).strip()
