"""``mxort import``: parsing and printing only."""

from __future__ import annotations

import argparse
from pathlib import Path

from mxort.calibration.self_written import SELF
from mxort.cli import options, shared
from mxort.console import console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="a folder with config.json, safetensors and a tokenizer, or a .gguf file",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER", help="where to write; it must be new"
    )
    parser.add_argument(
        "--float-activations",
        action="store_true",
        help="compute with float activations where the checkpoint asks for rounded ones",
    )
    parser.add_argument(
        "--no-library",
        action="store_true",
        help="put no copy of libmxort.so into the folder (then call mxort.load(), or run as float)",
    )
    parser.add_argument("--calibration", type=Path, metavar="PATH", help=shared.DATA_HELP)
    shared.add_json(parser)
    options.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    from mxort.models.importing import import_checkpoint

    chosen = options.from_arguments(arguments)
    with shared.progress() as progress:
        report = import_checkpoint(
            arguments.checkpoint,
            arguments.output,
            chosen,
            calibration=SELF if str(arguments.calibration) == SELF else arguments.calibration,
            float_activations=arguments.float_activations,
            library=not arguments.no_library,
            progress=progress,
        )
    shared.warn(report.warnings)
    return shared.show(arguments, report.to_dict, lambda: report.print(console(markup=True)))
