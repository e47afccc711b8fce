"""Comparing a converted model with its original: same inputs, output by output and layer by layer.

Not called compare.py: importing a submodule makes it an attribute of the package, and ``mxort.compare`` is
the function.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from mxort.calibration.example_inputs import Inputs, InputSource, check_inputs, hint, inputs_for
from mxort.converters import model_io
from mxort.errors import MxortError
from mxort.evaluation import caches
from mxort.progress import Progress, silent
from mxort.runtime.session import one_line, open_session, require_onnxruntime
from mxort.text import plain

_TOO_GOOD_DB = 60
"""MXFP8 weights leave some 30 dB, and MXFP4 ones 19; below this is what accuracy_level costs exact weights."""

LAYERS_PER_RUN = 64
"""Layer outputs fetched in one run: each stays in memory until the run ends, so this bounds memory."""


@dataclass(frozen=True)
class TensorComparison:
    """How far a tensor of the converted model is from the reference's tensor of the same name.

    ``sqnr_db`` is 10*log10(sum(ref^2) / sum((ref - new)^2)): infinite where the tensors are equal, NaN where
    one of them has a NaN or an infinity that the other has not. ``argmax_agreement`` is the fraction of rows
    (all axes but the last) whose largest element is the same; None for vectors, scalars and integers.
    """

    name: str
    shape: tuple[int, ...]
    sqnr_db: float
    cosine: float
    max_abs_error: float
    argmax_agreement: float | None
    node: str = ""


@dataclass(frozen=True)
class Comparison:
    """Result of :func:`compare`. A layer's error includes what the layers before it did to its input."""

    reference: str
    converted: str
    inputs: dict[str, str]
    outputs: tuple[TensorComparison, ...]
    layers: tuple[TensorComparison, ...] = ()
    unmatched: dict[str, str] = field(default_factory=dict)
    """Tensor name -> why it was not compared."""
    made_up: bool = False
    """Whether the inputs were generated."""

    @property
    def worst_sqnr_db(self) -> float:
        """Smallest SQNR of any output; NaN if one of them is NaN."""
        values = [output.sqnr_db for output in self.outputs]
        return math.nan if any(map(math.isnan, values)) else min(values)

    @property
    def note(self) -> str:
        """What to think of the figures: those of made-up inputs may be better than rounded weights can be; else ""."""
        if not self.made_up or not self.worst_sqnr_db > _TOO_GOOD_DB:
            return ""
        return (
            f"an SQNR above {_TOO_GOOD_DB} dB is more than rounded weights leave: the inputs, which were made up, "
            "may not reach what was converted (--inputs gives others, --dim other sizes)"
        )

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types; what is not finite is None (of equal tensors max_abs_error is 0)."""
        values: dict[str, Any] = plain(
            asdict(self) | {"worst_sqnr_db": self.worst_sqnr_db, "note": self.note}
        )
        return values


def compare(
    reference: str | os.PathLike[str],
    converted: str | os.PathLike[str],
    inputs: InputSource | None = None,
    *,
    layers: bool = False,
    seed: int = 0,
    dims: Mapping[str, int] | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Runs both models on ``inputs`` (.npz path, mapping, or None: generated from ``seed`` and ``dims``).

    With ``layers`` every converted layer is compared as well: a converted node keeps its output's name, so
    both models can be asked for it. One model is in memory at a time. Raises MxortError for models that
    cannot be opened or run, inputs that do not fit, and models without a common output.
    """
    reference, converted = Path(reference), Path(converted)
    report = progress or silent
    report("reading", 0.0)
    graph = read_graph(reference)
    feeds = inputs_for(graph, str(reference), inputs, seed=seed, dims=dims)
    graph = read_graph(converted)
    check_inputs(caches.fitted(feeds, caches.rows_of_model(graph)), graph, str(converted))

    plan = _plan_layers(reference, converted) if layers else _LayerPlan()
    runs: list[tuple[str, ...]] = [(), *plan.batches]  # the first one: all graph outputs
    rows: list[list[TensorComparison]] = []
    unmatched = dict(plan.unmatched)
    for index, fetches in enumerate(runs):
        report("layers" if fetches else "outputs", index / len(runs))
        try:
            compared, missing = _compare_run(reference, converted, feeds, fetches)
        except MxortError as error:
            raise MxortError(f"{error}{hint(inputs)}") from error
        rows.append([replace(row, node=plan.nodes.get(row.name, "")) for row in compared])
        unmatched.update(missing)
    if not rows[0]:
        raise MxortError(f"{converted}: no output that can be compared with those of {reference}")
    described = {name: f"{array.dtype}{list(array.shape)}" for name, array in feeds.items()}
    return Comparison(
        str(reference),
        str(converted),
        described,
        outputs=tuple(rows[0]),
        layers=tuple(row for batch in rows[1:] for row in batch),
        unmatched=unmatched,
        made_up=inputs is None,
    )


