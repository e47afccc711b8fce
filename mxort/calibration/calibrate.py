"""Running the float model in stages to learn what its weights are multiplied with, and quantising on the way.

A model is cut at its sites (``converters.stages``): onnxruntime runs what lies between them, and the sites are
done here. So each weight is quantised with the very operand it will meet, computed by the layers that were
quantised before it, in a single pass over the model, and only the values alive at one cut are ever kept.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mxort import _native
from mxort.calibration import experts
from mxort.calibration.example_inputs import Inputs
from mxort.calibration.executor import Executor, Layer, State, Store, drop, float_layer, operand_name
from mxort.calibration.operator import Operator
from mxort.converters import stages
from mxort.converters.sites import Site
from mxort.converters.stages import Stage
from mxort.formats import BLOCK_SIZE, blocks_of
from mxort.progress import Progress, silent
from mxort.quantize import QuantizedWeight, Statistics, smoothquant, with_torch
from mxort.runtime import hardware


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


QuantizeExperts = Callable[[Site, experts.Read, int, int], list[list[NDArray[np.float32]]]]
"""(site of a mixture, how to read its operands, samples, stores) -> its outputs; see :func:`experts.run`."""


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
    progress: Progress = silent
    smooth: Smooth | None = None
    device: str = "auto"
    experts: QuantizeExperts | None = None


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


class _Run:
    def __init__(self, model: ir.Model, plan: Sequence[Stage], settings: Settings, folder: Path) -> None:
        self._executor = Executor(model, plan, settings.threads)
        self._plan, self._settings = plan, settings
        # The model as it becomes and, where that differs, as it was.
        names = ("quantised", "float") if settings.sequential else ("float",)
        self._stores = [Store(folder / name, settings.memory // len(names)) for name in names]
        self._samples: list[list[State]] = []
        """For each sample its state in every store."""
        self._before: dict[ir.Node, list[Layer]] = {}
        """The layers of the stage before, for every store. They are applied sample by sample on the way into the next
        stage, so that the outputs of wide layers are never kept for all samples."""

    def all(self, feeds: Iterable[Inputs], quantize: Quantize) -> None:
        self._samples = [[store.sample(inputs) for store in self._stores] for inputs in feeds]
        work = sum(s.K * s.N for stage in self._plan for s in stage.sites) or 1
        done = 0
        for number, stage in enumerate(self._plan):
            what = f"calibrating, stage {number + 1} of {len(self._plan)}"
            self._settings.progress(what, done / work)
            statistics = self._collect(number)
            users = Counter(_operand(site) for site in stage.sites if not site.experts)
            self._before = {}
            for site in stage.sites:
                self._settings.progress(f"quantising {site.name}", done / work)
                done += site.K * site.N
                if site.experts:
                    self._quantise_experts(site)
                    continue
                operand = _operand(site)
                users[operand] -= 1
                # Large, with what a solver makes of it: gone with its last site.
                result = quantize(site, statistics[operand] if users[operand] else statistics.pop(operand))
                if number + 1 < len(self._plan):
                    self._before[site.node] = self._layers(site, result)
            _return_free_memory()

    def _quantise_experts(self, site: Site) -> None:
        """Quantises a mixture; its outputs are then part of every state."""
        assert self._settings.experts is not None
        x, logits = (value.name or "" for value in stages.operands(site))

        def read(sample: int, store: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            state = self._samples[sample][store]
            operands = (state[name] for name in (x, logits))
            rows, scores = (np.asarray(v, np.float32).reshape(-1, v.shape[-1]) for v in operands)
            return rows, scores

        outputs = self._settings.experts(site, read, len(self._samples), len(self._stores))
        for store, of_samples in enumerate(outputs):
            for i, y in enumerate(of_samples):
                state = self._samples[i][store]
                operand = state[x]
                state[site.node.outputs[0].name or ""] = y.reshape(operand.shape).astype(operand.dtype)

    def _layers(self, site: Site, result: Result | None) -> list[Layer]:
        """For each store the site's layer: with the quantised weight, and with the float one."""
        layer = float_layer(site)
        if not self._settings.sequential or result is None:
            return [layer] * len(self._stores)
        return [_kernel(site, result, self._settings.threads), layer]

    def _layer_before(self, which: int, site: Site) -> Layer:
        return self._before[site.node][which]

    def _collect(self, number: int) -> dict[_Operand, Statistics]:
        """Runs every sample through the layers before and the stage's nodes -> statistics of the sites' operands."""
        stage = self._plan[number]
        groups: dict[_Operand, list[Site]] = {}
        for site in stage.sites:
            if not site.experts:
                groups.setdefault(_operand(site), []).append(site)
        needed = {value.name for site in stage.sites for value in stages.operands(site)}
        unneeded = set(stage.dead) - needed
        for i, states in enumerate(self._samples):
            for which, state in enumerate(states):
                if number:
                    self._executor.run_sites(number - 1, state, partial(self._layer_before, which))
                self._executor.run_nodes(number, state, i)
                drop(state, unneeded)
        self._executor.close(number)
        return {operand: self._statistics(operand, sites) for operand, sites in groups.items()}

    def _statistics(self, operand: _Operand, sites: Sequence[Site]) -> Statistics:
        operator, k = self._settings.operator(sites[0]), sites[0].K
        divisor = self._smooth(operand, sites)
        gathered = with_torch("moments").Moments(
            blocks_of(k) * BLOCK_SIZE, operator.rotation, operator.activation_format
        )
        for states in self._samples:
            rows = [_rows(state[operand.name], operand, k) for state in states]
            gathered.add(*(rows if divisor is None else [x / divisor for x in rows]))
        result: Statistics = gathered.statistics()
        return result

    def _smooth(self, operand: _Operand, sites: Sequence[Site]) -> NDArray[np.float32] | None:
        """What to divide an operand by, from rows at equal distances and the largest magnitudes of all rows."""
        if self._settings.smooth is None:
            return None
        absmax, kept = np.zeros(sites[0].K, np.float32), []
        for states in self._samples:
            x = _rows(states[0][operand.name], operand, sites[0].K)
            x = x[np.isfinite(x).all(axis=1)]
            kept.append(x[:: max(1, len(self._samples) * len(x) // smoothquant.SAMPLED_ROWS)].copy())
            np.maximum(absmax, np.abs(x).max(axis=0, initial=0), out=absmax)
        return self._settings.smooth(sites, np.concatenate(kept), absmax)


@dataclass(frozen=True)
class _Operand:
    """Sites with the same operand share its statistics."""

    name: str
    transpose: bool


def _operand(site: Site) -> _Operand:
    return _Operand(operand_name(site), site.transpose_a)


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
