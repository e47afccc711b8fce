"""The conversion, top to bottom: load, find sites, quantise, rewrite, verify, save, report."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Unpack

import onnx
import onnx.checker
import onnx_ir as ir

from mxort.conversion import combinations, gains, remote, selection
from mxort.conversion import rows as report_rows
from mxort.conversion.gains import Gain
from mxort.conversion.one_weight import operand_of
from mxort.conversion.recipe import FLOAT, Recipe, RecipeOptions
from mxort.conversion.report import CONVERTED, SKIPPED, Report, SiteReport
from mxort.conversion.weights import Calibration, CalibrationData, Elsewhere, Packed, Packer
from mxort.converters import (
    attention,
    encoder_attention,
    epilogue,
    fusion,
    kv_cache,
    lazy_weights,
    model_io,
    rewrite,
    sites,
    storage,
    verify,
)
from mxort.converters.fusion import standard_attention
from mxort.converters.metadata import Conversion
from mxort.converters.opset import OpsetError, opset_of
from mxort.converters.staged_output import StagedOutput
from mxort.converters.storage import Storage
from mxort.errors import MxortError
from mxort.progress import Progress, silent
from mxort.text import format_bytes
from mxort.version import mxort_version


@dataclass(frozen=True)
class _Plan:
    """What is going to be done with a model: its sites, and what that leaves in the file."""

    source: model_io.Source
    recipe: Recipe
    sites: Sequence[sites.Site]
    warnings: tuple[str, ...]
    stored: Storage
    kept: tuple[SiteReport, ...]
    gains: tuple[Gain, ...]
    calibration: str = ""
    fused: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    cache_bytes: int = 0
    cluster: str | None = None

    def quantising(self) -> contextlib.AbstractContextManager[Elsewhere | None]:
        """What quantises the weights, where that is another process."""
        if self.cluster is None:
            return contextlib.nullcontext()
        return remote.quantising(self.source, self.sites, self.recipe, self.cluster)

    @property
    def nbytes(self) -> int:
        """About what will be written."""
        return self.stored.size(self.source.nbytes)


Model = str | os.PathLike[str] | onnx.ModelProto | ir.Model | model_io.Source


def convert(
    model: Model,
    out: str | os.PathLike[str] | None = None,
    recipe: Recipe | str = "weight-only",
    *,
    calibration: Calibration | CalibrationData | None = None,
    progress: Progress | None = None,
    cluster: str | None = None,
    **overrides: Unpack[RecipeOptions],
) -> Report:
    """Converts the MatMul weights of an ONNX model to MX formats and writes the model to ``out``.

    ``model`` is a path, a ModelProto or an onnx_ir Model; it is not changed. (A Source is a model that was just
    built: it is the conversion's own.) Without ``out`` a model in
    memory comes back, converted, as ``report.model``. ``recipe`` is a Recipe or the name of a preset;
    ``overrides`` change single options of it (``convert(path, out, rotation=32)``). ``calibration`` is data to
    run the model on: samples, or a file or folder of them (:mod:`mxort.calibration.data`); "self": a decoder writes
    them (:class:`mxort.SelfWritten` says how much). ``cluster`` is the address of a Ray cluster whose machines quantise
    the weights of a model file that they all can read, without calibration; "local" makes one of this machine. The
    result is the same. Where nothing can be converted the model is written as it was.

    Raises MxortError for bad input or options, and where the output cannot be written; nothing is then
    written.

    >>> import numpy as np, onnx, mxort
    >>> from onnx import helper, numpy_helper
    >>> weight = numpy_helper.from_array(np.ones((64, 32), np.float32), "w")
    >>> x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["rows", 64])
    >>> y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["rows", 32])
    >>> graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    >>> model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    >>> report = mxort.convert(model)
    >>> [(site.op_type, site.weight_format, site.original_bytes, site.converted_bytes) for site in report.converted]
    [('MatMul', 'mxfp4', 8192, 1088)]
    """
    started = time.perf_counter()
    chosen = (
        recipe.with_overrides(**overrides)
        if isinstance(recipe, Recipe)
        else Recipe.from_preset(recipe, **overrides)
    )
    if calibration is not None and not isinstance(calibration, Calibration):
        calibration = Calibration(calibration)
    combinations.check(chosen, calibration is not None)
    if cluster is not None and calibration is not None:
        raise MxortError("--ray: a cluster quantises each weight by itself: expected no calibration")
    report_progress = progress or silent
    report_progress("reading the model", 0.0)
    source = _load(model, out)
    plan = _plan(source, chosen, cluster)

    if out is None:
        pool = rewrite.TensorPool(ir.Tensor)
        plan, rows = _convert_sites(plan, pool, calibration, report_progress)
        _verify(source)
        result = model_io.to_proto(source.model) if isinstance(model, onnx.ModelProto) else source.model
        return _report(plan, "", rows, model_io.size_of(result), started, result)

    with StagedOutput(out, source, external=_needs_data_file(plan)) as output:
        pool = rewrite.TensorPool(output.put)
        plan, rows = _convert_sites(plan, pool, calibration, report_progress)
        _verify(source)
        report_progress("writing", 1.0)
        output.write(source.model)
        nbytes = output.commit()
    return _report(plan, os.fspath(out), rows, nbytes, started, None)


def _load(model: Model, out: str | os.PathLike[str] | None) -> model_io.Source:
    if isinstance(model, model_io.Source):
        source = model
    elif isinstance(model, onnx.ModelProto | ir.Model):
        source = model_io.from_memory(model)
    else:
        if out is None:
            raise MxortError(f"{os.fspath(model)}: no output path given")
        source = model_io.load(model)
    if rewrite.is_converted(source.model):
        raise MxortError(f"{source.name}: is converted already (by mxort)")
    return source


def _plan(source: model_io.Source, recipe: Recipe, cluster: str | None) -> _Plan:
    found, warnings = selection.find(source.model, recipe)
    found = lazy_weights.settle(found)
    stored = storage.after(source.model, found)
    kept = report_rows.kept(stored, {site.node for site in found}, source.nbytes)
    possible = gains.find(source.model, recipe, source.nbytes, stored.size(source.nbytes))
    return _Plan(source, recipe, found, warnings, stored, kept, possible, cluster=cluster)


def _verify(source: model_io.Source) -> None:
    """The input passed the same check, so that a complaint about the result is about mxort."""
    try:
        verify.check(source.model)
    except onnx.checker.ValidationError as error:
        raise AssertionError(f"{source.name}: the converted model is not valid: {error}") from error


def _needs_data_file(plan: _Plan) -> bool:
    """External data stays external; a large file becomes external where conversion leaves it large."""
    return bool(plan.source.data_files) or plan.nbytes > model_io.SINGLE_FILE_BYTES


def _convert_sites(
    plan: _Plan, pool: rewrite.TensorPool, calibration: Calibration | None, progress: Progress
) -> tuple[_Plan, tuple[SiteReport, ...]]:
    """Quantises the weight of every convertible site and rewrites the model -> (plan with new warnings, rows)."""
    source, found, recipe = plan.source, plan.sites, plan.recipe
    rows: list[SiteReport] = []
    conversion = Conversion(mxort_version(), recipe.to_json(), source.sha256)
    try:
        with plan.quantising() as elsewhere:
            packer = Packer(recipe, pool, calibration is not None, elsewhere)
            groups = _groups(found, calibration is not None)
            for group in groups:
                if calibration is not None and group is groups[-1]:
                    packer.calibrate(source, group, calibration, progress)
                replacements, more = _quantised(plan, group, packer, silent if calibration else progress)
                rows += more
                if replacements:
                    rewrite.apply(source.model, replacements, pool, conversion)
        if any(row.status == CONVERTED for row in rows):
            if recipe.fuse:
                plan = replace(plan, fused=_fuse(source.model))
            if recipe.kv_cache != FLOAT:
                plan = replace(plan, cache_bytes=kv_cache.quantise(source.model, recipe.kv_cache))
    except OpsetError as error:
        raise MxortError(f"{source.name}: {error}") from None
    warnings = (*plan.warnings, *packer.warnings)
    return replace(plan, warnings=warnings, calibration=packer.calibrated_on), (*rows, *plan.kept)


def _groups(found: Sequence[sites.Site], calibrated: bool) -> list[list[sites.Site]]:
    """What is converted before the next is looked at. Calibration runs experts that are MXFP4 already as they are: in
    float those of one layer may be more than a protobuf holds."""
    first: list[sites.Site] = []
    rest: list[sites.Site] = []
    for site in found:
        (first if calibrated and site.experts and lazy_weights.is_packed(site) else rest).append(site)
    return [first, rest] if first else [rest]


def _quantised(
    plan: _Plan, found: Sequence[sites.Site], packer: Packer, progress: Progress
) -> tuple[list[rewrite.Replacement], list[SiteReport]]:
    """The sites' quantised weights, and a row for each site."""
    replacements: list[rewrite.Replacement] = []
    rows: list[SiteReport] = []
    total = sum(s.K * s.N for s in found if not s.skip) or 1
    done = 0
    for site in found:
        if site.skip or site.weight is None:
            rows.append(_skipped(site, site.skip, plan.stored.read_by.get(site.node, 0)))
            continue
        progress(f"quantising {site.name}", done / total)
        done += site.K * site.N
        weight, first = packer.pack(site)
        if weight is None:
            rows.append(_not_finite(plan.source, site, plan.recipe))
            continue
        replacements.append(
            rewrite.Replacement(
                site,
                weight.tensors,
                weight.rotation,
                *operand_of(site, plan.recipe, weight.sqnr_db),
                packer.output_divisor(site),
            )
        )
        row = _converted(site, weight, plan, first)
        rows.append(replace(row, expert_rows=packer.expert_rows(site)))
    return _whole(found, replacements, rows)


