"""Running the float model in stages to learn what its weights are multiplied with, and quantising on the way.

A model is cut at its sites (``converters.stages``): onnxruntime runs what lies between them, and the sites are
done here. So each weight is quantised with the very operand it will meet, computed by the layers that were
quantised before it, in a single pass over the model, and only the values alive at one cut are ever kept.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mxort import _native
from mxort.calibration.example_inputs import Inputs
from mxort.converters import stages
from mxort.converters.sites import Site
from mxort.converters.stages import Stage
from mxort.errors import MxortError
from mxort.formats import BLOCK_SIZE, blocks_of
from mxort.quantize import QuantizedWeight, Statistics, smoothquant, with_torch
from mxort.runtime import hardware
from mxort.runtime.session import one_line, require_onnxruntime

Progress = Callable[[str, float], None]
Layer = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Operator:
    """How a site will run: the operator's attributes."""

    rotation: int
    activation_format: str
    accuracy_level: int


@dataclass(frozen=True)
class Result:
    """A quantised site, for the layers after it. ``divisor``: what its operand was divided by, float32 [K]."""

    weight: QuantizedWeight
    operator: Operator
    divisor: NDArray[np.float32] | None = None


Smooth = Callable[[Sequence[Site], NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32] | None]
"""(sites that share an operand, rows [n, K] of it, its largest magnitudes [K]) -> what to divide it by, [K] or None."""

Quantize = Callable[[Site, Statistics], Result | None]
"""Called once for each site, in the order of the model. None: the site stays as it is."""


@dataclass
class Settings:
    """``operator`` tells how a site will run. ``memory`` bounds the bytes of activations held, the rest is on disk.

    ``sequential``: a layer sees the already quantised layers before it, else the float ones. ``device`` is where torch
    computes (:func:`mxort.runtime.hardware.torch_device`).
    """

    operator: Callable[[Site], Operator]
    sequential: bool = True
    memory: int = 512_000_000
    threads: int = 0
    progress: Progress = field(default=lambda what, fraction: None)
    smooth: Smooth | None = None
    device: str = "auto"


def run(
    model: ir.Model, sites: Sequence[Site], feeds: Iterable[Inputs], quantize: Quantize, settings: Settings
) -> None:
    """Hands every site to ``quantize``, with the statistics of its operand over ``feeds``.

    Raises MxortError where onnxruntime cannot run the model, and without torch.
    """
    plan = stages.plan(model, sites)
    moments = with_torch("moments")
    with (
        tempfile.TemporaryDirectory(prefix="mxort-calibrate-") as folder,
        moments.computing(settings.threads, hardware.torch_device(settings.device)),
    ):
        _Run(model, plan, settings, Path(folder)).all(feeds, quantize)


