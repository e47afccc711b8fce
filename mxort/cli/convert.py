"""``mxort convert``: parsing and printing only."""

from __future__ import annotations

import argparse
from pathlib import Path

from mxort.calibration.site_losses import Sensitivity
from mxort.cli import folder, options, shared
from mxort.cli.inspect import print_inspection
from mxort.console import console
from mxort.conversion import combinations, inspection, mixed_precision, pipeline, selection
from mxort.conversion.recipe import Recipe
from mxort.conversion.weights import Calibration
from mxort.converters import model_io
from mxort.errors import MxortError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        type=Path,
        help="the ONNX model, or a folder of onnxruntime-genai, optimum or sentence-transformers; it is not changed",
    )
    parser.add_argument(
        "-o", "--output", type=Path, help="where to write (default: MODEL with .mxfp4.onnx, FOLDER.mxfp4)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that is not empty")
    parser.add_argument(
        "--report",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="also write FILE.{txt,json,html}",
    )
    data = parser.add_argument_group("calibration")
    data.add_argument("--calibration", type=Path, metavar="PATH", help=shared.DATA_HELP)
    data.add_argument(
        "--memory",
        type=shared.positive,
        default=512,
        metavar="MB",
        help="of activations held, the rest on disk (512)",
    )
    data.add_argument(
        "--threads", type=shared.natural, default=0, help="of the calibration (default: all cores)"
    )
    data.add_argument("--cache", type=Path, metavar="FOLDER", help="keep finished weights there, to resume")
    shared.add_torch_device(data)
    mixed = parser.add_argument_group("mixed precision")
    goal = mixed.add_mutually_exclusive_group()
    goal.add_argument(
        "--budget-bits",
        type=shared.positive_float,
        metavar="X",
        help="choose weight formats by layer: the least loss at X bits per weight, 4.25 to 8.25",
    )
    goal.add_argument(
        "--target-kl",
        type=shared.positive_float,
        metavar="X",
        help="the same: the fewest bits at which rounding to nearest keeps the KL below X",
    )
    mixed.add_argument(
        "--sensitivity",
        type=Path,
        metavar="FILE",
        help="what `mxort sensitivity --json` printed (default: measure)",
    )
    shared.add_samples(mixed)
    parser.add_argument("--dry-run", action="store_true", help="only list what would be converted")
    shared.add_json(parser)
    options.add_arguments(parser)
    parser.set_defaults(**dict.fromkeys(_DEFAULTS))


_DEFAULTS = {"memory": 512, "threads": 0, "cache": None, "device": "auto", "samples": 2}
"""Of the flags that mean something only beside others: the parser leaves None where they are not given."""


def _check_flags(a: argparse.Namespace) -> None:
    """Refuses flags that would change nothing, then puts in the defaults. Raises MxortError."""
    if a.overwrite and not a.model.is_dir():
        raise MxortError(
            "--overwrite: would change nothing: it is for folders, and files are replaced anyway"
        )
    goal = a.budget_bits is not None or a.target_kl is not None
    measures = goal and a.calibration is not None and (a.sensitivity is None or a.target_kl is not None)
    for flags, useful, needed in (
        (("memory", "threads", "cache", "device"), a.calibration is not None, "--calibration"),
        (("sensitivity",), goal, "--budget-bits or --target-kl"),
        (("samples",), measures, "a sensitivity that is measured (--calibration and --budget-bits)"),
    ):
        for flag in flags:
            if getattr(a, flag) is not None and not useful:
                raise MxortError(f"--{flag} {getattr(a, flag)}: would change nothing: expected {needed} too")
    if goal and a.calibration is None and a.sensitivity is None:
        raise MxortError("--budget-bits, --target-kl: got no data, expected --calibration, or --sensitivity")
    for flag, default in _DEFAULTS.items():
        if getattr(a, flag) is None:
            setattr(a, flag, default)


def run(arguments: argparse.Namespace) -> int:
    _check_flags(arguments)
    chosen = options.from_arguments(arguments)
    combinations.check(chosen, arguments.calibration is not None)
    chosen = _mixed(arguments, chosen)
    if arguments.model.is_dir():
        return folder.convert(arguments, chosen, _calibration(arguments))
    output = arguments.output or Path(str(arguments.model).removesuffix(".onnx") + ".mxfp4.onnx")
    for path in arguments.report:
        shared.check_report_path(path, (arguments.model, output))
    if arguments.dry_run:
        found = inspection.inspect(arguments.model, chosen)
        if found.converted:
            raise MxortError(f"{arguments.model}: is converted already (by mxort)")
        shared.warn(found.warnings)
        return shared.show(arguments, found.to_dict, lambda: print_inspection(found, console()))
    calibration = _calibration(arguments)
    with shared.progress() as progress:
        report = pipeline.convert(arguments.model, output, chosen, calibration=calibration, progress=progress)
    for path in arguments.report:
        shared.write_report(report, path)
    shared.warn(report.warnings)
    shared.show(arguments, report.to_dict, lambda: report.print(console(markup=True), warnings=False))
    return 0 if report.converted else shared.NOTHING_CONVERTED


def _calibration(a: argparse.Namespace) -> Calibration | None:
    if a.calibration is None:
        return None
    return Calibration(a.calibration, a.memory * 1_000_000, a.threads, a.cache, a.device)


def _mixed(arguments: argparse.Namespace, chosen: Recipe) -> Recipe:
    """The recipe with the formats that --budget-bits or --target-kl ask for."""
    if arguments.budget_bits is None and arguments.target_kl is None:
        return chosen
    mixed_precision.check(chosen)
    if arguments.model.is_dir():
        arguments = argparse.Namespace(**vars(arguments) | {"model": folder.only_model(arguments.model)})
    known = None
    if arguments.sensitivity is not None:
        known = Sensitivity.load(arguments.sensitivity, arguments.model)
    found, _ = selection.find(model_io.load(arguments.model).model, chosen)
    tables = {site.name for site in found if site.table}
    goal = mixed_precision.Goal(arguments.budget_bits or 0.0, arguments.target_kl or 0.0)
    with shared.progress() as progress:
        probe = None
        if arguments.calibration is not None and (known is None or goal.target_kl):
            probe = shared.probe(arguments, arguments.calibration, chosen, progress)
        return mixed_precision.choose(chosen, goal, known, probe, tables)