def _whole(
    found: Sequence[sites.Site], replacements: list[rewrite.Replacement], rows: list[SiteReport]
) -> tuple[list[rewrite.Replacement], list[SiteReport]]:
    """Without experts of which one product could not be converted; ``rows`` has one for each that was ``found``."""
    left = {s.node for s, row in zip(found, rows, strict=True) if s.experts and row.status == SKIPPED}
    if not left:
        return replacements, rows
    kept = [row for s, row in zip(found, rows, strict=True) if s.node not in left or row.status == SKIPPED]
    return [made for made in replacements if made.site.node not in left], kept


def _fuse(model: ir.Model) -> dict[str, dict[str, int]]:
    found = {rule.NAME: rule.fuse(model) for rule in (attention, encoder_attention)} | epilogue.fuse(model)
    others = fusion.fuse(model)
    if others[standard_attention.NAME].count:  # it has looked at what the other left
        found[encoder_attention.NAME].left.clear()
    else:
        del others[standard_attention.NAME]
    found |= others
    return {operator: counts for operator, result in found.items() if (counts := result.counts())}


def _not_finite(source: model_io.Source, site: sites.Site, recipe: Recipe) -> SiteReport:
    assert site.weight is not None
    reason = f"weight {site.weight.name!r} has a NaN or an infinity"
    if recipe.strict:
        raise MxortError(f"{source.name}: node {site.name!r}: {reason}")
    return _skipped(site, reason, site.weight.nbytes)


