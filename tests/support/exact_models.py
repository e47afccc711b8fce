"""Weights that MXFP4 holds exactly, and running models with and without the library."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort

import mxort

K, N = 64, 48


def exact(seed=0, k=K, n=N):
    """[k, n] that MXFP4 holds exactly: E2M1 values, and a 6 in every block, so that its scale is one."""
    rng = np.random.default_rng(seed)
    w = rng.choice(np.float32([0, 0.5, 1, 1.5, 2, 3, 4, 6]), (k, n)) * rng.choice(np.float32([-1, 1]), (k, n))
    w[::32] = 6
    return w


def run(proto, library=False):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if library:
        mxort.register(options)
    x = np.random.default_rng(9).standard_normal((3, K), dtype=np.float32)
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})
