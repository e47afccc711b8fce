"""What onnxruntime-genai generates in a folder, and what transformers' model of the same weights does in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og
import torch

import checkpoints

TOKENS = np.random.default_rng(3).integers(3, checkpoints.VOCABULARY, (1, 12))
STEPS = 6

FLOAT_SUMS = 2e-5
"""Relative RMS of models that differ in the order of float sums: some 10 products of up to 128 terms in a row, each
wrong by 2^-24 times the root of its terms; norms and softmax pass that on. Forty times what was seen (5e-7)."""


def generate(folder: Path) -> tuple[list[int], np.ndarray]:
    """(the tokens that follow TOKENS, the logits that chose them, [STEPS, vocabulary])."""
    parameters = og.GeneratorParams(model := og.Model(str(folder)))
    parameters.set_search_options(max_length=64, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens(TOKENS[0].tolist())
    logits = []
    for _ in range(STEPS):
        logits.append(np.array(generator.get_logits())[0, -1])
        generator.generate_next_token()
    return list(generator.get_sequence(0))[TOKENS.shape[1] :], np.stack(logits)


def reference(model: Any) -> tuple[list[int], np.ndarray]:
    """The same of transformers, without a cache."""
    tokens, logits = torch.from_numpy(TOKENS), []
    for _ in range(STEPS):
        with torch.no_grad():
            logits.append(model(tokens, use_cache=False).logits[0, -1].numpy())
        tokens = torch.cat([tokens, torch.tensor([[int(logits[-1].argmax())]])], dim=1)
    return tokens[0, TOKENS.shape[1] :].tolist(), np.stack(logits)
