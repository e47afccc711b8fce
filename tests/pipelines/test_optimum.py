"""docs/pipelines.md, optimum: on a tiny model; and a GPU, simulated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from optimum.onnxruntime import ORTModelForFeatureExtraction

import mxort.optimum
import tiny_bert
from document import run_blocks
from mxort.errors import MxortError

IDS = np.array([[2, 5, 6, 8, 9, 5, 10, 3]])
INPUTS = {"input_ids": IDS, "attention_mask": np.ones_like(IDS), "token_type_ids": np.zeros_like(IDS)}

ON_A_GPU = """
import json, sys
import numpy as np
from optimum.onnxruntime import ORTModelForFeatureExtraction
import mxort.optimum
inputs = {name: np.array(values) for name, values in json.loads(sys.argv[2]).items()}
options = {"self_check": False}
model = mxort.optimum.open(ORTModelForFeatureExtraction, sys.argv[1], device="gpu", device_options=options)
print(json.dumps([model.session.get_providers(), model(**inputs).last_hidden_state.tolist()]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the blocks run: minilm, and what they write."""
    work = tmp_path_factory.mktemp("work")
    tiny_bert.optimum(work / "minilm", work)
    return work


@pytest.fixture(scope="module")
def converted(folder):
    mxort.convert_folder(folder / "minilm", folder / "converted")
    return folder / "converted"


@pytest.fixture(scope="module")
def plain(converted):
    """Without the library, as float."""
    return ORTModelForFeatureExtraction.from_pretrained(converted)(**INPUTS).last_hidden_state


def test_the_blocks(folder):
    converted, shape = run_blocks("optimum", folder)
    assert "12 nodes converted" in converted
    assert "2 x MultiHeadAttention on this library's kernel" in converted
    assert shape == "torch.Size([1, 8, 64])\n"


def test_the_kernels_run(converted, plain, tmp_path):
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    model = mxort.optimum.open(ORTModelForFeatureExtraction, converted, session_options=options)
    found = model(**INPUTS).last_hidden_state
    events = json.loads(Path(model.session.end_profiling()).read_text())
    ran = [event["args"].get("op_name") for event in events if event.get("cat") == "Node"]
    assert sum((name or "").endswith("MatMulMXFP4") for name in ran) == 12  # two with the GELU behind them
    # Six products of int8 class behind one another, each within 1e-2 of the exact one.
    assert np.linalg.norm(found - plain) < 6e-2 * np.linalg.norm(plain)


def test_on_a_gpu(converted, plain, tmp_path):
    """In a process of its own, whose HIP runtime is the simulator that `make pipelines` builds."""
    library = Path(__file__).parents[2] / "build" / "hipsim" / "libamdhip64.so.7"
    inputs = json.dumps({name: values.tolist() for name, values in INPUTS.items()})
    done = subprocess.run(
        [sys.executable, "-c", ON_A_GPU, converted, inputs],
        cwd=tmp_path,  # in the source tree python would find that before the wheel
        env=os.environ | {"MXORT_HIP_LIBRARY": str(library), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    providers, found = json.loads(done.stdout)
    assert providers[0] == "MxortExecutionProvider"
    assert np.linalg.norm(np.array(found) - plain) < 6e-2 * np.linalg.norm(plain)


def test_a_gpu_that_is_not_there_is_one_line(converted):
    with pytest.raises(MxortError, match="device 'gpu:7' cannot be used"):
        mxort.optimum.open(ORTModelForFeatureExtraction, converted, device="gpu:7")
