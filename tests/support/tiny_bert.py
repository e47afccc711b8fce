"""A BERT with random weights and a vocabulary of a few words, in the folders that exporters write."""

from __future__ import annotations

import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "cat",
    "dog",
    "sat",
    "on",
    "mat",
    "red",
    "apple",
]


def checkpoint(folder):
    """config.json, model.safetensors and a tokenizer; 2 layers of 64, 12 weights."""
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(WORDS), **sizes)).save_pretrained(folder)
    return folder


def optimum(folder, work):
    """The folder that optimum's export writes: model.onnx, config.json, the tokenizer."""
    from optimum.onnxruntime import ORTModelForFeatureExtraction

    source = checkpoint(work / "checkpoint")
    ORTModelForFeatureExtraction.from_pretrained(source, export=True).save_pretrained(folder)
    BertTokenizerFast.from_pretrained(source).save_pretrained(folder)
    return folder


def sentence_transformers(folder, work):
    """The folder that sentence-transformers writes: onnx/model.onnx, modules.json, the tokenizer."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    words = modules.Transformer(str(checkpoint(work / "checkpoint")))
    pooling = modules.Pooling(words.get_embedding_dimension())
    SentenceTransformer(modules=[words, pooling, modules.Normalize()], device="cpu").save_pretrained(
        str(work / "torch")
    )
    keywords = {"provider": "CPUExecutionProvider"}
    SentenceTransformer(str(work / "torch"), backend="onnx", model_kwargs=keywords).save_pretrained(
        str(folder)
    )
    return folder
