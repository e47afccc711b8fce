"""Text files as samples of tokens, for models with a tokenizer beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mxort.calibration import beside
from mxort.errors import MxortError

SUFFIX = ".txt"

_WINDOW, _WINDOWS = 512, 128
"""Tokens of a window, and windows that a text is cut into: what calibration was measured with (docs/accuracy.md)."""

_LINES = 1024


def windows(file: Path, model: ir.Model, path: Path) -> list[NDArray[np.int64]]:
    """The tokens of a text in UTF-8, int64 [tokens] each, for the model in ``path``.

    A decoder (it has a cache, or logits of every token) reads a text in windows of 512 tokens or of its context, 128
    of them at equal distances where there are more; what is left at the end is dropped unless it is all there is. Other
    models read lines, each with the tokens that the tokenizer puts around it: 1024 at equal distances.
    Raises MxortError for a file that is no text, or empty, and without a tokenizer.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise MxortError(f"{file}: not UTF-8") from None
    except OSError as error:
        raise MxortError(f"{file}: cannot read: {error.strerror or error}") from None
    tokenizer = beside.tokenizer(path)
    longest = beside.context(path, model)
    if _is_decoder(model):
        size = min(_WINDOW, longest or _WINDOW)
        ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int64)
        whole = min(len(ids), max(1, len(ids) // size))
        return [ids[i * size : (i + 1) * size] for i in _spread(whole, _WINDOWS)]
    lines = [line for line in text.splitlines() if line.strip()]
    chosen = [lines[i] for i in _spread(len(lines), _LINES)]
    return [np.array(encoded.ids[:longest], np.int64) for encoded in tokenizer.encode_batch(chosen)]


def _spread(count: int, most: int) -> list[int]:
    """At most so many of 0 .. count - 1, at equal distances."""
    found: list[int] = np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()
    return found


def _is_decoder(model: ir.Model) -> bool:
    cached = any("past" in (value.name or "") for value in model.graph.inputs)
    return cached or any(v.name == "logits" and len(v.shape or ()) == 3 for v in model.graph.outputs)
