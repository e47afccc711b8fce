"""Small models as text, and the comparison every conversion must stand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

import mxort
from mxort.formats import BLOCK_SIZE, E2M1, blocks_of, hadamard_rotate, scale_value, to_blocks
from mxort.scales import quantize_blocks

Arrays = Mapping[str, np.ndarray]
NUMPY_TYPES = {"float": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def make_model(text: str, weights: Arrays, opset: int = 17, dtype: str = "float", ir_version: int = 8):
    """A ModelProto of a graph in ONNX text; T in it stands for ``dtype``, to which float32 weights are cast.

    A weight is an initializer of the first graph that has its name in its text's initializer list as ``<T
    w>``, else of the main graph.
    """
    graph = onnx.parser.parse_graph("g " + text.replace("T[", f"{dtype}["))
    for name, array in weights.items():
        if array.dtype == np.float32:
            array = array.astype(NUMPY_TYPES[dtype])
        graph.initializer.append(numpy_helper.from_array(array, name))
    for index, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    return onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("com.microsoft", 1)],
        ir_version=ir_version,
    )


def fake_quantize(w: np.ndarray, rotation: int = 1, rule: str = "mse", multiplier: bool = True) -> np.ndarray:
    """W [K, N] -> what MXFP4 makes of it by default, by numpy and the format's rules alone."""
    k = w.shape[0]
    rows = np.zeros((w.shape[1], blocks_of(k) * BLOCK_SIZE), np.float32)
    rows[:, :k] = w.T
    rows = hadamard_rotate(rows, rotation)
    candidates = []
    for step in range(8 if multiplier else 1):  # of eight in an octave the one with the least error
        factor = np.float32(2 ** (step / 8))
        codes, scales = quantize_blocks(to_blocks(rows / factor), E2M1, rule)
        stored = (E2M1.decode(codes) * scale_value(scales)[..., None]).reshape(rows.shape)
        candidates.append(stored * factor)
    with np.errstate(invalid="ignore"):
        errors = [np.square(stored.astype(np.float64) - rows).sum(axis=1) for stored in candidates]
    best = np.argmin(errors, axis=0)
    stored = np.stack(candidates)[best, np.arange(len(rows))]
    return np.ascontiguousarray(hadamard_rotate(stored, rotation)[:, :k].T)  # H is its own inverse


def run_reference(model: onnx.ModelProto, feeds: Arrays) -> list[np.ndarray]:
    return ReferenceEvaluator(model).run(None, dict(feeds))


def run_onnxruntime(model: onnx.ModelProto, feeds: Arrays) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))


@dataclass
class Check:
    """Converts ``build(weights, dtype)`` and compares it with the same model of the rounded weights.

    The oracle is onnx.reference on float32; the converted model runs there and in onnxruntime without our
    library, that is, through the function it carries. The tolerance is the hard bound of a dot product of
    length K added in any order, 2 K eps |a| |w| (Cauchy-Schwarz), plus half an ulp of the model's type for
    each of ``roundings``.
    """

    last: mxort.Report | None = field(default=None)

    def __call__(
        self,
        build: Callable[..., onnx.ModelProto],
        weights: Arrays,
        feeds: Arrays,
        others: Arrays | None = None,
        *,
        converted: int = 1,
        dtype: str = "float",
        roundings: int = 2,
        rotation: int = 1,
        engines: str = "reference onnxruntime",
        **overrides: object,
    ) -> onnx.ModelProto:
        numpy_type = NUMPY_TYPES[dtype]
        weights = {n: w.astype(numpy_type).astype(np.float32) for n, w in weights.items()}
        others = {n: w.astype(numpy_type).astype(np.float32) for n, w in (others or {}).items()}
        multiplier = bool(overrides.get("column_multiplier", True))
        rounded = {n: fake_quantize(w, rotation, multiplier=multiplier) for n, w in weights.items()}
        if dtype == "float16":  # onnxruntime's Python cannot be fed bfloat16: such models begin with a Cast
            feeds = {n: x.astype(np.float16) if x.dtype == np.float32 else x for n, x in feeds.items()}
        wide = {n: x.astype(np.float32) if x.dtype == np.float16 else x for n, x in feeds.items()}
        expected = run_reference(build({**rounded, **others}, dtype="float"), wide)

        original = build({**weights, **others}, dtype=dtype)
        before = original.SerializeToString()
        overrides = {"min_elements": 0, "rotation": rotation, **overrides}
        self.last = mxort.convert(original, recipe="weight-only", **overrides)
        assert original.SerializeToString() == before, "the caller's model was changed"
        model = self.last.model
        assert isinstance(model, onnx.ModelProto)
        assert len(self.last.converted) == converted, [(s.node, s.reason) for s in self.last.skipped]
        onnx.checker.check_model(model, full_check=True)
        ours = [n for n in nodes(model) if n.domain == "mxort"]
        assert len(ours) == converted
        assert all(len(n.input) == 5 and len(n.attribute) == 5 for n in ours)

        dot_length = max(w.shape[0] for w in weights.values())
        norms = max(_norm(x) for x in wide.values()) * max(_norm(w.T) for w in weights.values())
        bound = 2 * dot_length * np.finfo(np.float32).eps * norms
        for run in (run_reference, run_onnxruntime):
            if run.__name__.removeprefix("run_") not in engines:
                continue
            for got, want in zip(run(model, feeds), expected, strict=True):
                assert got.shape == want.shape
                unit = float(ml_dtypes.finfo(numpy_type).eps) * roundings / 2
                tolerance = bound + unit * np.abs(want).max(initial=0)
                worst = np.abs(got.astype(np.float64) - want).max(initial=0)
                assert worst <= tolerance, (run.__name__, worst, tolerance)
        return model


def _norm(x: np.ndarray) -> float:
    """Largest Euclidean norm of a row."""
    rows = np.atleast_2d(x.astype(np.float64))
    return float(np.sqrt((rows**2).sum(axis=-1)).max(initial=0))


def nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """All nodes of the graph and its subgraphs."""
    pending = [model.graph]
    while pending:
        for node in pending.pop().node:
            yield node
            pending += [g for a in node.attribute for g in [a.g, *a.graphs] if g.node]


@pytest.fixture
def check() -> Check:
    return Check()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(2024)


@pytest.fixture
def tools() -> object:
    """The functions of this file, for tests that compose them otherwise."""

    class Tools:
        make_model = staticmethod(make_model)
        fake_quantize = staticmethod(fake_quantize)
        run_reference = staticmethod(run_reference)
        run_onnxruntime = staticmethod(run_onnxruntime)
        nodes = staticmethod(nodes)

    return Tools
