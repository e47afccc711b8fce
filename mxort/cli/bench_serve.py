"""``mxort bench serve``: arguments, and what is printed."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mxort.cli import shared
from mxort.cli.serve import KEY

if TYPE_CHECKING:
    from rich.console import Console

    from mxort.evaluation.serve_bench import Point, ServeBench

_SHAPES = ("128/128", "128/2048", "2048/128", "2048/2048")
_MOST = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "targets",
        nargs="+",
        metavar="URL|FOLDER",
        help="a server, or a folder to serve meanwhile; several take turns",
    )
    parser.add_argument(
        "--concurrency",
        type=_clients,
        nargs="+",
        default=[1, 2, 4, 8],
        metavar="N",
        help=f"clients at once, up to {_MOST} (default 1 2 4 8)",
    )
    parser.add_argument(
        "--shapes",
        type=_shape,
        nargs="+",
        default=[_shape(text) for text in _SHAPES],
        metavar="P/G",
        help=f"tokens of prompt and answer, before --scale (default {' '.join(_SHAPES)})",
    )
    parser.add_argument(
        "--scale",
        type=shared.positive_float,
        default=0.25,
        help="of all lengths, for what the machine can do (default 0.25)",
    )
    parser.add_argument("--requests", type=shared.positive, default=4, help="of each client (default 4)")
    parser.add_argument(
        "--max-seconds",
        type=shared.positive_float,
        default=60.0,
        help="after which no request begins, of each row (default 60)",
    )
    parser.add_argument(
        "--tpot-limit",
        type=shared.positive_float,
        default=100.0,
        metavar="MS",
        help="of a token, for a request to count as goodput (default 100)",
    )
    parser.add_argument(
        "--client",
        choices=("own", "guidellm"),
        default="own",
        help="who asks and holds the clock (default own; guidellm where it is installed: no ITL)",
    )
    parser.add_argument("--price", type=shared.positive_float, help="of an hour of the machine, for costs")
    parser.add_argument("--seed", type=shared.natural, default=0, help="of the prompts (default 0)")
    parser.add_argument("--api-key", default=os.environ.get(KEY), help=f"of the servers (default: ${KEY})")
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="also a page with the curves")
    shared.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from mxort.console import console
    from mxort.evaluation.serve_bench import Load, bench_servers

    if arguments.report:
        shared.check_report_path(arguments.report, [], (".html",))
    shapes = [
        tuple(max(1, round(length * arguments.scale)) for length in shape) for shape in arguments.shapes
    ]
    load = Load(
        tuple((prompt, answer) for prompt, answer in shapes),
        tuple(sorted(set(arguments.concurrency))),
        arguments.requests,
        arguments.max_seconds,
        arguments.tpot_limit,
        arguments.price,
        arguments.seed,
        arguments.client,
    )
    with shared.progress() as progress:
        result = bench_servers(arguments.targets, load, key=arguments.api_key, progress=progress)
    if arguments.report:
        from mxort.pages.serving import render

        shared.write_text(arguments.report, render(result))
    shared.warn(
        f"{point.target}, {point.concurrency} clients: {point.errors} of {point.requests} failed: {point.first_error}"
        for point in result.points
        if point.errors
    )
    shared.show(arguments, result.to_dict, lambda: print_bench(result, console()))
    return shared.BROKEN if any(point.errors for point in result.points) else 0


def print_bench(bench: ServeBench, out: Console) -> None:
    """A table for each shape, a row for each server and number of clients."""
    from mxort.console import new_table

    out.print(bench.machine.line())
    for shape in bench.load.shapes:
        columns = ["clients", "requests", "errors", "tokens/s", "requests/s", "goodput/s"]
        columns += [
            "TTFT p50",
            "p99 ms",
            "TPOT p50",
            "p99 ms",
            "ITL p50",
            "p99 ms",
            "memory",
            "tokens/J",
            "cost/M",
        ]
        title = f"prompt {shape[0]}, answer {shape[1]} tokens"
        table = new_table(title, ("model",), columns)
        for point in bench.points:
            if point.shape == shape:
                table.add_row(point.target, *_cells(point))
        out.print(table)


def _cells(point: Point) -> list[str]:
    from mxort.text import format_bytes

    cells = [str(point.concurrency), str(point.requests), str(point.errors), f"{point.tokens_per_s:.1f}"]
    cells += [f"{point.requests_per_s:.2f}", f"{point.goodput_per_s:.2f}"]
    for times in (point.ttft_ms, point.tpot_ms, point.itl_ms):
        cells += [_number(times.get("p50"), ".1f"), _number(times.get("p99"), ".1f")]
    cells.append(format_bytes(point.memory_bytes) if point.memory_bytes else "-")
    return [*cells, _number(point.tokens_per_joule, ".2f"), _number(point.cost_per_million, ".2f")]


def _number(value: Any, form: str) -> str:
    return "-" if value is None else format(value, form)


def _clients(text: str) -> int:
    number = shared.positive(text)
    if number > _MOST:
        raise argparse.ArgumentTypeError(f"expected at most {_MOST} clients, got {text}")
    return number


def _shape(text: str) -> tuple[int, int]:
    prompt, slash, answer = text.partition("/")
    if not slash:
        raise argparse.ArgumentTypeError(f"expected PROMPT/ANSWER in tokens, got {text!r}")
    return shared.positive(prompt), shared.positive(answer)
