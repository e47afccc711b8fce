"""Weight quantisation: float32 rows in, MXFP4 rows out. Knows numpy and the native module, never ONNX.

An algorithm is one file here and one row of ``ALGORITHMS``.
"""

from __future__ import annotations

from mxort.quantize import gptq, mr_gptq, rtn, smoothquant
from mxort.quantize.base import (
    Algorithm,
    QuantizedWeight,
    Round,
    Settings,
    dequantize,
    sums_of_rows,
    with_torch,
)
from mxort.quantize.chunks import RowReader, fitting_rotation, quantize_weight
from mxort.quantize.statistics import Statistics

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "QuantizedWeight",
    "Round",
    "RowReader",
    "Settings",
    "Statistics",
    "dequantize",
    "fitting_rotation",
    "quantize_weight",
    "smoothquant",
    "sums_of_rows",
    "with_torch",
]

ALGORITHMS: dict[str, Algorithm] = {
    "rtn": Algorithm(rtn.quantize),
    "gptq": Algorithm(gptq.quantize, calibrated=True, hessian=True),
    "mr-gptq": Algorithm(mr_gptq.quantize, calibrated=True, rotation=mr_gptq.ROTATION, hessian=True),
    "smoothquant": Algorithm(smoothquant.quantize, calibrated=True, smooth=True),
    "smooth-gptq": Algorithm(gptq.quantize, calibrated=True, smooth=True, hessian=True),
}
