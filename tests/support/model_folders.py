"""Folders as onnxruntime-genai's builder and optimum write them, of models with random weights."""

from __future__ import annotations

import json

import onnx
from onnx.external_data_helper import convert_model_to_external_data

from sliding_window import HEAD, HEADS, HIDDEN, VOCABULARY, sliding_window
from tiny_models import mlp


def genai_folder(path, *, external=True, layers=1, rotary=False):
    """A decoder of one layer: genai_config.json, model.onnx, its data, tokenizer.json, and a folder inside."""
    path.mkdir(parents=True)
    sliding_window(path / "model.onnx", layers, rotary)
    if external:
        model = onnx.load(path / "model.onnx")
        convert_model_to_external_data(model, location="model.onnx.data", size_threshold=1024)
        onnx.save(model, path / "model.onnx")
    (path / "genai_config.json").write_text(json.dumps(config(layers), indent=4))
    (path / "tokenizer.json").write_text("{}")
    (path / "more").mkdir()
    (path / "more" / "notes.txt").write_text("kept\n")
    return path


def config(layers=1):
    return {
        "model": {
            "bos_token_id": 1,
            "context_length": 64,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": "model.onnx",
                "head_size": HEAD,
                "hidden_size": HIDDEN,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "num_attention_heads": HEADS,
                "num_hidden_layers": layers,
                "num_key_value_heads": HEADS,
            },
            "eos_token_id": VOCABULARY - 1,
            "pad_token_id": 0,
            "type": "llama",
            "vocab_size": VOCABULARY,
        },
        "search": {"max_length": 64, "do_sample": False, "past_present_share_buffer": False},
    }


def _extract(source, target, inputs, outputs):
    onnx.utils.extract_model(source, target, inputs, outputs, check_model=False)
    model = onnx.load(target)
    for value in (*model.graph.input, *model.graph.output):
        if value.name in (
            "h1",
            "logits",
        ):  # of a shape that nobody has inferred; genai dies of values without
            shape = ["batch_size", "sequence_length", HIDDEN if value.name == "h1" else VOCABULARY]
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, shape))
    onnx.save(model, target)


def pipeline_folder(path):
    """The decoder of :func:`genai_folder` in three models: embedding, layers and head, a stage each."""
    genai_folder(path, external=False)
    cache = [f"0.{what}" for what in ("key", "value")]
    stages = {
        "embedding": (["input_ids"], ["h0"]),
        "layers": (
            ["h0", "attention_mask", *(f"past_key_values.{name}" for name in cache)],
            ["h1", *(f"present.{name}" for name in cache)],
        ),
        "head": (["h1"], ["logits"]),
    }
    for name, (inputs, outputs) in stages.items():
        _extract(path / "model.onnx", path / f"{name}.onnx", inputs, outputs)
    (path / "model.onnx").unlink()
    made = config()
    made["model"]["type"] = "decoder-pipeline"
    made["model"]["decoder"]["pipeline"] = [
        {
            name: {"filename": f"{name}.onnx", "inputs": inputs, "outputs": outputs}
            for name, (inputs, outputs) in stages.items()
        }
    ]
    del made["model"]["decoder"]["filename"]
    (path / "genai_config.json").write_text(json.dumps(made, indent=4))
    return path


def optimum_folder(path, *, nested=True):
    """config.json, tokenizer.json, [onnx/]model.onnx and model_quantized.onnx, which is another model here."""
    path.mkdir(parents=True)
    folder = path / "onnx" if nested else path
    folder.mkdir(exist_ok=True)
    mlp(folder / "model.onnx")
    mlp(folder / "model_quantized.onnx", seed=1)
    (path / "config.json").write_text('{"model_type": "bert"}')
    (path / "tokenizer.json").write_text("{}")
    return path
