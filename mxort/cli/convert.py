"""``mxort convert``: parsing and printing only."""

from __future__ import annotations

import argparse
from pathlib import Path

from mxort.calibration.self_written import SELF, SelfWritten
from mxort.calibration.site_losses import Sensitivity
from mxort.cli import folder, options, shared
from mxort.cli.inspect import print_inspection
from mxort.console import console
from mxort.conversion import combinations, inspection, mixed_precision, pipeline, selection
from mxort.conversion.recipe import Recipe
from mxort.conversion.weights import Calibration, CalibrationData
from mxort.converters import model_io
from mxort.errors import MxortError
from mxort.progress import silent


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
    data.add_argument(
        "--calibration",
        type=lambda text: text if text == SELF else Path(text),
        action="append",
        metavar="PATH|self",
        help=f"{shared.DATA_HELP}; self: a decoder writes them; several: --calibration self --calibration notes.txt",
    )
    data.add_argument(
        "--self-windows", type=shared.positive, default=32, metavar="N", help="how many it writes (32)"
    )
    data.add_argument(
        "--self-tokens",
        type=shared.positive,
        default=0,
        metavar="N",
        help="of each (512; 128 for a model without a KV cache)",
    )
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
    shared.add_ray(parser, "quantise layer by layer")
    shared.add_json(parser)
    options.add_arguments(parser)
    parser.set_defaults(**dict.fromkeys(_DEFAULTS))


_DEFAULTS = {
    "memory": 512,
    "threads": 0,
    "cache": None,
    "device": "auto",
    "samples": 2,
    "self_windows": 32,
    "self_tokens": 0,
}
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
        (("self_windows", "self_tokens"), SELF in (a.calibration or ()), "--calibration self"),
        (("sensitivity",), goal, "--budget-bits or --target-kl"),
        (("ray_address",), a.ray, "--ray"),
        (("samples",), measures, "a sensitivity that is measured (--calibration and --budget-bits)"),
    ):
        for flag in flags:
            if getattr(a, flag) is not None and not useful:
                name = flag.replace("_", "-")
                raise MxortError(f"--{name} {getattr(a, flag)}: would change nothing: expected {needed} too")
    if goal and a.calibration is None and a.sensitivity is None:
        raise MxortError("--budget-bits, --target-kl: got no data, expected --calibration, or --sensitivity")
    for flag, default in _DEFAULTS.items():
        if getattr(a, flag) is None:
            setattr(a, flag, default)


def run(arguments: argparse.Namespace) -> int:
    _check_flags(arguments)
    chosen = options.from_arguments(arguments)
    combinations.check(chosen, arguments.calibration is not None)
    data = _data(arguments)
    chosen, data = _mixed(arguments, chosen, data)
    if arguments.model.is_dir():
        return folder.convert(arguments, chosen, None if data is None else _calibration(arguments, data))
    output = arguments.output or Path(str(arguments.model).removesuffix(".onnx") + ".mxfp4.onnx")
    for path in arguments.report:
        shared.check_report_path(path, (arguments.model, output))
    if arguments.dry_run:
        found = inspection.inspect(arguments.model, chosen)
        if found.converted:
            raise MxortError(f"{arguments.model}: is converted already (by mxort)")
        shared.warn(found.warnings)
        return shared.show(arguments, found.to_dict, lambda: print_inspection(found, console()))
    with shared.progress() as progress:
        calibration = None if data is None else _calibration(arguments, data)
        report = pipeline.convert(
            arguments.model,
            output,
            chosen,
            calibration=calibration,
            progress=progress,
            cluster=shared.cluster(arguments),
        )
    for path in arguments.report:
        shared.write_report(report, path)
    shared.warn(report.warnings)
    shared.show(arguments, report.to_dict, lambda: report.print(console(markup=True), warnings=False))
    return 0 if report.converted else shared.NOTHING_CONVERTED


def _data(arguments: argparse.Namespace) -> CalibrationData | None:
    """What --calibration means."""
    written = SelfWritten(arguments.self_windows, arguments.self_tokens)
    parts = [written if part == SELF else part for part in arguments.calibration or ()]
    return parts[0] if len(parts) == 1 else parts or None


def _calibration(arguments: argparse.Namespace, data: CalibrationData) -> Calibration:
    memory = arguments.memory * 1_000_000
    return Calibration(data, memory, arguments.threads, arguments.cache, arguments.device, shared.say)


def _mixed(
    arguments: argparse.Namespace, chosen: Recipe, data: CalibrationData | None
) -> tuple[Recipe, CalibrationData | None]:
    """The recipe with the formats that --budget-bits or --target-kl ask for; the data, written if they had to be."""
    if arguments.budget_bits is None and arguments.target_kl is None:
        return chosen, data
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
        if data is not None and (known is None or goal.target_kl):
            source = model_io.load(arguments.model)
            written = data = _calibration(arguments, data).read(source, progress or silent)
            probe = shared.probe(arguments, written, chosen, progress)
        return mixed_precision.choose(chosen, goal, known, probe, tables), data
