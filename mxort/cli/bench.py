"""``mxort bench model``: arguments, and what is printed. ``mxort bench serve`` is a module of its own."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from mxort.cli import bench_serve, shared
from mxort.console import console, new_table
from mxort.evaluation import peers
from mxort.evaluation.model_bench import ModelBench, bench_models
from mxort.progress import silent
from mxort.text import format_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(required=True, metavar="kind")
    models = kinds.add_parser("model", help="time whole models in turns, each in its own process")
    models.add_argument(
        "models",
        type=Path,
        nargs="+",
        metavar="MODEL",
        help="the first is what ratios refer to; others may be .gguf (llama-cpp-python runs them) or .xml (OpenVINO)",
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
    models.add_argument(
        "--peers",
        action="store_true",
        help="also the first in onnxruntime's dynamic int8 and int4 (MatMulNBits), and in OpenVINO if installed",
    )
    models.add_argument("--profile", action="store_true", help="also the share of each operator in the time")
    add_plot(models)
    add_timing(models, runs=20)
    shared.add_inputs(models)
    models.set_defaults(bench=_run_models)
    servers = kinds.add_parser("serve", help="servers under load: tokens a second, and how long users wait")
    bench_serve.add_arguments(servers)
    servers.set_defaults(bench=bench_serve.run)


def add_plot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plot", metavar="FILE.svg", help="also draw it (needs matplotlib)")


def add_timing(parser: argparse.ArgumentParser, runs: int) -> None:
    parser.add_argument("--runs", type=shared.positive, default=runs, help=f"timed rounds (default {runs})")
    parser.add_argument("--warmup", type=shared.natural, default=3, help="rounds before them (default 3)")
    parser.add_argument(
        "--threads", type=shared.natural, default=0, help="threads of each candidate (default: all cores)"
    )
    shared.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    status: int = arguments.bench(arguments)
    return status


def _run_models(arguments: argparse.Namespace) -> int:
    with shared.progress() as progress, tempfile.TemporaryDirectory(prefix="mxort-peers-") as folder:
        made: list[Path] = []
        for name in peers.PEERS if arguments.peers else ():
            if not peers.is_available(name):
                print(f"mxort: {name}: {peers.PEERS[name].library} is not installed", file=sys.stderr)
                continue
            (progress or silent)(f"making {name}", 0.0)
            made.append(peers.make(name, arguments.models[0], Path(folder)))
        result = bench_models(
            [*arguments.models, *made],
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
        from mxort.evaluation import plot

        plot.plot_models(result, arguments.plot)
    return shared.show(arguments, result.to_dict, lambda: print_model_bench(result, console()))


def print_model_bench(bench: ModelBench, out: Console) -> None:
    """One row per model; ratios are to the first."""
    out.print(
        f"{bench.machine.line()}, onnxruntime {bench.onnxruntime}, threads {bench.threads or 'default'}"
    )
    decoders = any(row.decode for row in bench.models)
    columns = ["file", "load s", "runs", "p50 ms", "p90 ms", "p99 ms", "speed-up"]
    columns += ["prefill tok/s", "decode tok/s", "speed-up"] if decoders else []
    columns += ["peak memory", "without Python", "anonymous"]
    table = new_table("models in turns, each in its own process", ("model",), columns)
    for row in bench.models:
        t = row.timing
        cells = [format_bytes(row.file_bytes), f"{row.load_seconds:.2f}", str(t.runs)]
        cells += [f"{t.p50_ms:.3f}", f"{t.p90_ms:.3f}", f"{t.p99_ms:.3f}", f"{t.ratio:.2f}x"]
        if row.decode and row.prefill_tokens_per_s and row.decode_tokens_per_s:
            cells += [f"{row.prefill_tokens_per_s:.1f}", f"{row.decode_tokens_per_s:.1f}"]
            cells += [f"{row.decode.ratio:.2f}x"]
        cells += [format_bytes(row.peak_rss_bytes), format_bytes(row.peak_rss_bytes - row.base_rss_bytes)]
        table.add_row(row.model, *cells, format_bytes(row.anonymous_bytes))
    out.print(table)
    for row in bench.models:
        for kind, shares in row.node_shares.items():
            parts = ", ".join(f"{op} {share:.0%}" for op, share in list(shares.items())[:6])
            out.print(f"{row.model}: {kind}: {parts}")
