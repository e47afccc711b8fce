"""What a conversion of a folder did: a report for each model, and what they sum up to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mxort.console import console as new_console
from mxort.console import new_table
from mxort.conversion.report import Report
from mxort.text import format_bytes, to_json


@dataclass(frozen=True)
class ModelReport:
    """A model of the folder. ``path`` is relative to it, ``part`` what the model is there (decoder, vision), "" for one
    that only goes along.

    ``reason``: why it was copied as it is, "" for a converted one. ``report`` is that of :func:`mxort.convert`; None
    where nothing was tried. Byte counts include external data.
    """

    path: str
    part: str
    reason: str
    original_bytes: int
    converted_bytes: int
    report: Report | None = None

    @property
    def converted(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class FolderReport:
    """The result of :func:`mxort.convert_folder`. ``kind`` is "genai" or "transformers"; ``copied_files`` and
    ``copied_bytes`` are of what is no model of ``models``, the library in a genai folder among them.
    """

    source: str
    output: str
    kind: str
    models: tuple[ModelReport, ...]
    copied_files: int
    copied_bytes: int
    seconds: float
    folder_warnings: tuple[str, ...] = ()

    @property
    def converted(self) -> tuple[ModelReport, ...]:
        return tuple(model for model in self.models if model.converted)

    @property
    def original_bytes(self) -> int:
        """Of the models that have a part."""
        return sum(model.original_bytes for model in self.models if model.part)

    @property
    def converted_bytes(self) -> int:
        """Of the same."""
        return sum(model.converted_bytes for model in self.models if model.part)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Of the folder, then of its models."""
        reports = ((model.path, model.report) for model in self.models if model.report)
        return *self.folder_warnings, *(f"{path}: {text}" for path, r in reports for text in r.warnings)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types, and the sums."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        rows = [
            {f.name: getattr(model, f.name) for f in fields(model)}
            | {"report": model.report.to_dict() if model.report else None}
            for model in self.models
        ]
        sums = {"original_bytes": self.original_bytes, "converted_bytes": self.converted_bytes}
        return values | sums | {"models": rows, "warnings": list(self.warnings)}

    def to_json(self, indent: int | None = 2) -> str:
        return to_json(self.to_dict(), indent)

    def summary(self) -> str:
        """One line: sizes, counts, time."""
        ratio = self.original_bytes / self.converted_bytes if self.converted_bytes else math.nan
        return (
            f"{format_bytes(self.original_bytes)} -> {format_bytes(self.converted_bytes)} ({ratio:.2f}x), "
            f"{len(self.converted)} of {len(self.models)} models converted, "
            f"{self.copied_files} other files of {format_bytes(self.copied_bytes)}, {self.seconds:.1f} s"
        )

    def print(self, console: Console | None = None, every_node: bool = False, warnings: bool = True) -> None:
        """Writes each model's report, the table of the models and the summary, as :meth:`Report.print` does."""
        out = console or new_console(markup=True)
        for model in self.models:
            if model.report:
                out.print(f"--- {model.path}", markup=False, highlight=False)
                model.report.print(out, every_node, warnings=False)
        out.print(table(self))
        for warning in self.warnings if warnings else ():
            out.print(f"warning: {warning}", style="yellow", markup=False)
        out.print(self.summary(), markup=False, highlight=False)


def rows(report: FolderReport) -> Iterator[tuple[str, str, str, str, str, str]]:
    """(model, part, before, after, converted nodes, why it was copied) of each model."""
    for model in report.models:
        nodes = f"{len(model.report.converted)} of {len(model.report.sites)}" if model.report else "-"
        before, after = format_bytes(model.original_bytes), format_bytes(model.converted_bytes)
        yield model.path, model.part, before, after, nodes, model.reason and f"copied: {model.reason}"


def table(report: FolderReport) -> Table:
    """A row for each model."""
    result = new_table("models", ("model", "part"), ("before", "after", "nodes converted"), ("note",))
    for row in rows(report):
        result.add_row(*map(escape, row))
    return result
