"""What the commands of the command line share: arguments, progress, and where their results go."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mxort.console import console
from mxort.errors import MxortError
from mxort.runtime.cluster import ADDRESS, LOCAL
from mxort.text import to_json

if TYPE_CHECKING:
    from mxort.calibration.data import Data
    from mxort.calibration.sensitivity import Probe
    from mxort.conversion.recipe import Recipe
    from mxort.conversion.report import Report
    from mxort.models.report import FolderReport

BROKEN = 1
BAD_INPUT = 2
NOTHING_CONVERTED = 3
INTERRUPTED = 130
"""Exit statuses."""

DATA_HELP = (
    "samples: .npz arrays by input name, .npy one array, .jsonl lines with input_ids; or a folder of them; "
    "or text, .txt, for the tokenizer.json beside the model"
)


def add_samples(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--samples", type=positive, default=2, help="of the data to measure sensitivities on (default 2)"
    )


def add_torch_device(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--device",
        metavar="auto|cpu|gpu|gpu:N",
        default="auto",
        help="where torch computes (default: a GPU that torch has, else the CPU)",
    )


def add_ray(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--ray",
        action="store_true",
        help=f"{what} on a Ray cluster: that of --ray-address or $RAY_ADDRESS, else one of this machine",
    )
    parser.add_argument("--ray-address", metavar="HOST:PORT", help="of a cluster that is there")


def cluster(arguments: argparse.Namespace) -> str | None:
    """The address that --ray means."""
    if not arguments.ray:
        return None
    return arguments.ray_address or os.environ.get(ADDRESS) or LOCAL


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print JSON, and nothing else, on standard output"
    )


def add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--inputs", type=Path, metavar="FILE.npz", help="arrays by input name (default: made up)"
    )
    parser.add_argument("--seed", type=natural, default=0, help="of the inputs made up (default 0)")
    parser.add_argument(
        "--dim",
        type=dim,
        action="append",
        default=[],
        metavar="NAME=SIZE",
        help="size of a symbolic dimension",
    )


def show(arguments: argparse.Namespace, to_dict: Callable[[], Any], print_table: Callable[[], None]) -> int:
    if arguments.json:
        print(to_json(to_dict()))
    else:
        print_table()
    return 0


def warn(warnings: Iterable[str]) -> None:
    """Says what the user should hear, where no program that reads the result meets it."""
    for warning in warnings:
        print(f"mxort: warning: {warning}", file=sys.stderr)


def say(text: str) -> None:
    """Tells what goes on, beside the results."""
    print(f"mxort: {text}", file=sys.stderr)


@contextmanager
def progress() -> Iterator[Callable[[str, float], None] | None]:
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


def natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number of 0 or more, got {text!r}")
    return int(text)


def gpu(text: str) -> int:
    name, colon, ordinal = text.partition(":")
    if name != "gpu" or (colon and not ordinal.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected gpu or gpu:N, got {text!r}")
    return int(ordinal or 0)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a number of 1 or more, got {text!r}")
    return int(text)


def port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text!r}")
    return int(text)


def positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def dim(text: str) -> tuple[str, int]:
    name, equals, size = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"expected NAME=SIZE, got {text!r}")
    return name, natural(size)


def shape(text: str) -> tuple[int, int, int]:
    parts = text.split("x")
    if len(parts) != 3:
        raise argparse.ArgumentTypeError(f"expected MxKxN, got {text!r}")
    m, k, n = map(positive, parts)
    return m, k, n


def probe(
    arguments: argparse.Namespace,
    data: Data,
    chosen: Recipe,
    progress: Callable[[str, float], None] | None,
) -> Probe:
    from mxort.calibration.sensitivity import Options, Probe

    options = Options(arguments.samples, arguments.threads, arguments.cache, device=arguments.device)
    if progress is not None:
        options.progress = progress
    return Probe(arguments.model, data, chosen, options)


REPORT_SUFFIXES = (".txt", ".json", ".html")


def check_report_path(path: Path, models: Sequence[Path], suffixes: Sequence[str] = REPORT_SUFFIXES) -> None:
    """Refuses a report that cannot be written before the work, not after."""
    if path.suffix not in suffixes:
        raise MxortError(f"{path}: a report ends in {'one of ' * (len(suffixes) > 1)}{', '.join(suffixes)}")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise MxortError(f"{path}: cannot write the report there")
    if any(path.resolve() == model.resolve() for model in models):
        raise MxortError(f"{path}: the report would overwrite a model")
    if path.suffix == ".html":
        from mxort.pages import page

        page.require()


def write_report(report: Report | FolderReport, path: Path) -> None:
    """The report as text, JSON or a page, which its path says."""
    if path.suffix == ".txt":
        text = io.StringIO()
        report.print(console(text, markup=True), every_node=True)
        write_text(path, text.getvalue())
    else:
        write_text(path, report.to_json() if path.suffix == ".json" else _page(report))


def _page(report: Report | FolderReport) -> str:
    from mxort.conversion.report import Report
    from mxort.pages.report import render, render_folder

    return render(report) if isinstance(report, Report) else render_folder(report)


def write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MxortError(f"{path}: cannot write the report: {error.strerror or error}") from None
