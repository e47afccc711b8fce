"""A test file of a pipeline runs where its library is: `make pipelines` makes an environment for each, and there a
library that is missing fails. In the environment of `make check` those without theirs are not collected."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "samples"))

LIBRARIES = ("onnxruntime_genai", "optimum", "sentence_transformers", "olive")

collect_ignore = [
    f"test_{name}.py"
    for name in LIBRARIES
    if os.environ.get("MXORT_PIPELINE") != name and find_spec(name) is None
]
