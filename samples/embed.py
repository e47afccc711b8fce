"""Sentences in, similarities out: an fp32 sentence encoder next to its MXFP4 conversion.

Usage: python samples/embed.py ["first sentence" "second sentence" ...] [--out converted.onnx]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from models import ModelError, minilm, refuse_bad_target
from tokenizers import Tokenizer

import mxort

SENTENCES = [
    "A man is eating a piece of bread.",
    "Someone is having a meal.",
    "The stock market fell sharply today.",
    "Share prices dropped this morning.",
    "A cat is asleep on the sofa.",
    "The kitten naps on the couch.",
]


def embed(
    session: ort.InferenceSession, tokenizer: Tokenizer, sentences: Sequence[str]
) -> npt.NDArray[np.float32]:
    """float32 [len(sentences), dimension] unit vectors: the mean of the token vectors of each sentence."""
    tokenizer.enable_padding()
    encodings = tokenizer.encode_batch(list(sentences))
    ids = np.array([encoding.ids for encoding in encodings], np.int64)
    mask = np.array([encoding.attention_mask for encoding in encodings], np.int64)
    name = next(output.name for output in session.get_outputs() if _is_token_vectors(output))
    vectors = session.run([name], {"input_ids": ids, "attention_mask": mask})[0]
    weights = mask[:, :, None].astype(np.float32)
    mean = (vectors * weights).sum(axis=1) / weights.sum(axis=1)
    unit: npt.NDArray[np.float32] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    return unit


def _is_token_vectors(output: ort.NodeArg) -> bool:
    return output.type == "tensor(float)" and len(output.shape) == 3  # [batch, tokens, dimension]


def main() -> None:
    """Print the cosine of every pair of sentences, most similar first."""
    parser = argparse.ArgumentParser(description="Similarity of sentences, fp32 next to MXFP4.")
    parser.add_argument("sentences", nargs="*", default=SENTENCES, help="two or more (a built-in list)")
    parser.add_argument("--out", type=Path, help="where to write the converted model (beside the fp32 one)")
    arguments = parser.parse_args()
    sentences = arguments.sentences
    if len(sentences) < 2:
        parser.error("one sentence has no similarity; give two or more")

    refuse_bad_target(arguments.out)
    folder = minilm()
    source = folder / "model.onnx"
    target = arguments.out or folder / "model.mxfp4.onnx"
    mxort.convert(source, target)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    fp32 = embed(ort.InferenceSession(source), tokenizer, sentences)
    mxfp4 = embed(mxort.InferenceSession(target), tokenizer, sentences)

    print(" fp32  MXFP4")
    pairs = combinations(range(len(sentences)), 2)
    for first, second in sorted(pairs, key=lambda pair: -(fp32[pair[0]] @ fp32[pair[1]])):
        similarities = f"{fp32[first] @ fp32[second]:5.2f}  {mxfp4[first] @ mxfp4[second]:5.2f}"
        print(f"{similarities}  {sentences[first]} | {sentences[second]}")


if __name__ == "__main__":
    try:
        main()
    except (ModelError, mxort.MxortError) as error:
        sys.exit(f"error: {error}")
