"""Consoles and tables: what is printed is text as it is, wide enough to keep names whole."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from rich.console import Console
from rich.table import Table

PIPE_WIDTH = 1000
"""Where the output is no terminal, nobody knows the width of the reader, and names are searched for: no folding."""


def console(file: TextIO | None = None, *, markup: bool = False) -> Console:
    """A console for ``file`` (default: standard output). Node names may hold what ``markup`` would eat."""
    file = file or sys.stdout
    width = None if file.isatty() else PIPE_WIDTH
    return Console(file=file, width=width, markup=markup, highlight=False, emoji=False)


def new_table(title: str, names: Sequence[str], numbers: Sequence[str], rest: Sequence[str] = ()) -> Table:
    result = Table(title=title, title_justify="left")
    for heading in names:
        result.add_column(heading, overflow="fold")
    for heading in numbers:
        result.add_column(heading, justify="right", no_wrap=True)
    for heading in rest:
        result.add_column(heading, overflow="fold")
    return result


def print_filled(out: Console, tables: Iterable[Table]) -> None:
    for filled in tables:
        if filled.row_count:
            out.print(filled)
