"""The import, top to bottom: open the checkpoint, build the graph, convert, put the folder in its place, report."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, Unpack

import onnx_ir as ir
from rich.console import Console

from mxort.calibration.self_written import asked_for
from mxort.conversion import tables
from mxort.conversion.pipeline import convert
from mxort.conversion.recipe import Recipe, RecipeOptions
from mxort.conversion.report import Report, SiteReport
from mxort.conversion.weights import CHECKPOINT, Calibration, CalibrationData
from mxort.converters import hashing, model_io
from mxort.converters.lazy_weights import LazyWeight, Rows
from mxort.errors import MxortError
from mxort.models import builder, configuration, genai_config, origin
from mxort.models.checkpoint import Checkpoint, open_checkpoint
from mxort.models.gguf_checkpoint import open_gguf
from mxort.models.staged_folder import StagedFolder
from mxort.progress import Progress, silent
from mxort.runtime.session import LIBRARY_NAME, get_library_path
from mxort.text import few, format_bytes

GGUF = ".gguf"

MODEL = "model.onnx"
"""The name that genai_config.json has for it."""


@dataclass(frozen=True)
class ImportReport:
    """What an import did. ``conversion`` has a row for each weight; its ``algorithm`` is "checkpoint" for those kept.

    ``format`` is that of the checkpoint's MXFP4 weights, "" where there are none.
    """

    checkpoint: str
    output: str
    architecture: str
    format: str
    checkpoint_bytes: int
    conversion: Report
    seconds: float
    warnings: tuple[str, ...] = ()

    @property
    def kept(self) -> tuple[SiteReport, ...]:
        """The weights whose codes and scales are the checkpoint's own."""
        return tuple(site for site in self.conversion.converted if site.algorithm == CHECKPOINT)

    @property
    def quantized(self) -> tuple[SiteReport, ...]:
        """The weights that were float and are converted as the recipe says."""
        return tuple(site for site in self.conversion.converted if site.algorithm != CHECKPOINT)

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON types; ``kept`` and ``quantized`` by the names of their nodes."""
        return {
            "checkpoint": self.checkpoint,
            "output": self.output,
            "architecture": self.architecture,
            "format": self.format,
            "checkpoint_bytes": self.checkpoint_bytes,
            "seconds": self.seconds,
            "warnings": list(self.warnings),
            "kept": [site.node for site in self.kept],
            "quantized": [site.node for site in self.quantized],
            "conversion": self.conversion.to_dict(),
        }

    def summary(self) -> str:
        """Lines: which weights were kept and which converted."""
        kept, quantized = self.kept, self.quantized
        what = f"{self.architecture}{f', {self.format}' if self.format else ''}"
        before, after = format_bytes(self.checkpoint_bytes), format_bytes(self.conversion.converted_bytes)
        peak = format_bytes(self.conversion.peak_rss_bytes)
        lines = [f"{what}: {before} -> {after} in {self.output}, {self.seconds:.1f} s, peak memory {peak}"]
        if kept:
            nbytes = format_bytes(sum(site.converted_bytes for site in kept))
            lines.append(f"{len(kept)} weights kept as the checkpoint has them, byte for byte: {nbytes}")
            rounded = sorted({site.activation_format for site in kept} - {"none"})
            lines += [f"activations before them rounded to {', '.join(rounded)}"] if rounded else []
        if quantized:
            formats = ", ".join(sorted({site.weight_format for site in quantized}))
            lines.append(
                f"{len(quantized)} weights converted from float: {formats} ({few([s.node for s in quantized])})"
            )
        return "\n".join(lines)

    def print(self, console: Console) -> None:
        """Writes the tables of the weights and the summary."""
        sites = self.conversion
        for table in (
            tables.grouped(sites.converted) if sites.converted else None,
            tables.left_alone(sites.skipped, sites.converted_bytes) if sites.skipped else None,
            *tables.fused(sites.fused),
        ):
            if table is not None:
                console.print(table, highlight=False)
        console.print(self.summary(), markup=False, highlight=False)


def import_checkpoint(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    recipe: Recipe | str = "weight-only",
    *,
    calibration: Calibration | CalibrationData | None = None,
    float_activations: bool = False,
    library: bool = True,
    progress: Progress | None = None,
    **overrides: Unpack[RecipeOptions],
) -> ImportReport:
    """Makes a folder that onnxruntime-genai runs of a Hugging Face folder (config.json, safetensors, a tokenizer) or a
    GGUF file.

    Weights that are MXFP4 in the checkpoint keep their codes and scales byte for byte, and have their operands rounded
    as the checkpoint asks, unless ``float_activations``. The others are converted as ``recipe`` and ``calibration``
    say, as by :func:`mxort.convert`, in the same pass. ``library``: whether a copy of libmxort.so goes into the folder,
    with which the folder runs where mxort is not imported. ``out`` appears whole or not at all.

    Raises MxortError, before anything is written, for a checkpoint that is damaged, quantised in a way that cannot be
    kept, or of an architecture that cannot be built; for calibration that the model would have to write; where a
    library is missing; and where ``out`` exists.
    """
    started = time.perf_counter()
    report_progress = progress or silent
    chosen = (
        recipe.with_overrides(**overrides)
        if isinstance(recipe, Recipe)
        else Recipe.from_preset(recipe, **overrides)
    )
    data = calibration.data if isinstance(calibration, Calibration) else calibration
    if asked_for(data):
        raise MxortError(f"{checkpoint}: calibration self: there is no model to write before it is imported")
    builder.require()
    report_progress("reading the checkpoint", 0.0)
    path = Path(checkpoint)
    is_gguf = path.suffix.lower() == GGUF and not path.is_dir()
    opened = open_gguf(path) if is_gguf else open_checkpoint(path, float_activations=float_activations)
    doubts = tuple(configuration.check(opened))
    with (
        StagedFolder(out, opened.folder) as output,
        hashing.beside((opened.settings, *opened.files)) as digest,
    ):
        report_progress("building the graph", 0.0)
        with output.naming():
            graph = builder.build(opened, output.staged)
        warnings = (*doubts, *opened.notes, *_unused(opened, graph.unused))
        origins = _annotate(graph.model)
        target = output.place(PurePath(MODEL))
        with output.naming():
            report = convert(
                _source(opened, graph.model, digest),
                target,
                chosen,
                calibration=calibration,
                progress=progress,
            )
        _check_all_kept(opened, report, origins)
        _configure(output, report.cache_bytes, library)
        output.write(origin.plain_config(opened), PurePath(origin.CONFIG))
        with output.naming():
            origin.write(opened, output.place(PurePath(origin.FILE)), _held(origins))
        output.commit()
    report = replace(report, output=str(Path(out) / MODEL))
    return ImportReport(
        str(opened.folder),
        str(out),
        opened.architecture,
        opened.format,
        opened.nbytes,
        report,
        time.perf_counter() - started,
        (*warnings, *report.warnings),
    )


def _unused(checkpoint: Checkpoint, names: tuple[str, ...]) -> Iterator[str]:
    """What is left of the checkpoint. Raises MxortError where that is an MXFP4 weight, or anything of a GGUF."""
    for name in names:
        if weight := checkpoint.packed.get(name):
            raise MxortError(f"{weight.codes.label} is MXFP4, but no weight of {checkpoint.architecture}")
    if names:
        text = f"{checkpoint.architecture} has no place for {few(list(names))}"
        if checkpoint.write_tokenizer is not None:  # no part of another model goes along in such a file
            raise MxortError(f"{checkpoint.folder}: {text}")
        yield text


def _annotate(model: ir.Model) -> dict[str, tuple[Rows, ...]]:
    """Writes into each node where its weight comes from; the same by the node's name."""
    found: dict[str, tuple[Rows, ...]] = {}
    for node in model.graph:
        for weight in filter(None, map(_weight, node.inputs)):
            pieces = (*found.get(node.name or "", ()), *weight.pieces)
            found[node.name or ""] = pieces
            node.metadata_props[origin.NAMES] = json.dumps([piece.name for piece in pieces])
            node.metadata_props[origin.ROWS] = json.dumps([piece.shape[0] for piece in pieces])
    return found


