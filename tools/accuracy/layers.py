"""How far converted weights are from the float ones, layer by layer, on the operands of the float model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import mxort
from mxort.calibration import calibrate
from mxort.calibration import data as calibration_data
from mxort.calibration.operator import Operator
from mxort.converters import functions, model_io, sites, stages
from mxort.converters.resolving import resolve
from mxort.formats import WEIGHT_FORMATS, hadamard_rotate
from mxort.quantize import dequantize

Tokens = npt.NDArray[np.int64]
SELECTION = sites.Selection(min_elements=mxort.Recipe().min_elements)


def stored_weights(converted: Path) -> dict[str, npt.NDArray[np.float32]]:
    """W^T [N, K] of every layer, by the name of the layer's output: float32 as the file's numbers mean it."""
    model = model_io.load(converted).model
    weights = {
        output(s): stages.float_weight(s)
        for s in sites.find(model, SELECTION)
        if not s.skip and not s.experts
    }
    for node in model.graph:
        if node.domain == "mxort" and node.op_type in functions.MATMULS:
            codes, scales, multiplier = (resolve(node.inputs[i], model.ir_version).numpy() for i in (1, 2, 3))
            bits = node.attributes.get_int(functions.EXPONENT_BITS, 0)
            element = WEIGHT_FORMATS[functions.weight_format_of(node.op_type, bits)]
            rows = dequantize(codes, scales, element) * multiplier[:, None]
            weights[sites.output_name(node)] = hadamard_rotate(rows, node.attributes.get_int("rotation", 1))
    return weights


def output(site: sites.Site) -> str:
    """The layer's output, which keeps its name: a bias that is added next belongs to the layer."""
    return sites.output_name(site.bias_node or site.node)


def layer_sqnr(model: Path, converted: Path, data: Sequence[Tokens], threads: int) -> float:
    """Mean over converted layers of 10*log10(|xW|^2 / |x(W - Q)|^2), x the layer's operand in the float model.

    Activations are not rounded here: the figure is of the weights.
    """
    stored, source = stored_weights(converted), model_io.load(model)
    values = []

    def compare(site: sites.Site, statistics: Any) -> None:
        weight = stages.float_weight(site) * np.float32(site.alpha)
        error = stored[output(site)] - weight
        signal, noise = (np.vdot(w @ statistics.hessian, w) for w in (weight, error))
        values.append(10 * np.log10(signal / noise))

    found = [s for s in sites.find(source.model, SELECTION) if not s.skip and not s.experts]
    plain = Operator(1, "none", 1)
    feeds = calibration_data.samples(data, source.model, str(model))
    settings = calibrate.Settings(lambda site: plain, sequential=False, threads=threads)
    calibrate.run(source.model, found, feeds, compare, settings)
    return float(np.mean(values))
