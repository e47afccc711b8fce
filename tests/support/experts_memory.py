"""A program: opens a layer of experts (argv: the model, its experts, its width, the steps as JSON: each the experts
that a row chooses) and prints, in bytes: the peak of its memory beyond what it had before, what its own memory grew by,
and what of that is left when the session is gone."""

from __future__ import annotations

import gc
import json
import re
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

from mxort.runtime.session import get_library_path


def status(name: str) -> int:
    (kilobytes,) = re.findall(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(kilobytes)


def session(model: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.register_custom_ops_library(get_library_path())
    options.intra_op_num_threads = 2
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def main(model: str, experts: int, width: int, steps: list[list[int]]) -> list[int]:
    session(model)  # what every session costs, once
    gc.collect()
    resident, own = status("VmRSS"), status("RssAnon")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    opened = session(model)
    for step in steps:
        logits = np.zeros((1, experts), np.float32)
        logits[0, step] = 9
        (y,) = opened.run(None, {"X": np.ones((1, width), np.float32), "router": logits})
        assert np.isfinite(y).all()
    measured = [status("VmHWM") - resident, status("RssAnon") - own]
    del opened
    gc.collect()
    return [*measured, status("RssAnon") - own]


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))))
