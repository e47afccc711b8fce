"""Turning the weights of a model's sites into stored ones: one by one, or in a run over calibration data."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mxort.calibration import calibrate as calibration_run
from mxort.calibration import data as calibration_data
from mxort.calibration import experts, self_written
from mxort.calibration.example_inputs import Inputs
from mxort.calibration.operator import Operator
from mxort.calibration.self_written import SelfWritten, Written
from mxort.calibration.smoothing import Smoother
from mxort.conversion import expert_weights
from mxort.conversion.cache import Made, WeightCache
from mxort.conversion.combinations import BEST_WITHOUT_DATA, algorithm_for
from mxort.conversion.one_weight import operand_of, quantize_site, rotation_of, wanted_rotation
from mxort.conversion.recipe import Recipe
from mxort.converters import lazy_weights, rewrite, stages
from mxort.converters.model_io import Source
from mxort.converters.sites import Site
from mxort.progress import Progress
from mxort.quantize import ALGORITHMS, QuantizedWeight, Statistics

CalibrationData = (
    calibration_data.Data
    | SelfWritten
    | Sequence[calibration_data.Data | SelfWritten | calibration_data.Sample]
)
"""Data as they are given: "self" and a :class:`mxort.SelfWritten` stand for what the model is to write."""


@dataclass(frozen=True)
class Calibration:
    """The data to calibrate on (see :mod:`mxort.calibration.data`) and what the run may use.

    ``data`` may also be "self" or a :class:`mxort.SelfWritten`, or have them among its parts: a decoder then writes it.
    ``memory``: bytes of activations held in memory, beyond which they go to temporary files. ``threads``: 0 all
    cores. ``cache``: a folder that keeps finished weights, for a run that is interrupted and started again.
    ``device``: where torch computes (:func:`mxort.runtime.hardware.torch_device`). ``say`` is told once what writing
    its data will take.
    """

    data: CalibrationData
    memory: int = 512_000_000
    threads: int = 0
    cache: str | os.PathLike[str] | None = None
    device: str = "auto"
    say: Callable[[str], None] = self_written.nothing

    def read(self, source: Source, progress: Progress) -> calibration_data.Data:
        """The data, written where there are none. Raises MxortError where the model cannot."""
        if isinstance(self.data, list | tuple):
            return [self._written(part, source, progress) for part in self.data]
        return self._written(self.data, source, progress)

    def _written(self, part: Any, source: Source, progress: Progress) -> calibration_data.Data:
        settings = SelfWritten() if isinstance(part, str) and part == self_written.SELF else part
        if not isinstance(settings, SelfWritten):
            given: calibration_data.Data = settings
            return given
        return self_written.write(
            source, settings, threads=self.threads, cache=self.cache, progress=progress, say=self.say
        )


Elsewhere = Callable[[Site, str], Made]
"""Quantises the weight of a site by an algorithm without data, in another process."""

CHECKPOINT = "checkpoint"
"""In the place of an algorithm, for weights that were MXFP4 already."""


@dataclass(frozen=True)
class Packed:
    """A quantised and stored weight. ``nbytes`` is 0 where one with the same content was there.

    ``gain_db``: see :class:`mxort.conversion.report.SiteReport`.
    """

    tensors: rewrite.PackedTensors
    sqnr_db: float
    rotation: int
    nbytes: int
    algorithm: str
    seconds: float
    note: str
    gain_db: float | None = None

    def quantized(self) -> QuantizedWeight:
        return QuantizedWeight(
            self.tensors.codes.numpy(),
            self.tensors.scales.numpy(),
            self.tensors.column_scale,
            self.note,
            self.tensors.weight_format,
        )


class Packer:
    """Quantises weights as the recipe says, each once, and stores them in ``pool``.

    ``elsewhere`` does the first, where there is no calibration.
    """

    def __init__(
        self, recipe: Recipe, pool: rewrite.TensorPool, calibrated: bool, elsewhere: Elsewhere | None = None
    ) -> None:
        self._recipe, self._pool, self._elsewhere = recipe, pool, elsewhere
        self._algorithm = algorithm_for(recipe, calibrated)
        self._packed: dict[Any, Packed | None] = {}
        self._notes: dict[ir.Node, str] = {}
        self._asked: set[Any] = set()
        self._cache: WeightCache | None = None
        self._smoother: Smoother | None = None
        self.calibrated_on = ""
        self._stacks: dict[ir.Node, tuple[Site, Site]] = {}
        self._expert_rows: dict[ir.Node, tuple[int, ...]] = {}
        self._few_rows: dict[str, tuple[int, int]] = {}
        """Nodes that met fewer rows than they have inputs -> (rows, inputs)."""

    def calibrate(
        self, source: Source, found: Sequence[Site], calibration: Calibration, progress: Progress
    ) -> None:
        """Quantises the weights of all sites that calibration reaches, each with the operand of its first site.

        Raises MxortError for data that does not fit the model and where onnxruntime cannot run it.
        """
        convertible = [s for s in found if not s.skip and s.weight is not None and not s.wide_table]
        self._notes = {site.node: stages.refusal(source.model, site) for site in convertible}
        data = calibration.read(source, progress)
        self.calibrated_on = _described(data)
        feeds: Iterable[Inputs] = calibration_data.samples(data, source.model, source.name)
        if calibration.cache is not None:
            self._cache = WeightCache(Path(calibration.cache), source, self._recipe)
            feeds = self._cache.watch(feeds)
        if ALGORITHMS[self._algorithm].smooth:
            self._smoother = Smoother(
                source.model, found, self._recipe, lambda site: self._operator(site, self._algorithm)
            )
        reached = [site for site in convertible if not self._notes[site.node]]
        pairs = itertools.pairwise(site for site in reached if site.experts)
        self._stacks = {first.node: (first, second) for first, second in pairs if first.node is second.node}
        settings = calibration_run.Settings(
            lambda site: self._operator(site, self._algorithm),
            self._recipe.sequential,
            calibration.memory,
            calibration.threads,
            progress,
            self._smoother,
            calibration.device,
            lambda *where: self._calibrated_experts(*where, threads=calibration.threads),
        )
        calibration_run.run(
            source.model,
            [site for site in reached if not site.operand],
            feeds,
            self._calibrated,
            settings,
        )
        if self._smoother is not None:
            self._smoother.fold()

    def _calibrated(self, site: Site, statistics: Statistics) -> calibration_run.Result | None:
        assert site.weight is not None
        key = site.weight.identity, site.weight_format
        if statistics.rows < site.K:
            self._few_rows[site.name] = statistics.rows, site.K
        if key not in self._packed:
            self._packed[key] = self._pack(site, self._algorithm, statistics)
        packed = self._packed[key]
        if packed is None:
            return None
        operand = operand_of(site, self._recipe, packed.sqnr_db)
        operator = Operator(rotation_of(site, self._recipe, self._algorithm), *operand)
        if self._smoother is not None:
            self._smoother.converted(site)
        return calibration_run.Result(packed.quantized(), operator, self._divisor(site))

    def _calibrated_experts(
        self, site: Site, read: experts.Read, samples: int, stores: int, *, threads: int
    ) -> list[list[NDArray[np.float32]]]:
        """Quantises a mixture of experts; see :data:`mxort.calibration.calibrate.QuantizeExperts`."""
        started = time.perf_counter()
        pair = self._stacks[site.node]
        made = [expert_weights.Stack(stack, self._recipe, self._algorithm) for stack in pair]
        rotation = rotation_of(site, self._recipe, self._algorithm)
        operator = Operator(rotation, *operand_of(site, self._recipe, 0.0))
        outputs = experts.run(
            experts.Mixture(pair, operator, threads),
            read,
            samples,
            stores,
            lambda stack, expert, array, statistics: made[stack.operand].add(expert, array, statistics),
        )
        for stack in made:
            weight = stack.site.weight
            assert weight is not None
            key = weight.identity, stack.site.weight_format
            whole = stack.weight() if all(s.finite for s in made) else None
            self._packed[key] = (
                None if whole is None else self._stored(stack.site, self._algorithm, *whole, started)
            )
        self._expert_rows[site.node] = tuple(made[0].rows)
        return outputs

    def expert_rows(self, site: Site) -> tuple[int, ...]:
        """How many rows of the calibration data each expert of a mixture saw; () for other sites."""
        return self._expert_rows.get(site.node, ())

    def _divisor(self, site: Site) -> NDArray[np.float32] | None:
        """What the operand of the site is divided by before it gets there, float32 [K]."""
        return None if self._smoother is None else self._smoother.divisors.get(site.node)

    def output_divisor(self, site: Site) -> NDArray[np.float32] | None:
        """What the output columns of the site are to be divided by, float32 [N], so that the next one is smoothed."""
        return None if self._smoother is None else self._smoother.output_divisors.get(site.node)

    def pack(self, site: Site) -> tuple[Packed | None, bool]:
        """(the site's weight, None if it has a NaN or an infinity; whether it is asked for the first time)."""
        assert site.weight is not None
        key = site.weight.identity, site.weight_format
        first = key not in self._asked
        self._asked.add(key)
        if key not in self._packed:
            reachable = not ALGORITHMS[self._algorithm].calibrated
            self._packed[key] = self._pack(site, self._algorithm if reachable else BEST_WITHOUT_DATA, None)
        return self._packed[key], first

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should hear about the run."""
        kept = (self._cache.warning,) if self._cache is not None and self._cache.warning else ()
        if not self._few_rows:
            return kept
        rows, most = min(x for x, _ in self._few_rows.values()), max(x for _, x in self._few_rows.values())
        layers = f"{len(self._few_rows)} layers of up to {most} inputs"
        return (*kept, f"few calibration data: {rows} rows for {layers}: several times as many do better")

    def _operator(self, site: Site, algorithm: str) -> Operator:
        """How a site will run, as far as that is known before its weight is quantised: but for the level."""
        rotation = rotation_of(site, self._recipe, algorithm)
        return Operator(rotation, self._recipe.activation_format, self._recipe.accuracy_level)

    def _pack(self, site: Site, algorithm: str, statistics: Statistics | None) -> Packed | None:
        """Quantises and stores a weight, W^T [N, K]; None if it has a NaN or an infinity."""
        started = time.perf_counter()
        divisor = self._divisor(site)

        def make() -> Made:
            if self._elsewhere is not None:
                return self._elsewhere(site, algorithm)
            return quantize_site(site, self._recipe, algorithm, statistics, divisor)

        cache = None if statistics is None else self._cache
        quantized, sqnr = make() if cache is None else cache.get(site, make)
        if not quantized.finite:
            return None
        return self._stored(site, algorithm, quantized, sqnr, started, statistics)

    def _stored(
        self,
        site: Site,
        algorithm: str,
        quantized: QuantizedWeight,
        sqnr: float,
        started: float,
        statistics: Statistics | None = None,
    ) -> Packed:
        """Stores a quantised weight."""
        codes, new_codes = self._pool.put(site.stacked(quantized.codes))
        scales, new_scales = self._pool.put(site.stacked(quantized.scales))
        nbytes = new_codes * codes.nbytes + new_scales * scales.nbytes
        rotation = rotation_of(site, self._recipe, algorithm)
        wanted = wanted_rotation(self._recipe, algorithm)
        width = f"K = {site.K}" if not site.experts else f"{site.rotation_width}, which divides both K,"
        reduced = f"rotation {rotation}, as {width} does not fit {wanted}" if rotation != wanted else ""
        if site.table:  # a Gather has no rotation
            reduced = "not rotated: a table" if self._recipe.rotation > 1 else ""
        smoothed = "" if self._smoother is None else self._smoother.notes.get(site.node, "")
        if kept := lazy_weights.is_packed(site):
            algorithm, reduced = CHECKPOINT, ""
        uncalibrated = "" if kept else self._notes.get(site.node, "")
        notes = [uncalibrated, _left_out(statistics), reduced, smoothed, quantized.note]
        return Packed(
            rewrite.PackedTensors(codes, scales, quantized.column_scale, site.weight_format),
            sqnr,
            rotation,
            nbytes,
            algorithm,
            time.perf_counter() - started,
            ", ".join(note for note in notes if note),
            _gain_db(quantized),
        )


def _described(data: Any) -> str:
    if isinstance(data, Written):
        return data.description
    if isinstance(data, str | os.PathLike):
        return os.fspath(data)
    parts = isinstance(data, list) and not any(isinstance(part, Mapping | np.ndarray) for part in data)
    return ", ".join(_described(part) for part in data) if parts else "samples in memory"


def _gain_db(weight: QuantizedWeight) -> float | None:
    """10 log10 of the loss of plain rounding over the one reached; None where nothing was solved or lost."""
    plain, reached = weight.losses or (0.0, 0.0)
    finite = 0 < reached < math.inf and 0 < plain < math.inf
    return 10 * math.log10(plain / reached) if finite else None


def _left_out(statistics: Statistics | None) -> str:
    """What to tell of positions of padding that compute NaN."""
    if statistics is None or not statistics.left_out:
        return ""
    count = statistics.rows + statistics.left_out
    return f"{statistics.left_out} of {count} rows of its input are not finite and left out"
