"""The command line: ``mxort convert | inspect | compare | eval | bench | doctor``. Parsing and printing only.

Exit status: 0 done, 1 something is broken (or below --min-sqnr), 2 bad input (one line on stderr, nothing
written), 130 interrupted. Each command imports what it needs, so that ``mxort --help`` is instant.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mxort.errors import MxortError

if TYPE_CHECKING:
    from mxort.report import Report

BROKEN = 1
BAD_INPUT = 2
INTERRUPTED = 130

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
        return INTERRUPTED
    except BrokenPipeError:  # the reader, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN


def _complain(message: str) -> int:
    print(f"mxort: error: {' '.join(message.split())}", file=sys.stderr)
    return BAD_INPUT


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


_DATA_HELP = (
    "samples: .npz arrays by input name, .npy one array, .jsonl lines with input_ids; or a folder of them"
)


# convert


def _add_convert(parser: argparse.ArgumentParser) -> None:
    from mxort import recipe

    parser.add_argument("model", type=Path, help="the ONNX model; it is not changed")
    parser.add_argument("-o", "--output", type=Path, help="where to write (default: MODEL with .mxfp4.onnx)")
    parser.add_argument(
        "--report",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="also write FILE.{txt,json,html}",
    )
    data = parser.add_argument_group("calibration")
    data.add_argument("--calibration", type=Path, metavar="PATH", help=_DATA_HELP)
    data.add_argument(
        "--memory",
        type=_positive,
        default=512,
        metavar="MB",
        help="of activations held, the rest on disk (512)",
    )
    data.add_argument("--threads", type=_natural, default=0, help="of the calibration (default: all cores)")
    data.add_argument("--cache", type=Path, metavar="FOLDER", help="keep finished weights there, to resume")
    parser.add_argument("--dry-run", action="store_true", help="only list what would be converted")
    _add_json(parser)
    recipe.add_arguments(parser)


def _convert(arguments: argparse.Namespace) -> int:
    from mxort import inspection, packing, pipeline, recipe, tables

    chosen = recipe.from_arguments(arguments)
    output = arguments.output or Path(str(arguments.model).removesuffix(".onnx") + ".mxfp4.onnx")
    if arguments.dry_run:
        found = inspection.inspect(arguments.model, chosen)
        if found.converted:
            raise MxortError(f"{arguments.model}: is converted already (by mxort)")
        return _show(arguments, found.to_dict, lambda: tables.print_inspection(found, tables.console()))
    for path in arguments.report:
        _check_report_path(path, (arguments.model, output))
    calibration = None
    if arguments.calibration is not None:
        calibration = packing.Calibration(
            arguments.calibration, arguments.memory * 1_000_000, arguments.threads, arguments.cache
        )
    with _progress() as progress:
        report = pipeline.convert(arguments.model, output, chosen, calibration=calibration, progress=progress)
    for path in arguments.report:
        _write_report(report, path)
    return _show(arguments, report.to_dict, lambda: report.print(tables.console(markup=True)))


_REPORT_SUFFIXES = (".txt", ".json", ".html")


def _check_report_path(
    path: Path, models: Sequence[Path], suffixes: Sequence[str] = _REPORT_SUFFIXES
) -> None:
    """Refuses a report that cannot be written before the work, not after."""
    if path.suffix not in suffixes:
        raise MxortError(f"{path}: a report ends in {'one of ' * (len(suffixes) > 1)}{', '.join(suffixes)}")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise MxortError(f"{path}: cannot write the report there")
    if any(path.resolve() == model.resolve() for model in models):
        raise MxortError(f"{path}: the report would overwrite a model")


def _write_report(report: Report, path: Path) -> None:
    from mxort import report_html, tables

    if path.suffix == ".txt":
        text = io.StringIO()
        report.print(tables.console(text, markup=True), every_node=True)
        _write_text(path, text.getvalue())
    else:
        _write_text(path, report.to_json() if path.suffix == ".json" else report_html.render(report))


def _write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MxortError(f"{path}: cannot write the report: {error.strerror or error}") from None


# inspect


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="an ONNX model, converted or not")
    parser.add_argument(
        "--placement", action="store_true", help="instead: what will run where, asked of onnxruntime"
    )
    parser.add_argument(
        "--device", metavar="auto|cpu|gpu|gpu:N", help="for --placement (default: the best present)"
    )
    _add_json(parser)


def _inspect(arguments: argparse.Namespace) -> int:
    from mxort import inspection, placement, tables

    if arguments.placement:
        placed = placement.place(arguments.model, arguments.device)
        return _show(arguments, placed.to_dict, lambda: tables.print_placement(placed, tables.console()))
    if arguments.device:
        raise MxortError("--device is for --placement")
    found = inspection.inspect(arguments.model)
    return _show(arguments, found.to_dict, lambda: tables.print_inspection(found, tables.console()))


# compare


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", type=Path, help="the original model")
    parser.add_argument("converted", type=Path, help="the model to compare with it")
    parser.add_argument("--layers", action="store_true", help="also compare every converted layer")
    parser.add_argument(
        "--min-sqnr", type=float, metavar="DB", help=f"exit with {BROKEN} if an output's SQNR is lower"
    )
    _add_inputs(parser)
    _add_json(parser)


def _compare(arguments: argparse.Namespace) -> int:
    from mxort import tables
    from mxort.comparison import compare

    with _progress() as progress:
        result = compare(
            arguments.reference,
            arguments.converted,
            arguments.inputs,
            layers=arguments.layers,
            seed=arguments.seed,
            dims=dict(arguments.dim),
            progress=progress,
        )
    _show(arguments, result.to_dict, lambda: tables.print_comparison(result, tables.console()))
    if arguments.min_sqnr is None or result.worst_sqnr_db >= arguments.min_sqnr:
        return 0
    print(f"mxort: SQNR {result.worst_sqnr_db:.2f} dB is below {arguments.min_sqnr:g} dB", file=sys.stderr)
    return BROKEN


# eval


def _add_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", type=Path, help="the original model")
    parser.add_argument("converted", type=Path, nargs="+", help="models to compare with it")
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="also write accuracy against size as a page, FILE.html"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="PATH", help=_DATA_HELP)
    parser.add_argument("--threads", type=_natural, default=0, help="of both models (default: all cores)")
    _add_json(parser)


def _eval(arguments: argparse.Namespace) -> int:
    from mxort import evaluation_html, tables
    from mxort.evaluate import evaluate

    reference, converted, page = arguments.reference, arguments.converted, arguments.report
    if page is not None:
        _check_report_path(page, (reference, *converted), (".html",))
    with _progress() as progress:
        results = [
            evaluate(reference, model, arguments.data, threads=arguments.threads, progress=progress)
            for model in converted
        ]
    if page is not None:
        _write_text(page, evaluation_html.render(results))
    dicts = [result.to_dict() for result in results]
    return _show(
        arguments,
        lambda: dicts if len(dicts) > 1 else dicts[0],
        lambda: tables.print_evaluations(results, tables.console()),
    )


# bench


def _add_bench(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(required=True, metavar="kind")
    models = kinds.add_parser("model", help="time whole models in turns, each in its own process")
    models.add_argument(
        "models", type=Path, nargs="+", metavar="MODEL", help="the first is what ratios refer to"
    )
    models.add_argument(
        "--prompt",
        type=_natural,
        default=0,
        help="tokens of a decoder's prompt (default: as inputs are made up)",
    )
    models.add_argument(
        "--generate",
        type=_natural,
        default=32,
        help="tokens that a decoder then makes, one by one (default 32)",
    )
    models.add_argument("--profile", action="store_true", help="also the share of each operator in the time")
    _add_plot(models)
    _add_timing(models, runs=20)
    _add_inputs(models)
    models.set_defaults(command=_bench_model)
    ops = kinds.add_parser("ops", help="time one matrix product in turns, ours and its peers'")
    ops.add_argument("--shape", type=_shape, action="append", metavar="MxKxN", help="may be repeated")
    ops.add_argument(
        "--peers", type=lambda text: text.split(","), default=[], metavar="NAME,...", help=_peers_help()
    )
    ops.add_argument(
        "--kernels", action="store_true", help="also every kernel, without onnxruntime around it"
    )
    ops.add_argument("--seconds", type=_positive_float, default=10.0, help="at most this long for a shape")
    ops.add_argument(
        "--device", type=_gpu, metavar="gpu[:N]", help="instead: our kernels on a GPU, by its own clock"
    )
    ops.add_argument("--cold", action="store_true", help="weights from memory instead of the caches")
    _add_plot(ops)
    _add_timing(ops, runs=50)
    ops.set_defaults(command=_bench_ops)
    bounds = kinds.add_parser("bounds", help="measure what the CPU kernels are held to, and print both")
    bounds.add_argument(
        "--cases",
        type=lambda text: text.split(","),
        default=[],
        metavar="NAME,...",
        help="measure these again (default: all that were not measured yet)",
    )
    bounds.add_argument("--fresh", action="store_true", help="convert the models and measure all again")
    bounds.add_argument(
        "--models", type=Path, default=Path("build/models"), help="what samples/models.py made"
    )
    bounds.add_argument(
        "--work", type=Path, default=Path("build/bench"), help="where results and converted models are kept"
    )
    bounds.add_argument(
        "--write", type=Path, metavar="FILE.md", help="also put the tables into this document"
    )
    _add_json(bounds)
    bounds.set_defaults(command=_bench_bounds)


def _add_plot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plot", metavar="FILE.svg", help="also draw it (needs matplotlib)")


def _peers_help() -> str:
    from mxort.bench_peers import PEERS

    return f"only these: all, or of {', '.join(peer.name for peer in PEERS)}"


def _add_timing(parser: argparse.ArgumentParser, runs: int) -> None:
    parser.add_argument("--runs", type=_positive, default=runs, help=f"timed rounds (default {runs})")
    parser.add_argument("--warmup", type=_natural, default=3, help="rounds before them (default 3)")
    parser.add_argument(
        "--threads", type=_natural, default=0, help="threads of each candidate (default: all cores)"
    )
    _add_json(parser)


def _bench_model(arguments: argparse.Namespace) -> int:
    from mxort import bench_models, bench_plot, tables

    with _progress() as progress:
        result = bench_models.bench_models(
            arguments.models,
            arguments.inputs,
            runs=arguments.runs,
            warmup=arguments.warmup,
            threads=arguments.threads,
            seed=arguments.seed,
            dims=dict(arguments.dim),
            prompt=arguments.prompt,
            generate=arguments.generate,
            profile=arguments.profile,
            progress=progress,
        )
    if arguments.plot:
        bench_plot.plot_models(result, arguments.plot)
    return _show(arguments, result.to_dict, lambda: tables.print_model_bench(result, tables.console()))


def _bench_ops(arguments: argparse.Namespace) -> int:
    from mxort import bench_ops, bench_peers, bench_plot, tables

    if arguments.device is not None:
        return _bench_gpu(arguments)
    peers = bench_peers.choose_peers(arguments.peers, kernels=arguments.kernels)
    with _progress() as progress:
        result = bench_ops.bench_ops(
            arguments.shape or bench_ops.DEFAULT_SHAPES,
            peers,
            runs=arguments.runs,
            warmup=arguments.warmup,
            threads=arguments.threads,
            cold=arguments.cold,
            max_seconds=arguments.seconds,
            progress=progress,
        )
    if arguments.plot:
        bench_plot.plot_ops(result, arguments.plot)
    _show(arguments, result.to_dict, lambda: tables.print_op_bench(result, tables.console()))
    return BROKEN if any(skip.wrong for skip in result.skipped) else 0


def _bench_gpu(arguments: argparse.Namespace) -> int:
    from mxort import bench_gpu, bench_ops, tables

    with _progress() as progress:
        result = bench_gpu.bench_gpu(
            arguments.shape or bench_ops.DEFAULT_SHAPES,
            arguments.device,
            runs=arguments.runs,
            warmup=arguments.warmup,
            progress=progress,
        )
    _show(arguments, result.to_dict, lambda: tables.print_gpu_bench(result, tables.console()))
    return BROKEN if result.wrong else 0


def _bench_bounds(arguments: argparse.Namespace) -> int:
    from mxort import bench_cases, bench_report, tables

    chosen = bench_report.choose_cases(arguments.cases)
    run = bench_report.Run(arguments.work)
    names = chosen or (list(bench_cases.CASES) if arguments.fresh else run.missing())
    place = bench_cases.Place(arguments.models, arguments.work)
    if arguments.fresh:
        bench_cases.forget_models(place)
    with _progress() as progress:
        run.measure(names, bench_cases.Size(), place, progress)
    if arguments.write:
        bench_report.write_document(arguments.write, bench_report.markdown(run))
    _show(arguments, run.to_dict, lambda: tables.print_bounds(run, tables.console()))
    for name, reason in run.why_not.items():
        print(f"mxort: {name}: {reason}", file=sys.stderr)
    return BROKEN if run.why_not else 0


# doctor


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kernels",
        action="store_true",
        help="instead: what the GPU kernels of this build use and could reach",
    )
    _add_json(parser)


def _doctor(arguments: argparse.Namespace) -> int:
    from mxort import doctor, kernel_report, tables

    if arguments.kernels:
        kernels = kernel_report.report_built()
        _show(
            arguments,
            lambda: kernels,
            lambda: kernel_report.print_kernels(kernels, kernel_report.wide_console()),
        )
        return 0
    result = doctor.diagnose()
    _show(arguments, result.to_dict, lambda: tables.print_diagnosis(result, tables.console()))
    return 0 if result.healthy else BROKEN


_COMMANDS: dict[str, tuple[Command | None, Callable[[argparse.ArgumentParser], None], str]] = {
    "convert": (_convert, _add_convert, "convert the MatMul weights of a model to MXFP4"),
    "inspect": (_inspect, _add_inspect, "show what a model holds: converted nodes, or those that can be"),
    "compare": (_compare, _add_compare, "run a model and its conversion and measure the difference"),
    "eval": (_eval, _add_eval, "measure a conversion on data: perplexity, KL, agreement"),
    "bench": (None, _add_bench, "time models, or one operator and its peers, in turns"),
    "doctor": (_doctor, _add_doctor, "check this machine and the installation"),
}


# what commands share


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print JSON, and nothing else, on standard output"
    )


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--inputs", type=Path, metavar="FILE.npz", help="arrays by input name (default: made up)"
    )
    parser.add_argument("--seed", type=_natural, default=0, help="of the inputs made up (default 0)")
    parser.add_argument(
        "--dim",
        type=_dim,
        action="append",
        default=[],
        metavar="NAME=SIZE",
        help="size of a symbolic dimension",
    )


def _show(arguments: argparse.Namespace, to_dict: Callable[[], Any], print_table: Callable[[], None]) -> int:
    if arguments.json:
        print(json.dumps(to_dict(), indent=2, allow_nan=False))
    else:
        print_table()
    return 0


@contextmanager
def _progress() -> Iterator[Callable[[str, float], None] | None]:
    """A progress callback that draws on a terminal's stderr; None where there is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich import progress as bars

    columns = (
        bars.BarColumn(),
        bars.TaskProgressColumn(),
        bars.TextColumn("{task.description}", markup=False),
    )
    from rich.console import Console

    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda what, fraction: progress.update(task, description=what, completed=fraction)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number of 0 or more, got {text!r}")
    return int(text)


def _gpu(text: str) -> int:
    name, colon, ordinal = text.partition(":")
    if name != "gpu" or (colon and not ordinal.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected gpu or gpu:N, got {text!r}")
    return int(ordinal or 0)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a number of 1 or more, got {text!r}")
    return int(text)


def _positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def _dim(text: str) -> tuple[str, int]:
    name, equals, size = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"expected NAME=SIZE, got {text!r}")
    return name, _natural(size)


def _shape(text: str) -> tuple[int, int, int]:
    parts = text.split("x")
    if len(parts) != 3:
        raise argparse.ArgumentTypeError(f"expected MxKxN, got {text!r}")
    m, k, n = map(_positive, parts)
    return m, k, n


if __name__ == "__main__":
    sys.exit(main())
