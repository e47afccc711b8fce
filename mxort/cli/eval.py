"""``mxort eval``: arguments, and what is printed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mxort.cli import shared
from mxort.console import console
from mxort.evaluation.evaluate import Evaluation, evaluate
from mxort.text import format_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", type=Path, help="the original model")
    parser.add_argument("converted", type=Path, nargs="+", help="models to compare with it")
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="also write accuracy against size as a page, FILE.html"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="PATH", help=shared.DATA_HELP)
    parser.add_argument(
        "--threads", type=shared.natural, default=0, help="of both models (default: all cores)"
    )
    shared.add_json(parser)


def run(arguments: argparse.Namespace) -> int:

    reference, converted, page = arguments.reference, arguments.converted, arguments.report
    if page is not None:
        shared.check_report_path(page, (reference, *converted), (".html",))
    with shared.progress() as progress:
        results = [
            evaluate(reference, model, arguments.data, threads=arguments.threads, progress=progress)
            for model in converted
        ]
    if page is not None:
        from mxort.pages import evaluation as evaluation_page

        shared.write_text(page, evaluation_page.render(results))
    dicts = [result.to_dict() for result in results]
    return shared.show(
        arguments,
        lambda: dicts if len(dicts) > 1 else dicts[0],
        lambda: print_evaluations(results, console()),
    )


def print_evaluations(evaluations: Sequence[Evaluation], out: Console) -> None:
    """What was run and, for each model, its size and one line for each metric."""
    for evaluation in evaluations:
        what = f"{evaluation.kind}, {evaluation.samples} samples, {evaluation.predictions} predictions"
        out.print(f"{evaluation.converted}: {what}" if len(evaluations) > 1 else what)
        out.print(f"{'size':<22}{format_bytes(evaluation.converted_bytes)}")
        for name, value in evaluation.metrics.items():
            out.print(f"{name:<22}{value:.4f}")
