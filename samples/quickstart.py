"""Convert a sentence encoder to MXFP4 and run it."""

import numpy as np
from models import minilm

import mxort

source = minilm() / "model.onnx"
target = source.with_name("quickstart.onnx")
report = mxort.convert(source, target)
print(f"{report.original_bytes:,} -> {report.converted_bytes:,} bytes")

session = mxort.InferenceSession(target)
tokens = np.array([[101, 7592, 2088, 102]])  # [CLS] hello world [SEP]
# "461" is what this export calls the sentence embedding.
embedding = session.run(["461"], {"input_ids": tokens, "attention_mask": np.ones_like(tokens)})[0]
print(embedding.shape, embedding[0, :4])