class StageNodes:
    """The nodes of a stage in onnxruntime. Raises MxortError where it cannot open or run them."""

    def __init__(
        self, model: ir.Model, stage: Stage, dtypes: Mapping[str, np.dtype[Any]], threads: int
    ) -> None:
        runtime = require_onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        options.add_session_config_entry("session.force_spinning_stop", "1")  # torch has the cores next
        options.enable_cpu_mem_arena = (
            False  # results are kept: an arena that they lie in would be kept whole
        )
        if folder := stage.data_folder:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        self._outputs = list(stage.outputs)
        try:
            self._session = runtime.InferenceSession(
                stage.proto(model, dtypes).SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exception types have no common base but this
            raise MxortError(f"calibration: onnxruntime cannot open the model: {one_line(error)}") from error

    def run(self, feeds: Inputs, sample: int) -> Inputs:
        """The stage's outputs by name."""
        try:
            results = self._session.run(self._outputs, feeds)
        except Exception as error:
            raise MxortError(f"calibration: sample {sample} fails to run: {one_line(error)}") from error
        return dict(zip(self._outputs, results, strict=True))


class _Run:
    def __init__(self, model: ir.Model, plan: Sequence[Stage], settings: Settings, folder: Path) -> None:
        self._model, self._plan, self._settings = model, plan, settings
        require_onnxruntime()
        # The model as it becomes and, where that differs, as it was.
        budget = settings.memory // (2 if settings.sequential else 1)
        names = ("quantised", "float") if settings.sequential else ("float",)
        self._streams = [_Store(folder / name, budget) for name in names]

    def all(self, feeds: Iterable[Inputs], quantize: Quantize) -> None:
        count = 0
        for inputs in feeds:
            for stream in self._streams:
                stream.begin(inputs)
            count += 1
        work = sum(s.K * s.N for stage in self._plan for s in stage.sites) or 1
        done = 0
        before = _Before()
        for number, stage in enumerate(self._plan):
            what = f"calibrating, stage {number + 1} of {len(self._plan)}"
            self._settings.progress(what, done / work)
            statistics = self._collect(before, stage, count)
            before = _Before(dead=stage.dead)
            for site in stage.sites:
                self._settings.progress(f"quantising {site.name}", done / work)
                done += site.K * site.N
                result = quantize(site, statistics[_operand(site)])
                if number + 1 < len(self._plan):
                    before.layers.append((site, self._layers(site, result)))
            _return_free_memory()

    def _layers(self, site: Site, result: Result | None) -> list[Layer]:
        """For each stream the site's layer: with the quantised weight, and with the float one."""
        from mxort.quantize.moments import Linear

        weight = stages.float_weight(site)[:, : site.K] * np.float32(site.alpha)
        layer: Layer = Linear(weight, stages.own_bias(site))
        if not self._settings.sequential or result is None:
            return [layer] * len(self._streams)
        return [_kernel(site, result, self._settings.threads), layer]

    def _collect(self, before: _Before, stage: Stage, count: int) -> dict[_Operand, Statistics]:
        """Runs every sample through the layers before and the stage's nodes -> statistics of the sites' operands."""
        from mxort.quantize.moments import Moments

        groups: dict[_Operand, list[Site]] = {}
        for site in stage.sites:
            groups.setdefault(_operand(site), []).append(site)
        needed = {operand.name for operand in groups}
        run = _Nodes(self._model, stage, self._settings.threads)
        for sample in range(count):
            for number, stream in enumerate(self._streams):
                for site, layers in before.layers:
                    stream.put(
                        sample, site.node.outputs[0].name or "", _apply(site, layers[number], stream, sample)
                    )
                stream.drop(sample, before.dead)
                run(stream, sample)
                stream.drop(sample, set(stage.dead) - needed)
        collected: dict[_Operand, Statistics] = {}
        for operand, sites in groups.items():
            operator, k = self._settings.operator(sites[0]), sites[0].K
            divisor = self._smooth(operand, sites, count)
            moments = Moments(blocks_of(k) * BLOCK_SIZE, operator.rotation, operator.activation_format)
            for sample in range(count):
                rows = [_rows(stream.get(sample, operand.name), operand, k) for stream in self._streams]
                moments.add(*(rows if divisor is None else [x / divisor for x in rows]))
            collected[operand] = moments.statistics()
        return collected

    def _smooth(self, operand: _Operand, sites: Sequence[Site], count: int) -> NDArray[np.float32] | None:
        """What to divide an operand by, from rows at equal distances and the largest magnitudes of all rows."""
        if self._settings.smooth is None:
            return None
        absmax, kept = np.zeros(sites[0].K, np.float32), []
        for sample in range(count):
            x = _rows(self._streams[0].get(sample, operand.name), operand, sites[0].K)
            x = x[np.isfinite(x).all(axis=1)]
            kept.append(x[:: max(1, count * len(x) // smoothquant.SAMPLED_ROWS)].copy())
            np.maximum(absmax, np.abs(x).max(axis=0, initial=0), out=absmax)
        return self._settings.smooth(sites, np.concatenate(kept), absmax)


@dataclass
class _Before:
    """The sites of the stage before, each with its layer for every stream, and what ends with that stage.

    They are applied sample by sample on the way into the next stage, so that the outputs of wide layers are
    never kept for all samples.
    """

    layers: list[tuple[Site, list[Layer]]] = field(default_factory=list)
    dead: tuple[str, ...] = ()


def _apply(site: Site, layer: Layer, stream: _Store, sample: int) -> NDArray[Any]:
    """The site's output."""
    operand = _operand(site)
    x = stream.get(sample, operand.name)
    a = np.ascontiguousarray(x.T if operand.transpose else x, np.float32)
    return layer(a).astype(x.dtype, copy=False)


class _Nodes:
    """A stage's nodes in onnxruntime; the session is opened at the first sample, whose types it takes."""

    def __init__(self, model: ir.Model, stage: Stage, threads: int) -> None:
        self._model, self._stage, self._threads = model, stage, threads
        self._session: StageNodes | None = None

    def __call__(self, stream: _Store, sample: int) -> None:
        """Computes the stage's outputs of one sample."""
        if not self._stage.outputs:
            return
        feeds = {name: stream.get(sample, name) for name in self._stage.inputs}
        if self._session is None:
            dtypes = {name: array.dtype for name, array in feeds.items()}
            self._session = StageNodes(self._model, self._stage, dtypes, self._threads)
        for name, array in self._session.run(feeds, sample).items():
            stream.put(sample, name, array)


@dataclass(frozen=True)
class _Operand:
    """Sites with the same operand share its statistics."""

    name: str
    transpose: bool


def _operand(site: Site) -> _Operand:
    value = site.node.inputs[0]
    assert value is not None
    return _Operand(value.name or "", site.transpose_a)


def _rows(x: NDArray[Any], operand: _Operand, k: int) -> NDArray[np.float32]:
    return np.ascontiguousarray((x.T if operand.transpose else x).reshape(-1, k), np.float32)


def _kernel(site: Site, result: Result, threads: int) -> Layer:
    operator, weight = result.operator, result.weight
    divisor = result.divisor
    node = _native.MatMul(
        weight.codes,
        weight.scales,
        weight.column_scale * np.float32(site.alpha),
        stages.own_bias(site),
        site.K,
        operator.rotation,
        operator.activation_format,
        operator.accuracy_level,
        weight_format=weight.weight_format,
    )
    return lambda a: node(a if divisor is None else a / divisor, threads)


def _return_free_memory() -> None:
    """Gives what is free back to the system: glibc keeps pages that were free once between those in use."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # not in musl
    if trim is not None:
        trim(0)


class _Store:
    """Named arrays of every sample: in memory up to a budget, then in files."""

    def __init__(self, folder: Path, budget: int) -> None:
        self._folder, self._budget, self._held = folder, budget, 0
        self._arrays: list[dict[str, NDArray[Any] | Path]] = []
        self._written = 0
        folder.mkdir()

    def begin(self, inputs: Inputs) -> None:
        """A further sample, with the inputs of the model."""
        self._arrays.append({})
        for name, array in inputs.items():
            self.put(len(self._arrays) - 1, name, array)

    def put(self, sample: int, name: str, array: NDArray[Any]) -> None:
        if self._held + array.nbytes <= self._budget:
            self._held += array.nbytes
            self._arrays[sample][name] = array
            return
        self._written += 1
        path = self._folder / f"{self._written}.npy"
        np.save(path, array)
        self._arrays[sample][name] = path

    def get(self, sample: int, name: str) -> NDArray[Any]:
        kept = self._arrays[sample][name]
        if isinstance(kept, Path):
            array: NDArray[Any] = np.load(kept)
            return array
        return kept

    def drop(self, sample: int, names: Iterable[str]) -> None:
        for name in names:
            kept = self._arrays[sample].pop(name, None)
            if isinstance(kept, Path):
                kept.unlink()
            elif kept is not None:
                self._held -= kept.nbytes
