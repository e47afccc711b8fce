"""A layer of experts: MoEMXFP4, onnxruntime's QMoE, llama.cpp's products, dense products and a plain read, in turns.

The layer is gpt-oss-20b's: 32 experts, 4 of a row, 2880 x 2880, gate and up by turns. Each turn has logits of its own,
the same for all candidates; the weights of 32 experts are more than the caches hold: those of a turn come from memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mxort import _native
from mxort.converters.functions import DOMAIN, EXPERTS, SILU, VERSION
from mxort.errors import MxortError
from mxort.evaluation.turns import session_options
from mxort.formats import BLOCK_SIZE
from mxort.runtime.op_models import IR_VERSION, OPSET, MatMulMXFP4
from mxort.runtime.session import open_session
from tools.bench.ggml import GgmlExperts
from tools.bench.peers import timed

Seconds = Callable[[], float]


@dataclass(frozen=True)
class Layer:
    """``width`` is that of the rows and of what is between the products."""

    experts: int = 32
    chosen: int = 4
    width: int = 2880

    @property
    def active_bytes(self) -> int:
        """Codes and scales that a row's experts have, packed: 17 bytes a block."""
        return 3 * self.chosen * self.width * self.width // BLOCK_SIZE * 17


class Weights:
    """Random weights of a layer: products of about 1 from rows of about 1."""

    def __init__(self, layer: Layer) -> None:
        rng = np.random.default_rng(0)
        e, n = layer.experts, layer.width
        self.layer = layer
        self.first, self.second = (rng.integers(0, 256, (e, c, n // 2), np.uint8) for c in (2 * n, n))
        self.first_scales, self.second_scales = (
            rng.integers(119, 122, (e, c, n // BLOCK_SIZE), np.uint8) for c in (2 * n, n)
        )


class Turn:
    """The rows and logits that all candidates of a turn share; :meth:`next` makes others."""

    def __init__(self, layer: Layer, rows: int) -> None:
        self._rng = np.random.default_rng(1)
        self.chosen = layer.chosen
        self.rows = self._rng.standard_normal((rows, layer.width), dtype=np.float32)
        self.logits = np.zeros((rows, layer.experts), np.float32)
        self.next()

    def next(self) -> None:
        """New logits, in the same memory."""
        self.logits[:] = self._rng.standard_normal(self.logits.shape, dtype=np.float32)

    @property
    def ids(self) -> NDArray[np.int32]:
        """The chosen experts, int32 [rows, chosen]."""
        return np.argsort(-self.logits, axis=-1)[:, : self.chosen].astype(np.int32)


def _session(node: Any, constants: dict[str, NDArray[Any]], turn: Turn, threads: int) -> Seconds:
    shapes = {"X": turn.rows.shape, "router": turn.logits.shape}
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    outputs = [helper.make_tensor_value_info("Y", TensorProto.FLOAT, turn.rows.shape)]
    graph = helper.make_graph(
        [node], "experts", inputs, outputs, [numpy_helper.from_array(v, n) for n, v in constants.items()]
    )
    opsets = [helper.make_opsetid("", OPSET)]
    opsets += [helper.make_opsetid(domain, VERSION) for domain in (DOMAIN, "com.microsoft")]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    session = open_session(model.SerializeToString(), session_options(threads, spin=True))
    feeds = {"X": turn.rows, "router": turn.logits}
    return timed(lambda: session.run(None, feeds), lambda: session.run(None, feeds)[0]).seconds


GATE: dict[str, Any] = {
    "k": 4,
    "normalize_routing_weights": 1,
    "activation_alpha": 1.702,
    "activation_beta": 1.0,
}
GATE |= {"swiglu_limit": 7.0, "swiglu_fusion": 1}


def mxort(weights: Weights, turn: Turn, threads: int) -> Seconds:
    """MoEMXFP4 at level 4."""
    ones = {"gate_up": weights.first, "down": weights.second}
    scales = {"gate_up": weights.first_scales, "down": weights.second_scales}
    constants: dict[str, NDArray[Any]] = {}
    for name, codes in ones.items():
        vector = codes.shape[:2]
        constants |= {f"{name}_B": codes, f"{name}_B_scale": scales[name]}
        constants |= {
            f"{name}_column_scale": np.ones(vector, np.float32),
            f"{name}_bias": np.zeros(vector, np.float32),
        }
    node = helper.make_node(
        EXPERTS,
        ["X", "router", *constants],
        ["Y"],
        domain=DOMAIN,
        activation=SILU,
        accuracy_level=4,
        **(GATE | {"k": weights.layer.chosen}),
    )
    return _session(node, constants, turn, threads)


def qmoe(weights: Weights, turn: Turn, threads: int) -> Seconds:
    """com.microsoft.QMoE with int4 in blocks of 32 and int8 activations, as onnxruntime-genai writes it for the CPU."""
    scale = np.float32(2.0**-7)
    constants: dict[str, NDArray[Any]] = {
        "fc1": weights.first,
        "fc1_scales": np.full(weights.first_scales.shape, scale),
        "fc1_bias": np.zeros(weights.first.shape[:2], np.float32),
        "fc2": weights.second,
        "fc2_scales": np.full(weights.second_scales.shape, scale),
        "fc2_bias": np.zeros(weights.second.shape[:2], np.float32),
    }
    node = helper.make_node(
        "QMoE",
        ["X", "router", *constants],
        ["Y"],
        domain="com.microsoft",
        activation_type="swiglu",
        expert_weight_bits=4,
        block_size=BLOCK_SIZE,
        accuracy_level=4,
        **(GATE | {"k": weights.layer.chosen}),
    )
    return _session(node, constants, turn, threads)


def ggml(weights: Weights, turn: Turn, threads: int) -> Seconds:
    """llama.cpp's ggml_mul_mat_id with MXFP4 weights, both products; no activation between them."""
    products = [
        GgmlExperts(weights.first, weights.first_scales, threads),
        GgmlExperts(weights.second, weights.second_scales, threads),
    ]
    inner = np.random.default_rng(2).standard_normal(
        (len(turn.rows), weights.layer.chosen, weights.layer.width), dtype=np.float32
    )
    runs = [
        product.bind(a, lambda: turn.ids)[0]
        for product, a in zip(products, (turn.rows[:, None], inner), strict=True)
    ]
    return lambda: sum(run() for run in runs)


def dense(weights: Weights, turn: Turn, threads: int) -> Seconds:
    """MatMulMXFP4 of every expert with as many rows as it has on average; no routing, activation or sum."""
    layer = weights.layer
    rows = len(turn.rows) * layer.chosen // layer.experts
    if rows == 0:
        raise MxortError("fewer rows than experts")
    both = (weights.first, weights.first_scales), (weights.second, weights.second_scales)
    products = [
        MatMulMXFP4(codes, scales, layer.width, accuracy_level=4).native()
        for stack in both
        for codes, scales in zip(*stack, strict=True)
    ]
    a = np.ascontiguousarray(turn.rows[:rows])
    return timed(lambda: [product(a, threads=threads) for product in products], lambda: a).seconds


def read(weights: Weights, turn: Turn, threads: int) -> Seconds:
    """A plain read of the bytes of the active experts of one row, of one of several copies in turn: as many bytes in
    all as the experts have, since a last-level cache may hold more than a few copies (480 MB on a Xeon 6)."""
    layer = weights.layer
    copies = [np.ones(layer.active_bytes, np.uint8) for _ in range(max(3, layer.experts // layer.chosen))]
    at = 0

    def seconds() -> float:
        nonlocal at
        at = (at + 1) % len(copies)
        return float(_native.read_seconds(copies[at], threads))

    return seconds


CANDIDATES: dict[str, Callable[[Weights, Turn, int], Seconds]] = {
    "mxort-int8": mxort,
    "ort-qmoe": qmoe,
    "ggml-mxfp4": ggml,
    "matmul-mxfp4": dense,
    "read-mxfp4": read,
}
