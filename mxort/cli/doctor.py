"""``mxort doctor``: arguments, and what is printed."""

from __future__ import annotations

import argparse
from importlib import import_module

from rich.console import Console

from mxort.cli import shared
from mxort.console import console, new_table, print_filled
from mxort.errors import MxortError
from mxort.runtime import doctor
from mxort.runtime.doctor import FAILED, INFO, OK, WARNING, Diagnosis

_STYLES = {OK: "green", INFO: "blue", WARNING: "yellow", FAILED: "red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kernels",
        action="store_true",
        help="instead: what the GPU kernels of this build use and could reach (in mxort's source tree, with LLVM)",
    )
    shared.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.kernels:
        return _kernels(arguments)
    result = doctor.diagnose()
    shared.show(arguments, result.to_dict, lambda: print_diagnosis(result, console()))
    return 0 if result.healthy else shared.BROKEN


def print_diagnosis(diagnosis: Diagnosis, out: Console) -> None:
    """The machine, one line per check, the kernel table and a verdict."""
    out.print(diagnosis.machine.line())
    for check in diagnosis.checks:
        out.print(f"{check.status:<8}", style=_STYLES[check.status], end="")
        out.print(f"{check.name}: {check.detail}")
    table = new_table("kernels", ("kernel", "layout", "runs here"), ("worst error",), ("chosen for", "wrong"))
    for kernel in diagnosis.kernels:
        worst = f"{max(kernel.errors.values()):.1e}" if kernel.errors else "-"
        chosen, wrong = ", ".join(kernel.chosen_for), ", ".join(kernel.failed)
        table.add_row(kernel.name, kernel.layout, "yes" if kernel.available else "no", worst, chosen, wrong)
    gpu = new_table("GPU kernels", ("GPU", "kernel", "A by", "type"), ("error", "bound"), ("result",))
    for row in diagnosis.gpu_kernels:
        terms = f" x {row.terms}" if row.terms > 1 else ""
        cells = (f"gpu:{row.device}", row.kernel, row.preparation + terms, row.dtype)
        result = "right" if row.passed else "WRONG, not used"
        gpu.add_row(*cells, f"{row.error:.1e}", f"{row.bound:.1e}", result)
    print_filled(out, (table, gpu))
    out.print("all well" if diagnosis.healthy else "something is broken: see the failed checks")


def _kernels(arguments: argparse.Namespace) -> int:
    """The developers' report, where it is: the wheel does not have it."""
    try:
        report = import_module("tools.kernel_report.report")
    except ModuleNotFoundError:
        raise MxortError(
            "--kernels: the report is a tool of mxort's source tree: install llvm-22 and run "
            "python -m tools.kernel_report there"
        ) from None
    kernels = report.report_built()
    return shared.show(
        arguments, lambda: kernels, lambda: report.print_kernels(kernels, report.wide_console())
    )
