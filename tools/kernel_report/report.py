"""What a GPU code object's kernels use and could reach at most.

Works on any gfx950 code object, without a GPU. Every time and share it prints is a bound from a static model
(kernel_report_model), not a measurement.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mxort import _native
from mxort.errors import MxortError
from tools.kernel_report import model
from tools.kernel_report.isa import Kernel, read_code_object


def describe(kernel: Kernel) -> dict[str, Any]:
    """Everything the report knows of a kernel, as JSON values."""
    loop = model.model_loop(kernel)
    out: dict[str, Any] = dataclasses.asdict(kernel.resources)
    out |= {
        "arch": kernel.arch,
        "waves_per_simd": model.waves_per_simd(kernel),
        "code_bytes": kernel.code[-1].address - kernel.code[0].address if kernel.code else 0,
        "loop_bytes": kernel.loop_bytes,
        "loop": dataclasses.asdict(loop) if loop else None,
        "gate": None if loop is None else "pass" if not loop.failures else "fail",
    }
    if loop and kernel.arch == "gfx950":
        fmt = model.activation_format(kernel)
        out["format"] = fmt
        out["bounds"] = [
            {"m": m, "n": n, "k": k, "seconds": seconds, "bound_by": by}
            for m, n, k in model.SHAPES
            for seconds, by in [model.roofline_seconds(fmt, m, n, k)]
        ]
    return out


def report(paths: list[Path], only: str = "") -> list[dict[str, Any]]:
    """Descriptions of all kernels of the code objects whose name contains ``only``."""
    return [describe(k) for path in paths for k in read_code_object(path) if only in k.resources.name]


def _value(x: float | None, form: str = ".2f") -> str:
    return "-" if x is None else format(x, form)


def resource_table(kernels: list[dict[str, Any]]) -> Table:
    table = Table(title="Kernels: resources")
    for column in (
        "kernel",
        "threads",
        "VGPR",
        "AGPR",
        "SGPR",
        "LDS",
        "scratch",
        "spills",
        "waves/SIMD",
        "code",
        "loop",
    ):
        table.add_column(column, justify="left" if column == "kernel" else "right")
    for k in kernels:
        spills = k["vgpr_spills"] + k["sgpr_spills"]
        values = (
            k["threads"],
            k["vgprs"] - k["agprs"],
            k["agprs"],
            k["sgprs"],
            k["lds"],
            k["scratch"],
            spills,
        )
        table.add_row(
            k["name"], *map(str, values), str(k["waves_per_simd"]), str(k["code_bytes"]), str(k["loop_bytes"])
        )
    return table


def loop_table(kernels: list[dict[str, Any]]) -> Table:
    table = Table(title="Main loops: clocks per iteration by the static model (ceilings, not measurements)")
    columns = ("kernel", "matrix", "issue", "vector", "LDS", "loads", "L2", "share", "bound by", "others/16 clk",
               "acc moves", "read-use", "load-wait", "llvm-mca", "gate")  # fmt: skip
    for column in columns:
        table.add_column(column, justify="left" if column in ("kernel", "gate") else "right")
    for k in kernels:
        loop = k["loop"]
        if loop is None:
            continue
        clocks = [_value(c, ".0f") for c in loop["clocks"].values()]
        verdict = "pass" if not loop["failures"] else "; ".join(loop["failures"])
        table.add_row(
            k["name"], *clocks, _value(loop["share"]), loop["binding"], _value(loop["others"]),
            str(loop["accumulator_moves"]), _value(loop["least_read_distance"], "d"),
            _value(loop["prefetch"], "d"), _value(loop["mca"]), verdict,
        )  # fmt: skip
    return table


GATED = re.compile(r"(gemm|experts)_\w+_(256x256|128x128)")
DOCUMENTED = re.compile(
    GATED.pattern + r"|experts_\w+_(up|down)|(product|prefill)_(float|bfloat16)_\w+"
    r"|attention_(float|bfloat16|mxfp8|mxfp4)_\d+"
)
"""What the document shows; float16 is like bfloat16."""
MARKDOWN_HEADER = (
    "| main loop | VGPR + AGPR | LDS KiB | waves / SIMD | share, bound by | others / 16 clk | read to use, clk "
    "| prefetch, clk | llvm-mca | gate |"
)


def markdown_rows(kernels: list[dict[str, Any]]) -> list[str]:
    """Of docs/mi355x.md: gfx950's kernels whose loops multiply."""
    rows = []
    for k in kernels:
        loop = k["loop"]
        if loop is None or k["arch"] != "gfx950" or not DOCUMENTED.fullmatch(k["name"]):
            continue
        agprs = k["agprs"]
        cells = (
            f"`{k['name']}`", f"{k['vgprs'] - agprs} + {agprs}", f"{k['lds'] / 1024:.0f}", str(k["waves_per_simd"]),
            f"{loop['share']:.2f} {loop['binding']}", f"{loop['others']:.2f}",
            _value(loop["least_read_distance"], "d"), _value(loop["prefetch"], "d"), _value(loop["mca"]),
            "-" if not GATED.fullmatch(k["name"]) else "; ".join(loop["failures"]) or "pass",
        )  # fmt: skip
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def write_markdown(kernels: list[dict[str, Any]], path: Path) -> None:
    """Replaces the table under MARKDOWN_HEADER."""
    lines = path.read_text().splitlines()
    if MARKDOWN_HEADER not in lines:
        raise MxortError(f"{path}: no line '{MARKDOWN_HEADER}'")
    first = last = lines.index(MARKDOWN_HEADER) + 2  # and the line of dashes
    while last < len(lines) and lines[last].startswith("|"):
        last += 1
    lines[first:last] = markdown_rows(kernels)
    path.write_text("\n".join(lines) + "\n")


def bound_table(kernels: list[dict[str, Any]]) -> Table:
    table = Table(
        title="Least time on an MI355X from published peaks, microseconds (a bound, not a measurement)"
    )
    table.add_column("M x N x K")
    formats = list(dict.fromkeys(k["format"] for k in kernels if "format" in k))
    for fmt in formats:
        table.add_column(fmt, justify="right")
    for m, n, k in model.SHAPES:
        cells = []
        for fmt in formats:
            seconds, by = model.roofline_seconds(fmt, m, n, k)
            cells.append(f"{seconds * 1e6:.2f} {by}")
        table.add_row(f"{m} x {n} x {k}", *cells)
    return table


def wide_console() -> Console:
    """The tables are wide; without a terminal they are not folded."""
    return Console(width=None if sys.stdout.isatty() else 220)


def report_built(only: str = "") -> list[dict[str, Any]]:
    """Descriptions of the kernels inside this installation's library.

    Raises MxortError where it was built without GPU kernels, or where LLVM's tools are missing.
    """
    objects = _native.code_objects()
    if not objects:
        raise MxortError(
            "this library was built without GPU kernels: no compiler for them was found (docs/mi355x.md)"
        )
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{source}.{arch}.co") for source, arch, _ in objects]
        for path, (_, _, data) in zip(paths, objects, strict=True):
            path.write_bytes(data)
        return report(paths, only)


def print_kernels(kernels: list[dict[str, Any]], console: Console) -> None:
    """The three tables of the report, as far as they have rows."""
    for table in (resource_table(kernels), loop_table(kernels), bound_table(kernels)):
        if table.row_count:
            console.print(table)
