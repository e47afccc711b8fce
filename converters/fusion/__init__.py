"""Operators that exporters write in single steps, put together again: a rule a file.

Level 1 of onnxruntime's optimisations, all that it does for a provider that it does not know, puts none of them
together; of a decoder by torch's exporter its higher levels put together next to nothing. A rule finds what it can
replace, with a reason for the rest, and replaces it by an operator that stock onnxruntime runs.
"""

from __future__ import annotations

import onnx_ir as ir

from mxort.converters.attention import Fused
from mxort.converters.fusion import rms_norm, rotary, skip_norm, standard_attention
from mxort.converters.opset import NEWEST, raise_to_newest
from mxort.converters.shapes import Inferred

_OF_THE_NEWEST_OPSET = (rms_norm, rotary, standard_attention)
"""In this order: what is rotated is split into heads behind it, where attention looks for that."""


def fuse(model: ir.Model) -> dict[str, Fused]:
    """Replaces what it can, in place; what it did by operator."""
    known = Inferred(model)
    done: dict[str, Fused] = {}
    for rule in _OF_THE_NEWEST_OPSET:
        found, done[rule.NAME] = rule.find(model, known)
        if found and (why := raise_to_newest(model)):
            done[rule.NAME].left[f"the model cannot be raised to opset {NEWEST}: {why}"] += len(found)
        elif found:
            rule.replace(model, found)  # type: ignore[arg-type]  # of the same rule
            done[rule.NAME].count += len(found)
    done[skip_norm.NAME] = skip_norm.fuse(model, known)
    if any(result.count for result in done.values()):
        model.graph.sort()  # outputs that an operator has now were made before what it reads
    return done
