"""A test file of a pipeline runs where its library is: `make pipelines` makes an environment for each, and there a
library that is missing fails. In the environment of `make check` those without theirs are not collected."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "samples"))

LIBRARIES = {
    "onnxruntime_genai": "onnxruntime_genai",
    "onnx_genai_server": "onnx_genai_server",
    "guidellm": "guidellm",
    "optimum": "optimum",
    "sentence_transformers": "sentence_transformers",
    "olive": "olive",
    "compressed_tensors": "compressed_tensors",
    "ray": "ray",
    "triton": "tritonclient",  # torch brings a module called triton, which is something else
}
"""Pipeline -> the module without which there is none."""


def _is_installed(module: str) -> bool:
    """Not a mere folder of that name, as Ray leaves one in the system's for temporary files."""
    spec = find_spec(module)
    return spec is not None and spec.origin is not None


collect_ignore = [
    f"test_{name}.py"
    for name, module in LIBRARIES.items()
    if os.environ.get("MXORT_PIPELINE") != name and not _is_installed(module)
]
