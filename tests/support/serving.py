"""Tiny folders that a server can open, and a server in this process on a port of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import onnx
import uvicorn
from onnx import TensorProto, helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from model_folders import genai_folder
from mxort.serve.app import Application
from mxort.serve.backends import open_folders
from mxort.serve.limits import Limits

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENS = ["<pad>", "<s>", *LETTERS, "Ġ", ".", "Ã", "©", *"<>/1234", "</s>"]
"""The 40 tokens of :func:`model_folders.genai_folder`: bytes; é is two of them."""
TEMPLATE = "{% for message in messages %}{{ message['role'] }} {{ message['content'] }}.{% endfor %}"


def decoder_folder(path):
    """A language model of random weights, whose folder has a tokenizer and a template of conversations."""
    genai_folder(path, rotary=True)
    config = json.loads((path / "genai_config.json").read_text())
    config["search"]["top_k"] = 8  # genai's own default is more than the vocabulary
    (path / "genai_config.json").write_text(json.dumps(config))
    vocabulary = {token: index for index, token in enumerate(TOKENS)}
    special = [
        {
            "id": vocabulary[token],
            "content": token,
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for token in ("<pad>", "<s>", "</s>")
    ]
    of_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": of_bytes,
        "post_processor": None,
        "decoder": of_bytes,
        "model": {"type": "BPE", "unk_token": None, "vocab": vocabulary, "merges": []},
    }
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {
        "tokenizer_class": "GPT2Tokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


def encoder_folder(path, pooling="mean", normalize=True):
    """A sentence encoder whose token vectors are (id, 1, mask) as floats, in a folder with modules.json."""
    (path / "onnx").mkdir(parents=True)
    (path / "1_Pooling").mkdir()
    value = helper.make_tensor_value_info
    ids, mask = (
        value(name, TensorProto.INT64, ["batch", "tokens"]) for name in ("input_ids", "attention_mask")
    )
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Equal", ["input_ids", "input_ids"], ["same"]),
        helper.make_node("Cast", ["same"], ["ones"], to=TensorProto.FLOAT),
        helper.make_node("Constant", [], ["axis"], value_ints=[2]),
        *(helper.make_node("Unsqueeze", [name, "axis"], [f"{name}3"]) for name in ("ids", "ones", "mask")),
        helper.make_node("Concat", ["ids3", "ones3", "mask3"], ["last_hidden_state"], axis=2),
    ]
    vectors = value("last_hidden_state", TensorProto.FLOAT, ["batch", "tokens", 3])
    graph = helper.make_graph(nodes, "encoder", [ids, mask], [vectors])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path / "onnx" / "model.onnx")
    words = {
        word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat"])
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "config.json").write_text('{"model_type": "bert", "max_position_embeddings": 16}')
    kinds = ["Transformer", "Pooling"] + ["Normalize"] * normalize
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": f"1_{kind}"} for kind in kinds]
    (path / "modules.json").write_text(json.dumps(modules))
    modes = {"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean"}
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 3} | modes))
    return path


@contextlib.contextmanager
def serving(*folders, key=None, local=True, **limits):
    """The address of a server of these folders, and its models by name."""
    made = Limits(**limits)
    with open_folders(folders, made, "cpu") as backends:
        app = Application(backends, made, key, local=local)
        config = uvicorn.Config(
            app.asgi, port=0, log_level="error", lifespan="off", timeout_graceful_shutdown=5
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            yield f"http://127.0.0.1:{port}", backends
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def started(*folders, arguments=(), grace=20):
    """(address, process) of ``mxort serve`` in a process of its own, told to stop in the end; that must succeed."""
    command = [sys.executable, "-m", "mxort", "serve", *map(str, folders), "--port", "0", *arguments]
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        line = process.stderr.readline()
        assert " at http://" in line, line + process.stderr.read()
        yield line.split(" at ")[1].strip(), process
        process.send_signal(signal.SIGTERM)
        assert process.wait(grace) == 0, process.stderr.read()
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