def _held(origins: Mapping[str, tuple[Rows, ...]]) -> frozenset[str]:
    """The checkpoint's tensors that are in weights of nodes."""
    names = (piece.name.partition("[")[0] for pieces in origins.values() for piece in pieces)
    return frozenset(one for name in names for one in name.split(origin.IN_TURN))


def _weight(value: ir.Value | None) -> LazyWeight | None:
    """The weight that a node reads, through a Transpose too."""
    node = None if value is None else value.producer()
    if node is not None and node.op_type == "Transpose":
        value = node.inputs[0]
    tensor = None if value is None else value.const_value
    return tensor if isinstance(tensor, LazyWeight) else None


def _source(checkpoint: Checkpoint, model: ir.Model, digest: Future[str]) -> model_io.Source:
    """The graph as the conversion takes it, of the size that it has in float; its files are the checkpoint's."""
    return replace(
        model_io.from_memory(model),
        name=str(checkpoint.folder),
        path=checkpoint.settings,
        data_files=checkpoint.files,
        digest=digest,
    )


def _check_all_kept(checkpoint: Checkpoint, report: Report, origins: Mapping[str, tuple[Rows, ...]]) -> None:
    """Every row of every MXFP4 weight is in the file. Raises MxortError otherwise."""
    expected = sum(math.prod(weight.shape[:-1]) for weight in checkpoint.packed.values())
    kept = {
        piece.name: piece.shape[0]
        for site in report.converted
        if site.algorithm == CHECKPOINT
        for piece in origins[site.node]
    }
    if sum(kept.values()) != expected:
        raise MxortError(
            f"{checkpoint.folder}: kept {sum(kept.values())} of {expected} rows in MXFP4: the graph of "
            f"{checkpoint.architecture} does not hold the weights as the checkpoint does"
        )


def _configure(output: StagedFolder, cache_bytes: int, library: bool) -> None:
    """What the configuration says beyond what the builder wrote, and a copy of the library."""
    config = genai_config.load(output.staged)
    if library:
        genai_config.name_library(config, LIBRARY_NAME)
        output.copy(Path(get_library_path()), PurePath(LIBRARY_NAME))
    if cache_bytes:
        genai_config.set_head_size(config, cache_bytes)
    output.write(genai_config.text(config), PurePath(genai_config.NAME))
