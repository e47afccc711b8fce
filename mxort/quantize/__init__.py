"""Weight quantisation: float32 rows in, MXFP4 rows out. Knows numpy and the native module, never ONNX.

An algorithm is one file here and one row of ``ALGORITHMS``.
"""

from __future__ import annotations

from mxort.quantize import rtn
from mxort.quantize.base import (
    Algorithm,
    QuantizedWeight,
    Settings,
    dequantize,
    packed_bytes,
    squared_error,
)
from mxort.quantize.chunks import RowReader, fitting_rotation, quantize_weight

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "QuantizedWeight",
    "RowReader",
    "Settings",
    "dequantize",
    "fitting_rotation",
    "packed_bytes",
    "quantize_weight",
    "squared_error",
]

ALGORITHMS: dict[str, Algorithm] = {
    "rtn": rtn.quantize,
}
