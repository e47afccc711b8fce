"""``mxort eval``: arguments, and what is printed."""

from __future__ import annotations

import argparse
import sys
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
    results: list[Evaluation] = []
    for model in converted:
        with shared.progress() as progress:
            result = evaluate(reference, model, arguments.data, threads=arguments.threads, progress=progress)
        results.append(result)
        if not arguments.json:  # each as soon as it is there
            print_evaluation(result, console(), named=len(converted) > 1)
            sys.stdout.flush()
    if page is not None:
        from mxort.pages import evaluation as evaluation_page

        shared.write_text(page, evaluation_page.render(results))
    dicts = [result.to_dict() for result in results]
    return shared.show(arguments, lambda: dicts if len(dicts) > 1 else dicts[0], lambda: None)


def print_evaluation(evaluation: Evaluation, out: Console, named: bool) -> None:
    """What was run, the size, and one line for each metric; ``named`` says of which model."""
    what = f"{evaluation.kind}, {evaluation.samples} samples, {evaluation.predictions} predictions"
    out.print(f"{evaluation.converted}: {what}" if named else what)
    out.print(f"{'size':<22}{format_bytes(evaluation.converted_bytes)}")
    for name, value in evaluation.metrics.items():
        out.print(f"{name:<22}{value:.4f}")
