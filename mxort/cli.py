"""The command line: ``mxort convert | inspect | compare | eval | sensitivity | ...``. Parsing and printing only.

Exit status: 0 done, 1 something is broken (or below --min-sqnr), 2 bad input (one line on stderr, nothing
written), 130 interrupted. Each command imports what it needs, so that ``mxort --help`` is instant.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mxort import cli_bench, cli_convert
from mxort import cli_shared as shared
from mxort.errors import MxortError

Command = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit status."""
    arguments = _parser().parse_args(argv)
    command: Command = arguments.command
    try:
        status = command(arguments)
        sys.stdout.flush()
        return status
    except MxortError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        print("mxort: interrupted", file=sys.stderr)
        return shared.INTERRUPTED
    except BrokenPipeError:  # the reader, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return shared.BROKEN


def _complain(message: str) -> int:
    print(f"mxort: error: {' '.join(message.split())}", file=sys.stderr)
    return shared.BAD_INPUT


class _Parser(argparse.ArgumentParser):
    """Reports errors on one line, and adds its arguments only when its command is the one that was typed."""

    fill: Callable[[argparse.ArgumentParser], None] | None = None

    def error(self, message: str) -> NoReturn:
        sys.exit(_complain(message))

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        fill, self.fill = self.fill, None
        if fill is not None:
            fill(self)
        return super().parse_known_args(*args, **kwargs)


def _parser() -> _Parser:
    parser = _Parser(
        prog="mxort", description="MXFP4 for ONNX Runtime: convert models, check them, time them."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, (command, fill, about) in _COMMANDS.items():
        sub = commands.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
        sub.set_defaults(command=command)
        sub.fill = fill
    return parser


class _Version(argparse.Action):
    def __call__(self, *_: Any) -> NoReturn:
        from importlib import metadata

        try:
            print(f"mxort {metadata.version('mxort')}")
        except metadata.PackageNotFoundError:
            print("mxort (not installed)")
        sys.exit(0)


# inspect


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="an ONNX model, converted or not")
    parser.add_argument(
        "--placement", action="store_true", help="instead: what will run where, asked of onnxruntime"
    )
    parser.add_argument(
        "--device", metavar="auto|cpu|gpu|gpu:N", help="for --placement (default: the best present)"
    )
    shared.add_json(parser)


def _inspect(arguments: argparse.Namespace) -> int:
    from mxort import inspection, placement, tables

    if arguments.placement:
        placed = placement.place(arguments.model, arguments.device)
        return shared.show(
            arguments, placed.to_dict, lambda: tables.print_placement(placed, tables.console())
        )
    if arguments.device:
        raise MxortError("--device is for --placement")
    found = inspection.inspect(arguments.model)
    return shared.show(arguments, found.to_dict, lambda: tables.print_inspection(found, tables.console()))


# compare


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", type=Path, help="the original model")
    parser.add_argument("converted", type=Path, help="the model to compare with it")
    parser.add_argument("--layers", action="store_true", help="also compare every converted layer")
    parser.add_argument(
        "--min-sqnr", type=float, metavar="DB", help=f"exit with {shared.BROKEN} if an output's SQNR is lower"
    )
    shared.add_inputs(parser)
    shared.add_json(parser)


def _compare(arguments: argparse.Namespace) -> int:
    from mxort import tables
    from mxort.comparison import compare

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
    shared.show(arguments, result.to_dict, lambda: tables.print_comparison(result, tables.console()))
    if arguments.min_sqnr is None or result.worst_sqnr_db >= arguments.min_sqnr:
        return 0
    print(f"mxort: SQNR {result.worst_sqnr_db:.2f} dB is below {arguments.min_sqnr:g} dB", file=sys.stderr)
    return shared.BROKEN


# eval


def _add_eval(parser: argparse.ArgumentParser) -> None:
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


def _eval(arguments: argparse.Namespace) -> int:
    from mxort import evaluation_html, tables
    from mxort.evaluate import evaluate

    reference, converted, page = arguments.reference, arguments.converted, arguments.report
    if page is not None:
        shared.check_report_path(page, (reference, *converted), (".html",))
    with shared.progress() as progress:
        results = [
            evaluate(reference, model, arguments.data, threads=arguments.threads, progress=progress)
            for model in converted
        ]
    if page is not None:
        shared.write_text(page, evaluation_html.render(results))
    dicts = [result.to_dict() for result in results]
    return shared.show(
        arguments,
        lambda: dicts if len(dicts) > 1 else dicts[0],
        lambda: tables.print_evaluations(results, tables.console()),
    )


# sensitivity


def _add_sensitivity(parser: argparse.ArgumentParser) -> None:
    from mxort import recipe

    parser.add_argument("model", type=Path, help="an ONNX model")
    parser.add_argument("--data", type=Path, required=True, metavar="PATH", help=shared.DATA_HELP)
    shared.add_samples(parser)
    shared.add_torch_device(parser)
    parser.add_argument("--threads", type=shared.natural, default=0, help="default: all cores")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="keep finished nodes there, to resume")
    shared.add_json(parser)
    recipe.add_arguments(parser)


def _sensitivity(arguments: argparse.Namespace) -> int:
    from mxort import recipe, tables

    with shared.progress() as progress:
        result = shared.probe(
            arguments, arguments.data, recipe.from_arguments(arguments), progress
        ).sensitivity()
    return shared.show(arguments, result.to_dict, lambda: tables.print_sensitivity(result, tables.console()))


# doctor


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kernels",
        action="store_true",
        help="instead: what the GPU kernels of this build use and could reach",
    )
    shared.add_json(parser)


def _doctor(arguments: argparse.Namespace) -> int:
    from mxort import doctor, kernel_report, tables

    if arguments.kernels:
        kernels = kernel_report.report_built()
        shared.show(
            arguments,
            lambda: kernels,
            lambda: kernel_report.print_kernels(kernels, kernel_report.wide_console()),
        )
        return 0
    result = doctor.diagnose()
    shared.show(arguments, result.to_dict, lambda: tables.print_diagnosis(result, tables.console()))
    return 0 if result.healthy else shared.BROKEN


_COMMANDS: dict[str, tuple[Command | None, Callable[[argparse.ArgumentParser], None], str]] = {
    "convert": (cli_convert.run, cli_convert.add_arguments, "convert the MatMul weights of a model to MXFP4"),
    "inspect": (_inspect, _add_inspect, "show what a model holds: converted nodes, or those that can be"),
    "compare": (_compare, _add_compare, "run a model and its conversion and measure the difference"),
    "eval": (_eval, _add_eval, "measure a conversion on data: perplexity, KL, agreement"),
    "sensitivity": (_sensitivity, _add_sensitivity, "rank layers by what quantising each alone costs"),
    "bench": (None, cli_bench.add_arguments, "time models, or one operator and its peers, in turns"),
    "doctor": (_doctor, _add_doctor, "check this machine and the installation"),
}


if __name__ == "__main__":
    sys.exit(main())
