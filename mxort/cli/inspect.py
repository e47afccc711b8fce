"""``mxort inspect``: arguments, and what is printed."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from mxort.cli import shared
from mxort.console import console, new_table, print_filled
from mxort.conversion import tables
from mxort.conversion.inspection import CONVERTIBLE, Inspection, inspect
from mxort.conversion.recipe import Recipe
from mxort.conversion.report import CONVERTED, SKIPPED
from mxort.errors import MxortError
from mxort.models import folder
from mxort.models.conversion import recipe_for
from mxort.models.folder import ModelFolder
from mxort.runtime import placement
from mxort.runtime.placement import Placement
from mxort.runtime.session import EP_NAME
from mxort.text import format_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="an ONNX model, converted or not, or a folder of them")
    parser.add_argument(
        "--placement", action="store_true", help="instead: what will run where, asked of onnxruntime"
    )
    parser.add_argument(
        "--device", metavar="auto|cpu|gpu|gpu:N", help="for --placement (default: the best present)"
    )
    shared.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.model.is_dir():
        return _run_folder(arguments)
    if arguments.placement:
        placed = placement.place(arguments.model, arguments.device)
        return shared.show(arguments, placed.to_dict, lambda: print_placement(placed, console()))
    if arguments.device:
        raise MxortError("--device is for --placement")
    found = inspect(arguments.model)
    shared.warn(found.warnings)
    return shared.show(arguments, found.to_dict, lambda: print_inspection(found, console()))


def _run_folder(arguments: argparse.Namespace) -> int:
    if arguments.placement or arguments.device:
        raise MxortError(f"{arguments.model}: --placement is for a model, expected a file")
    return show_folder(arguments, folder.read(arguments.model), None)


def show_folder(arguments: argparse.Namespace, found: ModelFolder, recipe: Recipe | None) -> int:
    """Each model of a folder that is in use there, as :func:`print_inspection` does."""
    chosen = recipe or Recipe()
    seen = [inspect(found.path / m.path, recipe_for(found, m, chosen)) for m in found.to_convert]
    shared.warn((*found.warnings, *(f"{i.model}: {text}" for i in seen for text in i.warnings)))
    out = console()

    def print_all() -> None:
        for i in seen:
            print_inspection(i, out)
        for model in found.models:
            if model.keep:
                out.print(f"{model.path}: left alone: {model.keep}")

    values = {"folder": str(found.path), "kind": found.kind}
    left = [{"path": str(model.path), "reason": model.keep} for model in found.models if model.keep]
    return shared.show(
        arguments, lambda: values | {"models": [i.to_dict() for i in seen], "left": left}, print_all
    )


def print_inspection(inspection: Inspection, out: Console) -> None:
    """Facts, the converted or convertible nodes, and the skipped ones grouped by reason."""
    for name, value in _facts(inspection):
        out.print(f"{name:<16}{value}")
    status = CONVERTED if inspection.converted else CONVERTIBLE
    columns = ("K", "N", "before", "after") if status == CONVERTIBLE else ("K", "N", "bytes", "activations")
    table = new_table(status, ("node", "op", "format"), columns, ("note",))
    for site in (s for s in inspection.sites if s.status == status):
        after = format_bytes(site.converted_bytes)
        sizes = (after, site.activation_format)
        if status == CONVERTIBLE:
            sizes = (format_bytes(site.original_bytes), after)
        table.add_row(
            site.node, site.op_type, site.weight_format, str(site.K), str(site.N), *sizes, site.note
        )
    left = [site for site in inspection.sites if site.status == SKIPPED]
    print_filled(out, (table, tables.left_alone(left, inspection.estimated_bytes)))
    for line in tables.options(inspection.gains, inspection.estimated_bytes):
        out.print(line)


def _facts(i: Inspection) -> Iterable[tuple[str, str]]:
    yield "model", f"{i.model}, {format_bytes(i.file_bytes)}, {i.nodes} nodes"
    yield (
        "format",
        f"IR version {i.ir_version}, opset {i.opset}" + (f", by {i.producer}" if i.producer else ""),
    )
    if i.converted:
        yield "converted", f"by mxort {i.mxort_version or 'of unknown version'}: {i.count(CONVERTED)} nodes"
        yield "source SHA-256", i.source_sha256 or "unknown"
    else:
        ratio = i.file_bytes / i.estimated_bytes if i.estimated_bytes else 1.0
        size = f"about {format_bytes(i.estimated_bytes)} ({ratio:.2f}x smaller)"
        yield "converted", f"no; {i.count(CONVERTIBLE)} nodes can be, which leaves {size}"
    yield "lm_head", i.lm_head or "none found"
    yield "recipe", ", ".join(f"{name} {value}" for name, value, _ in i.recipe.describe())


def print_placement(placed: Placement, out: Console) -> None:
    """Operators by provider, and by name those of ours that the GPU does not run although it is there."""
    out.print(f"{placed.model} in onnxruntime {placed.onnxruntime}")
    table = new_table("placement", ("provider", "operator"), ("nodes",))
    for provider, op_type, count in placed.counts():
        table.add_row(provider, op_type, str(count))
    left = new_table("left to the CPU", ("node", "operator"), ())
    if EP_NAME in placed.providers:
        for node in placed.nodes:
            if node.ours and node.provider != EP_NAME:
                left.add_row(node.name, node.op_type)
    print_filled(out, (table, left))
