"""What a model's outputs lose when one of its weights is quantised, for each of them: what mixed precision needs.

The float model is run stage by stage (``converters.stages``). At each of a stage's sites the weight is quantised alone,
and what lies behind is run with it: half of the model, on average, for each weight.
"""

from __future__ import annotations

import os
import tempfile
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mxort import quantize
from mxort.calibration import data as calibration_data
from mxort.calibration.example_inputs import Inputs
from mxort.calibration.executor import Executor, Layer, State, Store, float_layer
from mxort.calibration.losses import Divergence, Loss, Noise
from mxort.calibration.site_losses import BASE, KeptSites, Sensitivity, SiteSensitivity
from mxort.conversion.recipe import Recipe
from mxort.converters import model_io, products, sites, stages
from mxort.converters.sites import Site
from mxort.errors import MxortError
from mxort.formats import WEIGHT_FORMATS
from mxort.progress import Progress, silent
from mxort.quantize import Settings
from mxort.quantize.base import dequantize, with_torch
from mxort.runtime import hardware

_LOGITS = "logits"
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass
class Options:
    """``samples``: how many of the data. ``cache``: a folder that keeps finished sites. ``threads``: 0 all.

    ``memory``: bytes of activations held, the rest is on disk.
    ``device``: where torch computes (:func:`mxort.runtime.hardware.torch_device`).
    """

    samples: int = 2
    threads: int = 0
    cache: str | os.PathLike[str] | None = None
    progress: Progress = silent
    device: str = "auto"
    memory: int = 512_000_000