def _skipped(site: sites.Site, reason: str, nbytes: int) -> SiteReport:
    weight = site.weight
    return SiteReport(
        site.name,
        site.op_type,
        SKIPPED,
        reason,
        site.K,
        site.N,
        weight.name if weight else "",
        nbytes,
    )


def _converted(site: sites.Site, weight: Packed, plan: _Plan, first: bool) -> SiteReport:
    assert site.weight is not None
    nbytes = weight.nbytes if first else 0
    shared = "" if nbytes else "weight shared"
    activation_format, level = operand_of(site, plan.recipe, weight.sqnr_db)
    notes = [*site.notes, weight.note, shared, report_rows.float_too(plan.stored, site)]
    return SiteReport(
        site.name,
        site.op_type,
        CONVERTED,
        K=site.K,
        N=site.N,
        weight=site.weight.name,
        original_bytes=lazy_weights.source_bytes(site),
        converted_bytes=nbytes,
        sqnr_db=weight.sqnr_db,
        rotation=weight.rotation,
        activation_format=activation_format,
        accuracy_level=level,
        algorithm=weight.algorithm,
        weight_format=site.weight_format,
        seconds=weight.seconds if first else 0.0,
        note=", ".join(note for note in notes if note),
        gain_db=weight.gain_db,
    )


def peak_rss_bytes() -> int:
    """The most memory this process has held so far. (That of getrusage begins with the parent's at fork.)"""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _report(
    plan: _Plan,
    output: str,
    rows: tuple[SiteReport, ...],
    nbytes: int,
    started: float,
    result: onnx.ModelProto | ir.Model | None,
) -> Report:
    source, warnings = plan.source, plan.warnings
    if not any(row.status == CONVERTED for row in rows):
        warnings = (*warnings, "nothing was converted")
    elif nbytes > source.nbytes and plan.stored.float_too:
        grown = format_bytes(nbytes - source.nbytes)
        warnings = (*warnings, f"the file has grown by {grown}: other nodes read weights in float too")
    return Report(
        source.name,
        output,
        plan.recipe,
        source.nbytes,
        nbytes,
        time.perf_counter() - started,
        peak_rss_bytes(),
        rows,
        mxort_version(),
        source.sha256,
        opset_of(source.model.graph),
        source.model.ir_version,
        warnings,
        plan.gains,
        plan.fused,
        plan.cache_bytes,
        plan.calibration,
        model=result,
    )
