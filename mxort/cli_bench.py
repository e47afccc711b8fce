"""``mxort bench model | ops | bounds``: parsing and printing only."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mxort import cli_shared as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(required=True, metavar="kind")
    models = kinds.add_parser("model", help="time whole models in turns, each in its own process")
    models.add_argument(
        "models", type=Path, nargs="+", metavar="MODEL", help="the first is what ratios refer to"
    )
    models.add_argument(
        "--prompt",
        type=shared.natural,
        default=0,
        help="tokens of a decoder's prompt (default: as inputs are made up)",
    )
    models.add_argument(
        "--generate",
        type=shared.natural,
        default=32,
        help="tokens that a decoder then makes, one by one (default 32)",
    )
    models.add_argument("--profile", action="store_true", help="also the share of each operator in the time")
    _add_plot(models)
    _add_timing(models, runs=20)
    shared.add_inputs(models)
    models.set_defaults(command=_model)
    ops = kinds.add_parser("ops", help="time one matrix product in turns, ours and its peers'")
    ops.add_argument("--shape", type=shared.shape, action="append", metavar="MxKxN", help="may be repeated")
    ops.add_argument(
        "--peers", type=lambda text: text.split(","), default=[], metavar="NAME,...", help=_peers_help()
    )
    ops.add_argument(
        "--kernels", action="store_true", help="also every kernel, without onnxruntime around it"
    )
    ops.add_argument(
        "--seconds", type=shared.positive_float, default=10.0, help="at most this long for a shape"
    )
    ops.add_argument(
        "--device", type=shared.gpu, metavar="gpu[:N]", help="instead: our kernels on a GPU, by its own clock"
    )
    ops.add_argument("--cold", action="store_true", help="weights from memory instead of the caches")
    _add_plot(ops)
    _add_timing(ops, runs=50)
    ops.set_defaults(command=_ops)
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
    shared.add_json(bounds)
    bounds.set_defaults(command=_bounds)


def _add_plot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plot", metavar="FILE.svg", help="also draw it (needs matplotlib)")


def _peers_help() -> str:
    from mxort.bench_peers import PEERS

    return f"only these: all, or of {', '.join(peer.name for peer in PEERS)}"


def _add_timing(parser: argparse.ArgumentParser, runs: int) -> None:
    parser.add_argument("--runs", type=shared.positive, default=runs, help=f"timed rounds (default {runs})")
    parser.add_argument("--warmup", type=shared.natural, default=3, help="rounds before them (default 3)")
    parser.add_argument(
        "--threads", type=shared.natural, default=0, help="threads of each candidate (default: all cores)"
    )
    shared.add_json(parser)


def _model(arguments: argparse.Namespace) -> int:
    from mxort import bench_models, bench_plot, tables

    with shared.progress() as progress:
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
    return shared.show(arguments, result.to_dict, lambda: tables.print_model_bench(result, tables.console()))


def _ops(arguments: argparse.Namespace) -> int:
    from mxort import bench_ops, bench_peers, bench_plot, tables

    if arguments.device is not None:
        return _gpu(arguments)
    peers = bench_peers.choose_peers(arguments.peers, kernels=arguments.kernels)
    with shared.progress() as progress:
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
    shared.show(arguments, result.to_dict, lambda: tables.print_op_bench(result, tables.console()))
    return shared.BROKEN if any(skip.wrong for skip in result.skipped) else 0


def _gpu(arguments: argparse.Namespace) -> int:
    from mxort import bench_gpu, bench_ops, tables

    with shared.progress() as progress:
        result = bench_gpu.bench_gpu(
            arguments.shape or bench_ops.DEFAULT_SHAPES,
            arguments.device,
            runs=arguments.runs,
            warmup=arguments.warmup,
            progress=progress,
        )
    shared.show(arguments, result.to_dict, lambda: tables.print_gpu_bench(result, tables.console()))
    return shared.BROKEN if result.wrong else 0


def _bounds(arguments: argparse.Namespace) -> int:
    from mxort import bench_cases, bench_report, tables

    chosen = bench_report.choose_cases(arguments.cases)
    run = bench_report.Run(arguments.work)
    names = chosen or (list(bench_cases.CASES) if arguments.fresh else run.missing())
    place = bench_cases.Place(arguments.models, arguments.work)
    if arguments.fresh:
        bench_cases.forget_models(place)
    with shared.progress() as progress:
        run.measure(names, bench_cases.Size(), place, progress)
    if arguments.write:
        bench_report.write_document(arguments.write, bench_report.markdown(run))
    shared.show(arguments, run.to_dict, lambda: tables.print_bounds(run, tables.console()))
    for name, reason in run.why_not.items():
        print(f"mxort: {name}: {reason}", file=sys.stderr)
    return shared.BROKEN if run.why_not else 0
