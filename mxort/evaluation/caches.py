"""The same inputs for models whose caches differ: one of them may have its keys and values in MXFP8 or MXFP4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from mxort.calibration.example_inputs import Inputs

_RANK = 4
"""Of a cache: [batch, heads, positions, numbers or bytes of a head]."""


def rows_of_session(session: Any) -> dict[str, int]:
    """Input of bytes that may be a cache -> bytes of a row."""
    return {
        i.name: i.shape[-1]
        for i in session.get_inputs()
        if i.type == "tensor(uint8)" and len(i.shape) == _RANK and isinstance(i.shape[-1], int)
    }


def rows_of_model(model: ir.Model) -> dict[str, int]:
    """The same of a graph."""
    found = {}
    for value in model.graph.inputs:
        shape = value.shape
        if value.dtype != ir.DataType.UINT8 or shape is None or shape.rank() != _RANK:
            continue
        if isinstance(size := shape[-1], int):
            found[value.name or ""] = size
    return found


def fitted(inputs: Inputs, rows: Mapping[str, int]) -> Inputs:
    """The inputs with empty caches of floats as empty ones of bytes, where ``rows`` has such.

    What is in a cache stays as it is: a model that cannot take it says so.
    """
    changed: Inputs = {}
    for name, array in inputs.items():
        if array.ndim == _RANK and not array.size and name in rows and array.dtype != np.uint8:
            changed[name] = np.zeros((*array.shape[:-1], rows[name]), np.uint8)
    return inputs | changed
