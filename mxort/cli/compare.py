"""``mxort compare``: arguments, and what is printed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from mxort.cli import shared
from mxort.console import PIPE_WIDTH, console, new_table, print_filled
from mxort.evaluation.comparison import Comparison, TensorComparison, compare


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", type=Path, help="the original model")
    parser.add_argument("converted", type=Path, help="the model to compare with it")
    parser.add_argument("--layers", action="store_true", help="also compare every converted layer")
    parser.add_argument(
        "--min-sqnr", type=float, metavar="DB", help=f"exit with {shared.BROKEN} if an output's SQNR is lower"
    )
    shared.add_inputs(parser)
    shared.add_json(parser)


def run(arguments: argparse.Namespace) -> int:

    with shared.progress() as progress:
        result = compare(
            arguments.reference,
            arguments.converted,
            arguments.inputs,
            layers=arguments.layers,
            seed=arguments.seed,
            dims=dict(arguments.dim),
            progress=progress,
        )
    shared.show(arguments, result.to_dict, lambda: print_comparison(result, console()))
    if arguments.min_sqnr is None or result.worst_sqnr_db >= arguments.min_sqnr:
        return 0
    print(f"mxort: SQNR {result.worst_sqnr_db:.2f} dB is below {arguments.min_sqnr:g} dB", file=sys.stderr)
    return shared.BROKEN


def print_comparison(comparison: Comparison, out: Console) -> None:
    """Inputs, and whether they were made up, one row per output, one row per layer, and what could not be compared."""
    inputs = ", ".join(f"{name} {what}" for name, what in comparison.inputs.items())
    made_up = "inputs, made up (--inputs gives others)" if comparison.made_up else "inputs"
    out.print(f"{made_up}: {inputs if len(inputs) < PIPE_WIDTH else f'{len(comparison.inputs)} arrays'}")
    for title, rows in (("outputs", comparison.outputs), ("converted layers", comparison.layers)):
        table = new_table(title, ("name",), ("shape", "SQNR dB", "cosine", "max |error|", "same argmax"))
        for row in rows:
            table.add_row(row.node or row.name, *_comparison_cells(row))
        print_filled(out, (table,))
    for name, reason in comparison.unmatched.items():
        out.print(f"not compared: {name}: {reason}")
    if comparison.note:
        out.print(f"note: {comparison.note}")
    out.print(f"lowest SQNR of an output: {comparison.worst_sqnr_db:.2f} dB")


def _comparison_cells(row: TensorComparison) -> tuple[str, ...]:
    agreement = "-" if row.argmax_agreement is None else f"{row.argmax_agreement:.1%}"
    shape = "x".join(map(str, row.shape)) or "scalar"
    return shape, f"{row.sqnr_db:.2f}", f"{row.cosine:.6f}", f"{row.max_abs_error:.3g}", agreement
