"""``mxort sensitivity``: arguments, and what is printed."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from mxort.calibration.site_losses import BASE, Sensitivity
from mxort.cli import options, shared
from mxort.console import console, new_table, print_filled
from mxort.conversion import inspection
from mxort.conversion.mixed_precision import FORMATS


def add_arguments(parser: argparse.ArgumentParser) -> None:

    parser.add_argument("model", type=Path, help="an ONNX model")
    parser.add_argument("--data", type=Path, required=True, metavar="PATH", help=shared.DATA_HELP)
    shared.add_samples(parser)
    shared.add_torch_device(parser)
    parser.add_argument("--threads", type=shared.natural, default=0, help="default: all cores")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="keep finished nodes there, to resume")
    shared.add_json(parser)
    options.add_options(parser, options.MEASURED)


def run(arguments: argparse.Namespace) -> int:

    recipe = options.from_arguments(arguments)
    shared.warn(inspection.inspect(arguments.model, recipe).warnings)
    with shared.progress() as progress:
        result = shared.probe(arguments, arguments.data, recipe, progress).sensitivity()
    return shared.show(arguments, result.to_dict, lambda: print_sensitivity(result, console()))


def print_sensitivity(sensitivity: Sensitivity, out: Console) -> None:
    """One row for each node, the one that loses most first; shares are of the sum."""
    total = sum(site.loss[BASE] for site in sensitivity.sites) or 1.0
    table = new_table(
        "sensitivity", ("node",), ("K", "N", *(f"{sensitivity.loss} {f}" for f in FORMATS), "share")
    )
    for site in sensitivity.sites:
        losses = (f"{site.loss[name]:.3g}" for name in FORMATS)
        table.add_row(site.node, str(site.K), str(site.N), *losses, f"{site.loss[BASE] / total:.1%}")
    print_filled(out, (table,))
    for node, reason in sensitivity.skipped.items():
        out.print(f"not measured: {node}: {reason}")
    if sensitivity.left_out:
        out.print(f"{sensitivity.left_out} rows of outputs with a NaN or an infinity left out")
    out.print(f"{sensitivity.samples} samples, sum of {sensitivity.loss} {total:.4g}")