def compare_tensors(name: str, reference: NDArray[Any], new: NDArray[Any]) -> TensorComparison:
    """Compares two arrays of one shape, any numeric dtype, in float64. Raises ValueError for two shapes."""
    if reference.shape != new.shape:
        raise ValueError(f"{name}: shape {list(reference.shape)} against {list(new.shape)}")
    x, y = reference.astype(np.float64), new.astype(np.float64)
    same_special = ~np.isfinite(x) & (
        (x == y) | (np.isnan(x) & np.isnan(y))
    )  # -inf in masked logits, for one
    xf, yf = x[~same_special], y[~same_special]
    error = xf - yf  # an infinity or a NaN that only one of them has makes every figure NaN
    agreement = None
    if x.ndim >= 2 and x.shape[-1] > 1 and x.size and reference.dtype.kind == "f":
        agreement = float(np.mean(x.argmax(-1) == y.argmax(-1)))
    return TensorComparison(
        name=name,
        shape=reference.shape,
        sqnr_db=_sqnr_db(float(np.sum(xf**2)), float(np.sum(error**2))),
        cosine=_cosine(xf, yf),
        max_abs_error=float(np.abs(error).max(initial=0.0)),
        argmax_agreement=agreement,
    )


def read_graph(path: Path) -> ir.Model:
    """The model at ``path``, weights not read. Raises MxortError where it is missing, damaged or not ONNX."""
    return model_io.load(path).model


@dataclass(frozen=True)
class _LayerPlan:
    """Which converted layers can be fetched from both models, in batches; why the others cannot."""

    batches: tuple[tuple[str, ...], ...] = ()
    nodes: Mapping[str, str] = field(default_factory=dict)
    unmatched: Mapping[str, str] = field(default_factory=dict)


def _plan_layers(reference: Path, converted: Path) -> _LayerPlan:
    from mxort.converters.functions import (
        DOMAIN,
        WITH_WEIGHTS,
    )  # pulls in onnxscript: a second that plain compare need not pay

    known = {value.name for node in read_graph(reference).graph for value in node.outputs}
    model = read_graph(converted)
    top_level = set(model.graph)
    nodes, unmatched = {}, {}
    for node in model.graph.all_nodes():
        if node.domain != DOMAIN or node.op_type not in WITH_WEIGHTS:
            continue
        output, label = node.outputs[0].name or "", node.name or node.op_type
        if node not in top_level:
            unmatched[output] = f"{label} is inside a subgraph, whose tensors cannot be fetched"
        elif output not in known:
            unmatched[output] = f"output of {label}, which the reference has no tensor for"
        else:
            nodes[output] = label
    names = tuple(nodes)
    batches = (names[i : i + LAYERS_PER_RUN] for i in range(0, len(names), LAYERS_PER_RUN))
    return _LayerPlan(tuple(batches), nodes, unmatched)


def _compare_run(
    reference: Path, converted: Path, feeds: Inputs, fetches: Sequence[str]
) -> tuple[list[TensorComparison], dict[str, str]]:
    """Runs one model, then the other, and compares ``fetches`` (nothing named: all graph outputs)."""
    expected = _run(reference, feeds, fetches)
    rows: list[TensorComparison] = []
    unmatched: dict[str, str] = {}
    for name, array in _run(converted, feeds, fetches).items():
        if name not in expected:
            unmatched[name] = f"only in {converted}"
        elif reason := _incomparable(want := expected.pop(name), array):
            unmatched[name] = reason
        else:
            rows.append(compare_tensors(name, want, array))
    return rows, unmatched | dict.fromkeys(expected, f"only in {reference}")


def _incomparable(reference: Any, new: Any) -> str:
    """Why two session outputs have no distance; empty where they have one."""
    if not isinstance(reference, np.ndarray) or not isinstance(new, np.ndarray):
        return "not a tensor"
    for array in (reference, new):
        if array.dtype.kind not in "fiub":
            return f"a tensor of {array.dtype}"
    if reference.shape != new.shape:
        return f"shape {list(reference.shape)} against {list(new.shape)}"
    return ""


def _run(model: Path, feeds: Inputs, fetches: Sequence[str]) -> dict[str, Any]:
    """Name -> value of each of ``fetches``, or of each graph output where none is named."""
    session = _session_with_outputs(model, fetches) if fetches else open_session(model)
    names = list(fetches) or [output.name for output in session.get_outputs()]
    feeds = caches.fitted(feeds, caches.rows_of_session(session))
    try:
        return dict(zip(names, session.run(names, feeds), strict=True))
    except Exception as error:  # onnxruntime's exception types have no common base but this
        raise MxortError(f"{model}: fails to run: {one_line(error)}") from error


def _session_with_outputs(model: Path, fetches: Sequence[str]) -> Any:
    """A session on ``model`` that also outputs ``fetches``; external data stays where it is."""
    proto = onnx.load(model, load_external_data=False)
    present = {output.name for output in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in fetches if name not in present)
    options = require_onnxruntime().SessionOptions()
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(model.absolute().parent)
    )
    return open_session(proto.SerializeToString(), options)


def _sqnr_db(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    if not math.isfinite(noise) or not math.isfinite(signal):
        return math.nan
    return 10 * math.log10(signal / noise) if signal else -math.inf


def _cosine(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    norms = float(np.linalg.norm(x) * np.linalg.norm(y))
    if norms == 0:
        return 1.0 if not x.any() and not y.any() else 0.0
    return float(np.dot(x, y)) / norms if math.isfinite(norms) else math.nan
