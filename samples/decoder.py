"""Run a decoder ONNX with KV cache, one sequence at a time, in plain onnxruntime.

Input and output names are those that onnxruntime-genai's builder and optimum write.
"""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from tokenizers import Tokenizer

Tokens = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]

_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Decoder:
    """A session and the KV cache of one sequence. The cache never leaves onnxruntime's memory.

    `folder` holds the model's genai_config.json.
    """

    def __init__(self, session: ort.InferenceSession, folder: Path) -> None:
        config = json.loads((folder / "genai_config.json").read_text())["model"]
        ends = config["eos_token_id"]
        self.ends = {ends} if isinstance(ends, int) else set(ends)
        self._session = session
        self._inputs = {value.name for value in session.get_inputs()}
        self._outputs = [value.name for value in session.get_outputs()]
        # The graph has the number of heads; even an empty cache needs the head size, symbolic there.
        head_size = config["decoder"]["head_size"]
        self._empty = {
            value.name: np.zeros((1, value.shape[1], 0, head_size), _FLOATS[value.type])
            for value in session.get_inputs()
            if value.name.startswith("past_key_values.")
        }
        self.reset()

    def reset(self) -> None:
        """Forget the sequence."""
        self.length = 0
        self._past = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in self._empty.items()}

    def step(self, tokens: Tokens) -> Logits:
        """Append int64 [n] tokens; float32 [n, vocabulary], whose row i predicts what follows token i."""
        total = self.length + len(tokens)
        arrays = {
            "input_ids": tokens[None],
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(self.length, total)[None],
        }
        feeds = {
            name: ort.OrtValue.ortvalue_from_numpy(array)
            for name, array in arrays.items()
            if name in self._inputs
        }
        results = self._session.run_with_ort_values(self._outputs, feeds | self._past)
        named = dict(zip(self._outputs, results, strict=True))
        self._past = {name: named[name.replace("past_key_values.", "present.")] for name in self._past}
        self.length = total
        logits: Logits = named["logits"].numpy()[0]
        return logits


def text_tokens(tokenizer: Tokenizer, count: int) -> Tokens:
    """int64 [count] tokens of the Python language reference, a text that every Python carries."""
    text = "\n\n".join(topics[name] for name in sorted(topics))
    return np.array(tokenizer.encode(text, add_special_tokens=False).ids[:count], np.int64)


def perplexity(decoder: Decoder, tokens: Tokens, window: int = 512) -> float:
    """exp of the mean negative log-likelihood of int64 [n] tokens, in windows that do not overlap.

    A window's first token has no context and is not counted: w tokens give w - 1 predictions.
    """
    losses = []
    for start in range(0, len(tokens) - window + 1, window):
        text = tokens[start : start + window]
        decoder.reset()
        logits = decoder.step(text)[:-1]
        logits = logits - logits.max(axis=-1, keepdims=True)
        chosen = np.take_along_axis(logits, text[1:, None], axis=-1)[:, 0]
        losses.append(np.log(np.exp(logits).sum(axis=-1, dtype=np.float64)) - chosen)
    return float(np.exp(np.mean(losses)))
