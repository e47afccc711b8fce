"""``python -m tools.bench ops | bounds``: arguments, and what is printed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from mxort.cli import shared
from mxort.cli.bench import add_plot, add_timing
from mxort.console import console, new_table, print_filled
from mxort.errors import MxortError
from tools.bench import cases, gpu, ops, peers, plot, report
from tools.bench.gpu import GpuBench
from tools.bench.ops import OpBench
from tools.bench.report import HEADINGS, Run, cells, measured_on, verdict_counts


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description="Times operators.")
    kinds = parser.add_subparsers(required=True, metavar="kind")
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
    add_plot(ops)
    add_timing(ops, runs=50)
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
    return parser


def _peers_help() -> str:

    return f"only these: all, or of {', '.join(peer.name for peer in peers.PEERS)}"


def _ops(arguments: argparse.Namespace) -> int:

    if arguments.device is not None:
        return _gpu(arguments)
    chosen = peers.choose_peers(arguments.peers, kernels=arguments.kernels)
    with shared.progress() as progress:
        result = ops.bench_ops(
            arguments.shape or ops.DEFAULT_SHAPES,
            chosen,
            runs=arguments.runs,
            warmup=arguments.warmup,
            threads=arguments.threads,
            cold=arguments.cold,
            max_seconds=arguments.seconds,
            progress=progress,
        )
    if arguments.plot:
        plot.plot_ops(result, arguments.plot)
    shared.show(arguments, result.to_dict, lambda: print_op_bench(result, console()))
    return shared.BROKEN if any(skip.wrong for skip in result.skipped) else 0


def _gpu(arguments: argparse.Namespace) -> int:

    with shared.progress() as progress:
        result = gpu.bench_gpu(
            arguments.shape or ops.DEFAULT_SHAPES,
            arguments.device,
            runs=arguments.runs,
            warmup=arguments.warmup,
            progress=progress,
        )
    shared.show(arguments, result.to_dict, lambda: print_gpu_bench(result, console()))
    return shared.BROKEN if result.wrong else 0


def _bounds(arguments: argparse.Namespace) -> int:

    chosen = report.choose_cases(arguments.cases)
    run = report.Run(arguments.work)
    names = chosen or (list(cases.CASES) if arguments.fresh else run.missing())
    place = cases.Place(arguments.models, arguments.work)
    if arguments.fresh:
        cases.forget_models(place)
    with shared.progress() as progress:
        run.measure(names, cases.Size(), place, progress)
    if arguments.write:
        report.write_document(arguments.write, report.markdown(run))
    shared.show(arguments, run.to_dict, lambda: print_bounds(run, console()))
    for name, reason in run.why_not.items():
        print(f"mxort: {name}: {reason}", file=sys.stderr)
    return shared.BROKEN if run.why_not else 0


def print_bounds(run: Run, out: Console) -> None:
    """The machine and one row per bound."""
    if not run.measured:
        return
    out.print(measured_on(run))
    table = new_table("bounds", HEADINGS[:3], HEADINGS[3:7], HEADINGS[7:])
    for verdict in run.verdicts():
        table.add_row(*cells(verdict))
    out.print(table)
    out.print(", ".join(f"{count} {verdict}" for verdict, count in verdict_counts(run.verdicts()).items()))


def print_op_bench(bench: OpBench, out: Console) -> None:
    """One row per candidate and shape; speed-ups are over the first candidate of each shape."""
    out.print(f"{bench.machine.line()}, onnxruntime {bench.onnxruntime}, {bench.threads} threads")
    columns = ("p50 ms", "p90 ms", "speed-up", "GB/s", "of read", "GFLOP/s", "of peak", "error", "runs")
    title = f"operators in turns, {'cold' if any(row.cold for row in bench.rows) else 'hot'}"
    table = new_table(title, ("M x K x N", "candidate"), columns)
    shape = None
    for row in bench.rows:
        t = row.timing
        first = shape != (shape := (row.M, row.K, row.N))
        if first and table.row_count:
            table.add_section()
        table.add_row(
            f"{row.M} x {row.K} x {row.N}" if first else "",
            row.peer,
            f"{t.p50_ms:.3f}",
            f"{t.p90_ms:.3f}",
            f"{t.ratio:.2f}x",
            f"{row.gb_per_s:.1f}",
            "-" if row.of_read is None else f"{row.of_read:.0%}",
            f"{row.gflop_per_s:.0f}" if row.gflop_per_s else "-",
            "-" if row.of_peak is None else f"{row.of_peak:.0%} {row.unit}",
            "-" if row.error is None else f"{row.error:.0e}",
            str(t.runs),
        )
    out.print(table)
    for skip in bench.skipped:
        out.print(
            f"{'WRONG' if skip.wrong else 'left out'}: {skip.peer} at K {skip.K}, N {skip.N}: {skip.reason}"
        )


def print_gpu_bench(bench: GpuBench, out: Console) -> None:
    """One row per shape and activation format; a warning where the times are of a simulator."""
    out.print(f"{bench.device} ({bench.arch}), {bench.hip}; float16 A and Y on the device, its own clock")
    if bench.simulated:
        out.print(
            "SIMULATED DEVICE: these times are of the simulating CPU and say nothing about a GPU",
            style="yellow",
        )
    columns = ("p50 ms", "p90 ms", "TFLOP/s", "GB/s", "error", "runs")
    table = new_table("operators", ("M x K x N", "activations", "kernel"), columns)
    for row in bench.rows:
        t = row.timing
        table.add_row(
            *(
                f"{row.M} x {row.K} x {row.N}",
                row.activation_format,
                row.kernel,
                f"{t.p50_ms:.4f}",
                f"{t.p90_ms:.4f}",
            ),
            *(f"{row.tflop_per_s:.3g}", f"{row.gb_per_s:.3g}", f"{row.error:.0e}", str(t.runs)),
        )
    print_filled(out, (table,))
    for what in bench.wrong:
        out.print(f"WRONG: {what}")


def main(argv: list[str] | None = None) -> int:
    """Runs one command line and returns its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.command(arguments)
    except MxortError as error:
        print(f"tools.bench: error: {error}", file=sys.stderr)
        return shared.BAD_INPUT
    return status


if __name__ == "__main__":
    sys.exit(main())
