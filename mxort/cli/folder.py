"""``mxort convert FOLDER``: what is printed and written."""

from __future__ import annotations

import argparse
from pathlib import Path

from mxort.cli import shared
from mxort.cli.inspect import show_folder
from mxort.console import console
from mxort.conversion.recipe import Recipe
from mxort.conversion.weights import Calibration
from mxort.errors import MxortError
from mxort.models import conversion, folder
from mxort.models.folder import ModelFolder


def convert(arguments: argparse.Namespace, recipe: Recipe, calibration: Calibration | None) -> int:
    found = folder.read(arguments.model)
    source = Path(arguments.model).resolve()
    output = arguments.output or source.with_name(f"{source.name}.mxfp4")
    for path in arguments.report:
        _check_report_path(path, found, output)
    if arguments.dry_run:
        conversion.check(found)
        return show_folder(arguments, found, recipe)
    with shared.progress() as progress:
        report = conversion.convert_folder(
            arguments.model,
            output,
            recipe,
            calibration=calibration,
            progress=progress,
            overwrite=arguments.overwrite,
            cluster=shared.cluster(arguments),
        )
    for path in arguments.report:
        shared.write_report(report, path)
    shared.warn(report.warnings)
    shared.show(arguments, report.to_dict, lambda: report.print(console(markup=True), warnings=False))
    return 0 if report.converted else shared.NOTHING_CONVERTED


def only_model(path: Path) -> Path:
    """The one model of a folder that is to be converted. Raises MxortError where there are several."""
    found = folder.read(path)
    if len(found.to_convert) != 1:
        raise MxortError(
            f"{path}: formats are chosen for one model, and {len(found.to_convert)} are to be converted"
        )
    return found.path / found.to_convert[0].path


def _check_report_path(path: Path, found: ModelFolder, output: Path) -> None:
    shared.check_report_path(path, [found.path / model.path for model in found.models])
    if path.resolve().is_relative_to(output.resolve()):
        raise MxortError(f"{path}: the report would lie in the folder that is written")
