"""What the files beside a model say of it: where texts end, how long they may be, and its tokenizer."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from mxort.calibration.example_inputs import table_rows
from mxort.errors import MxortError, first_line

if TYPE_CHECKING:
    import tokenizers

_CONFIGURATIONS = ("genai_config.json", "generation_config.json", "config.json")
_CONTEXTS = ("context_length", "max_position_embeddings", "n_positions")
_TOKENIZER = "tokenizer.json"


def configuration(path: Path | None) -> dict[str, Any]:
    """Which tokens end a text ("ends") and how long one may be ("context"), where the files say it."""
    found: dict[str, Any] = {}
    for name in _CONFIGURATIONS if path is not None else ():
        assert path is not None
        with suppress(OSError, ValueError, TypeError, AttributeError):
            content = json.loads((path.parent / name).read_text())
            content = content.get("model", content)
            if (ends := content.get("eos_token_id")) is not None:
                found.setdefault("ends", [ends] if isinstance(ends, int) else [int(end) for end in ends])
            if limits := [content[key] for key in _CONTEXTS if isinstance(content.get(key), int)]:
                found.setdefault("context", limits[0])
    return found


def context(path: Path | None, model: ir.Model) -> int | None:
    """The most tokens of a text: the configuration's, or rows of the table of positions; None where nothing says."""
    positions = (table_rows(v) for v in model.graph.inputs if "position" in (v.name or ""))
    limits = [limit for limit in (configuration(path).get("context"), next(positions, None)) if limit]
    return min(limits, default=None)


def tokenizer(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer.json beside the model ``path`` (or in that folder), or in the folder above, as optimum has it.

    It shortens and pads nothing. Raises MxortError where there is none.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise MxortError(f"text needs tokenizers ({error}): pip install tokenizers") from None
    folder = path if path.is_dir() else path.parent
    file = next((f / _TOKENIZER for f in (folder, folder.parent) if (f / _TOKENIZER).is_file()), None)
    if file is None:
        raise MxortError(f"{path}: has no {_TOKENIZER} beside it, which text needs")
    try:
        found = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # which has no type of its own
        raise MxortError(f"{file}: no tokenizer: {first_line(error)}") from None
    found.no_truncation()
    found.no_padding()
    return found
