"""The conversion of a folder: its models converted, the rest copied, all of it at its place at the end."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, Unpack

from mxort.conversion.pipeline import convert
from mxort.conversion.recipe import Recipe, RecipeOptions
from mxort.conversion.weights import Calibration, CalibrationData
from mxort.converters import model_io, rewrite
from mxort.errors import MxortError
from mxort.models import folder as folders
from mxort.models import genai_config
from mxort.models.folder import GENAI, ModelFile, ModelFolder
from mxort.models.report import FolderReport, ModelReport
from mxort.models.staged_folder import StagedFolder
from mxort.progress import Progress, silent
from mxort.runtime.session import LIBRARY_NAME, get_library_path


def convert_folder(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    recipe: Recipe | str = "weight-only",
    *,
    calibration: Calibration | CalibrationData | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
    cluster: str | None = None,
    **overrides: Unpack[RecipeOptions],
) -> FolderReport:
    """Converts the models of a folder and writes it, with all else that is in it, to the folder ``out``.

    ``folder`` is one of onnxruntime-genai (genai_config.json), or of optimum or sentence-transformers (config.json or
    modules.json). Models keep their names; those in which nothing can be converted, and further forms of one
    (model_quantized.onnx beside model.onnx), are copied. An embedding that is a model of its own in a genai folder is
    converted as one beside its output projection is. A genai folder gets a copy of libmxort.so, which its
    configuration names: it runs by ``onnxruntime_genai.Model(out)`` and nothing else. Hidden files are left out.

    ``out`` may exist where it is empty; ``overwrite`` replaces another folder of models. The other arguments are those
    of :func:`mxort.convert`; ``calibration`` is for folders with one model to convert.

    Raises MxortError for bad input or options, and where the output cannot be written; nothing is then written.
    """
    started = time.perf_counter()
    chosen = (
        recipe.with_overrides(**overrides)
        if isinstance(recipe, Recipe)
        else Recipe.from_preset(recipe, **overrides)
    )
    found = folders.read(folder)
    count = len(found.to_convert)
    if calibration is not None and count != 1:
        raise MxortError(f"{folder}: calibration is for one model, and {count} are to be converted")
    config = _config(found)
    with StagedFolder(out, found.path, overwrite) as output:
        files = {model.path: _files(found, model) for model in found.models}
        total = sum(part.nbytes for part in files.values()) or 1
        done, rows = 0, []
        for model in found.models:
            part = files[model.path]
            step = _share(progress or silent, str(model.path), done / total, part.nbytes / total)
            rows.append(_convert(found, model, part.nbytes, output, chosen, calibration, step, cluster))
            done += part.nbytes
        copied = _copy_rest(found, rows, files, output, config)
        output.commit()
    seconds = time.perf_counter() - started
    source, target = os.fspath(folder), os.fspath(out)
    return FolderReport(source, target, found.kind, tuple(rows), *copied, seconds, found.warnings)


def check(found: ModelFolder) -> None:
    """Raises MxortError for a folder that :func:`convert_folder` refuses, whatever the output."""
    _config(found)
    for model in found.models:
        _files(found, model)


@dataclass(frozen=True)
class _Files:
    """The files of a model: what its external data is in, resolved, and the bytes of all."""

    data: frozenset[Path]
    nbytes: int


def _files(found: ModelFolder, model: ModelFile) -> _Files:
    """Raises MxortError for a model that is to be converted and cannot be."""
    path = found.path / model.path
    try:
        source = model_io.load(path)
    except MxortError:
        if not model.keep:
            raise
        return _Files(frozenset(), path.stat().st_size)  # nobody asked for it: it goes along as it is
    if not model.keep and rewrite.is_converted(source.model):
        raise MxortError(f"{path}: is converted already (by mxort)")
    return _Files(frozenset(source.data_files), source.nbytes)


def recipe_for(found: ModelFolder, model: ModelFile, recipe: Recipe) -> Recipe:
    """What ``recipe`` means for a model of a folder."""
    if found.kind == GENAI and model.is_embedding:
        return recipe.with_overrides(convert_embedding=True)
    return recipe


def _config(found: ModelFolder) -> dict[str, Any]:
    """What a genai folder is to have as its configuration; {} for other folders."""
    if found.kind != GENAI:
        return {}
    get_library_path()  # raises where there is none to copy
    config = genai_config.load(found.path)
    genai_config.name_library(config, LIBRARY_NAME)
    return config


def _share(progress: Progress, name: str, start: float, part: float) -> Progress:
    return lambda what, fraction: progress(f"{name}: {what}", start + fraction * part)


def _convert(
    found: ModelFolder,
    model: ModelFile,
    nbytes: int,
    output: StagedFolder,
    recipe: Recipe,
    calibration: Calibration | CalibrationData | None,
    progress: Progress,
    cluster: str | None,
) -> ModelReport:
    """Converts a model into the staged folder. One in which nothing is converted is not left there."""
    if model.keep:
        return ModelReport(str(model.path), model.part, model.keep, nbytes, nbytes)
    source, target = found.path / model.path, output.place(model.path)
    with output.naming():
        report = convert(
            source,
            target,
            recipe_for(found, model, recipe),
            calibration=calibration,
            progress=progress,
            cluster=cluster,
        )
    nbytes_now = report.converted_bytes if report.converted else nbytes
    report = replace(report, output=str(output.path / model.path), converted_bytes=nbytes_now)
    if report.converted:
        return ModelReport(str(model.path), model.part, "", nbytes, report.converted_bytes, report)
    for written in (target, *target.parent.glob(f"{target.name}.*.data")):
        written.unlink()
    return ModelReport(
        str(model.path), model.part, "nothing in it is to be converted", nbytes, nbytes, report
    )


def _copy_rest(
    found: ModelFolder,
    rows: Sequence[ModelReport],
    files: Mapping[PurePath, _Files],
    output: StagedFolder,
    config: dict[str, Any],
) -> tuple[int, int]:
    """Copies what is not there yet and needed -> how many files that are no models, and their bytes."""
    converted = {PurePath(row.path) for row in rows if row.converted}
    models = {row.path for row in rows}
    read = {path for model, part in files.items() if model not in converted for path in part.data}
    unread = {path for model in converted for path in files[model].data} - read
    written = {PurePath(genai_config.NAME), PurePath(LIBRARY_NAME)} if config and converted else set()
    sizes = []
    for file in found.files:
        source = found.path / file
        if file in converted or file in written or source.resolve() in unread:
            continue
        nbytes = output.copy(source, file)
        if str(file) not in models and source.resolve() not in read:
            sizes.append(nbytes)
    if written:
        if nbytes := max(row.report.cache_bytes for row in rows if row.report is not None):
            genai_config.set_head_size(config, nbytes)
        sizes.append(output.write(genai_config.text(config), PurePath(genai_config.NAME)))
        sizes.append(output.copy(Path(get_library_path()), PurePath(LIBRARY_NAME)))
    return len(sizes), sum(sizes)
