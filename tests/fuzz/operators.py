"""One node of ours with attributes, tensors and inputs that may be right or absurd, in onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

import op_model
from fuzz.worker import WrongError
from mxort.formats import ACTIVATION_FORMATS, WEIGHT_FORMATS
from oracle import Case, random_case

FEEDS = 10
"""Inputs that each node gets, where it opens."""


def run(rng: np.random.Generator) -> str:
    weight_format = str(rng.choice(list(WEIGHT_FORMATS)))
    n, k = int(rng.integers(1, 70)), int(rng.integers(1, 200))
    rotation = int(rng.choice([1, 1, 32, 64, 128]))
    k = -(-k // rotation) * rotation
    case = random_case(rng, n, k, rotation, weight_format)
    changes = {} if rng.random() < 0.6 else _changes(rng, case)
    changes.setdefault("activation_format", str(rng.choice(list(ACTIVATION_FORMATS))))
    changes.setdefault("accuracy_level", int(rng.choice([0, 1, 3, 4])))
    half = rng.random() < 0.3
    if rng.random() < 0.4:
        changes["activation"] = int(rng.integers(0, 5)) if rng.random() < 0.9 else int(rng.integers(-3, 99))
        if rng.random() < 0.5:
            changes["factor"] = random_case(rng, n, k, rotation, weight_format)
    proto = op_model.model(case, elem_type=TensorProto.FLOAT16 if half else TensorProto.FLOAT, **changes)
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    try:
        session = op_model.session(proto)
    except Exception as error:
        return _refused(error, "node")
    ran = 0
    for _ in range(FEEDS):
        a = _feed(rng, k).astype(np.float16 if half else np.float32)
        try:
            (y,) = session.run(None, {"A": a})
        except Exception as error:
            _refused(error, "input")
            continue
        ran += 1
        if y.shape != (*a.shape[:-1], n):
            raise WrongError(f"A {a.shape}, K {k}, N {n}: Y has shape {y.shape}")
        numbers = changes.keys() & {"column_scale", "bias", "B", "B_scale"} or half
        small = np.abs(a.astype(np.float64)).max(initial=0) < 100  # NaN compares as false
        if small and not numbers and not np.isfinite(y).all():
            raise WrongError("Y is not finite, and A is")
    return f"{ran} of {FEEDS} inputs ran" if ran in (0, FEEDS) else "some inputs ran"


def _refused(error: Exception, what: str) -> str:
    """onnxruntime's errors have the node's name; ours are one line of it."""
    if "ONNXRuntimeError" not in str(error):
        raise error
    return f"{what} refused"


def _feed(rng: np.random.Generator, k: int) -> np.ndarray[Any, Any]:
    shape = [int(d) for d in rng.integers(0, 6, rng.integers(0, 3))]
    shape.append(k if rng.random() < 0.85 else int(rng.integers(0, 300)))
    if rng.random() < 0.05:
        shape = []
    if rng.random() < 0.1:
        shape[:-1] = [int(rng.integers(17, 200))]
    a = rng.standard_normal(shape) * 2.0 ** rng.integers(-12, 6)
    if rng.random() < 0.2 and a.size:
        a = np.asarray(a)
        a.flat[rng.integers(0, a.size, 3)] = rng.choice([np.nan, np.inf, -np.inf, 3e38, -0.0, 1e-45], 3)
    return np.asarray(a)


def _changes(rng: np.random.Generator, case: Case) -> dict[str, Any]:
    """One or two attributes or tensors of the node, replaced."""
    huge = [0, -1, 1, 31, 33, 2**31 - 1, 2**31, 2**62, -(2**63), 2**63 - 1]
    integer = lambda: int(rng.choice(np.array(huge)) if rng.random() < 0.5 else rng.integers(-3, 200))  # noqa: E731
    shape = lambda *near: tuple(max(0, d + int(rng.integers(-2, 3))) for d in near)  # noqa: E731
    choices: dict[str, Any] = {
        "K": integer,
        "N": integer,
        "rotation": lambda: int(rng.choice([2, 16, 32, 64, 128, 256])) if rng.random() < 0.7 else integer(),
        "accuracy_level": integer,
        "exponent_bits": integer,
        "activation_format": lambda: str(rng.choice(["", "mxfp5", "MXFP4", "none ", "mxfp4" * 50])),
        "B": lambda: rng.integers(0, 256, shape(*case.codes.shape)).astype(np.uint8),
        "B_scale": lambda: rng.integers(0, 256, shape(*case.scales.shape)).astype(np.uint8),
        "column_scale": lambda: rng.standard_normal(shape(case.N)).astype(np.float32),
        "bias": lambda: rng.standard_normal(shape(case.N)).astype(np.float32),
    }
    names = rng.choice(list(choices), int(rng.integers(1, 3)), replace=False)
    return {str(name): choices[str(name)]() for name in names}
