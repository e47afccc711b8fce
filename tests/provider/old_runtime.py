"""Run by test_devices.py with an older onnxruntime: a session on the GPU, its shapes fixed, used by four threads."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort

import mxort

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from provider.scenarios import calls

options = ort.SessionOptions()
options.add_free_dimension_override_by_name("batch", 5)
session = mxort.InferenceSession(sys.argv[1], options, device="gpu")
inputs = [np.random.default_rng(i).standard_normal((5, 64), dtype=np.float32) for i in range(4)]
alone = [session.run(None, {"x": x})[0] for x in inputs]


def same(i: int) -> bool:
    return all(np.array_equal(session.run(None, {"x": inputs[i]})[0], alone[i]) for _ in range(25))


with ThreadPoolExecutor(4) as pool:
    agree = all(pool.map(same, range(4)))
before = calls().get("hipDeviceSynchronize", 0)
session.run(None, {"x": inputs[0]})
waits = calls().get("hipDeviceSynchronize", 0) - before
result = {"version": ort.__version__, "providers": session.get_providers(), "same": agree, "waits": waits}
print(json.dumps(result))