class Probe:
    """A float model with its data, to ask what quantising some of its weights costs.

    The weights are those that ``recipe`` converts. They are rounded to nearest with the recipe's scale rule and column
    multiplier, without rotation; activations are not rounded. Data: :mod:`mxort.calibration.data`. Raises MxortError
    for a model that cannot be run or data that does not fit, and without torch. The float weights are held in memory.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        data: calibration_data.Data,
        recipe: Recipe | None = None,
        options: Options | None = None,
    ) -> None:
        self._recipe, self._options = recipe or Recipe(), options or Options()
        self._source = model_io.load(model)
        products.express(self._source.model, self._recipe.selection())
        found = [
            site
            for site in sites.find(self._source.model, self._recipe.selection())
            if not site.skip and site.weight and not site.wide_table
        ]
        reasons = {
            site.id: "experts are not measured" if site.experts else stages.refusal(self._source.model, site)
            for site in found
        }
        self._refused = {site.name: reasons[site.id] for site in found if reasons[site.id]}
        samples = calibration_data.samples(data, self._source.model, self._source.name)
        self._feeds = list(islice(samples, self._options.samples))
        self._kept = KeptSites(self._options.cache, self._source.sha256, self._recipe, self._feeds)
        measured = [site for site in found if not reasons[site.id]]
        self._run = _Run(self._source.model, measured, self._recipe, self._options)

    def sensitivity(self) -> Sensitivity:
        """Every weight quantised alone."""
        with self._computing(), tempfile.TemporaryDirectory(prefix="mxort-sensitivity-") as folder:
            rows = list(self._run.alone(self._feeds, self._kept, Path(folder)))
        rows.sort(key=lambda row: row.loss[BASE], reverse=True)
        return Sensitivity(
            self._source.name,
            self._source.sha256,
            self._run.loss.name,
            len(self._feeds),
            tuple(rows),
            self._refused,
            self._run.loss.left_out,
        )

    def _computing(self) -> AbstractContextManager[None]:
        moments = with_torch("moments")
        found: AbstractContextManager[None] = moments.computing(
            self._options.threads, hardware.torch_device(self._options.device)
        )
        return found

    def loss(self, formats: Mapping[str, str]) -> float:
        """The loss with all weights quantised, in the format that ``formats`` has for the node."""
        with self._computing():
            return self._run.together(self._feeds, formats)


class _Run:
    """What is measured, on the model's stages."""

    def __init__(self, model: ir.Model, measured: Sequence[Site], recipe: Recipe, options: Options) -> None:
        outputs = [value for value in model.graph.outputs if value.dtype in _FLOATS]
        logits = [value for value in outputs if value.name == _LOGITS]
        if not outputs:
            raise MxortError("the model has no float output to compare")
        self.loss: Loss = Divergence() if logits else Noise()
        self._outputs = [value.name or "" for value in (logits or outputs)]
        self._recipe, self._options = recipe, options
        self._plan = stages.plan(model, measured, logits or outputs)
        self._executor = Executor(model, self._plan, options.threads)
        self._layers: dict[ir.Node, Layer] = {}
        self._names: dict[Any, str] = {}

    def alone(self, feeds: Sequence[Inputs], kept: KeptSites, folder: Path) -> Iterator[SiteSensitivity]:
        """Every site, in the order of the model. ``folder`` takes what the memory has no room for."""
        self._options.progress("running the float model", 0.0)
        self._refer(feeds)
        store = Store(folder, self._options.memory)
        states = [store.sample(inputs) for inputs in feeds]
        count, done = sum(len(stage.sites) for stage in self._plan), 0
        for number, stage in enumerate(self._plan):
            for i, state in enumerate(states):
                self._executor.run_nodes(number, state, i)
            for site in stage.sites:
                self._options.progress(f"measuring {site.name}", done / count)
                done += 1
                if site.id not in kept.losses:
                    kept.add(site.id, self._losses(number, site, states))
                yield SiteSensitivity(site.name, self._weight(site), site.K, site.N, kept.losses[site.id])
            for state in states:
                self._executor.run_sites(number, state, self._float)

    def together(self, feeds: Sequence[Inputs], formats: Mapping[str, str]) -> float:
        """The mean loss over the samples with every site quantised."""
        self._refer(feeds)
        found = [site for stage in self._plan for site in stage.sites]
        layers = {site.node: self._quantised(site, formats[site.name])[0] for site in found}
        total = sum(
            self.loss.of(self._from_start(inputs, i, lambda site: layers[site.node]), i)
            for i, inputs in enumerate(feeds)
        )
        if not np.isfinite(total):
            raise MxortError(
                "with all weights quantised the outputs are not finite where the float model's are"
            )
        return total / len(feeds)

    def _weight(self, site: Site) -> str:
        """What the site's weight is called, which no other weight is: one constant may be read in two ways."""
        assert site.weight is not None
        if site.weight.identity not in self._names:
            name = site.weight.name or site.id
            self._names[site.weight.identity] = f"{name}, {site.id}" if name in self._names.values() else name
        return self._names[site.weight.identity]

    def _refer(self, feeds: Sequence[Inputs]) -> None:
        """Keeps the float model's outputs, once."""
        for sample in range(self.loss.count, len(feeds)):
            self.loss.reference(self._from_start(feeds[sample], sample, self._float))

    def _losses(self, number: int, site: Site, states: Sequence[State]) -> dict[str, float]:
        layer, noise = self._quantised(site, BASE)
        total = 0.0
        for sample, state in enumerate(states):
            trial = ChainMap({}, state)
            outputs = self._rest(
                number, trial, sample, lambda other: layer if other is site else self._float(other)
            )
            total += self.loss.of(outputs, sample)
        if not np.isfinite(total):
            raise MxortError(
                f"node {site.name!r}: with its weight in {BASE} the outputs are not finite where the float model's are"
            )
        if noise == 0:
            return dict.fromkeys(WEIGHT_FORMATS, 0.0)
        ratios = {name: self._quantised(site, name)[1] / noise for name in WEIGHT_FORMATS if name != BASE}
        return {name: total / len(states) * ratio for name, ratio in ({BASE: 1.0} | ratios).items()}

    def _quantised(self, site: Site, weight_format: str) -> tuple[Layer, float]:
        """The site with its weight rounded, and the noise of the weight over its signal."""
        recipe, rows = self._recipe, stages.float_weight(site)
        settings = Settings(recipe.scale_rule, recipe.column_multiplier, weight_format=weight_format)
        weight, sqnr = quantize.quantize_weight(
            lambda start, stop: rows[start:stop],
            site.N,
            site.K,
            quantize.ALGORITHMS["rtn"].quantize,
            settings,
            rotation=1,
        )
        if not weight.finite:
            raise MxortError(f"node {site.name!r}: its weight has a NaN or an infinity")
        with np.errstate(over="ignore"):  # the outputs tell
            restored = dequantize(weight.codes, weight.scales, weight.element) * weight.column_scale[:, None]
        return float_layer(site, restored), 10 ** (-sqnr / 10)

    def _from_start(
        self, inputs: Inputs, sample: int, layer_of: Callable[[Site], Layer]
    ) -> list[NDArray[Any]]:
        """The outputs of the model."""
        state = dict(inputs)
        self._executor.run_nodes(0, state, sample)
        return self._rest(0, state, sample, layer_of)

    def _rest(
        self, number: int, state: State, sample: int, layer_of: Callable[[Site], Layer]
    ) -> list[NDArray[Any]]:
        """The outputs of the model from the sites of stage ``number`` on."""
        self._executor.run_sites(number, state, layer_of)
        for later in range(number + 1, len(self._plan)):
            self._executor.run_nodes(later, state, sample)
            self._executor.run_sites(later, state, layer_of)
        return [state[name] for name in self._outputs]

    def _float(self, site: Site) -> Layer:
        if site.node not in self._layers:
            self._layers[site.node] = float_layer(site)
        return self._layers[site.node]
