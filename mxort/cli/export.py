"""``mxort export``: parsing and printing only."""

from __future__ import annotations

import argparse
from pathlib import Path

from mxort.cli import shared
from mxort.console import console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", type=Path, help="a folder that `mxort import` wrote; for standard a converted model too"
    )
    parser.add_argument(
        "--to",
        required=True,
        metavar="FORMAT",
        help="compressed-tensors, quark or, of gpt-oss, mxfp4 (a checkpoint for vLLM, SGLang), or standard (ONNX)",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="the folder, or for standard the file, to write"
    )
    shared.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from mxort.models.exporting import export

    report = export(arguments.source, arguments.output, arguments.to)
    return shared.show(
        arguments, report.to_dict, lambda: console().print(report.summary(), markup=False, highlight=False)
    )
