"""The formats of quantised checkpoints: one file and one row each."""

from __future__ import annotations

from mxort.errors import MxortError
from mxort.models.formats import auto_round, compressed_tensors, gpt_oss, modelopt, quark
from mxort.models.formats.base import Export, Format, Layout, Linear, Source

FORMATS: tuple[Format, ...] = tuple(
    module.FORMAT for module in (gpt_oss, quark, compressed_tensors, modelopt, auto_round)
)

EXPORTS = {row.methods[0]: row.export for row in FORMATS if row.export is not None}
"""quant_method -> how a checkpoint of it is written."""

__all__ = ["EXPORTS", "FORMATS", "Export", "Format", "Layout", "Linear", "Source", "find"]


def find(source: Source) -> Format:
    """The format of a checkpoint. Raises MxortError for one that is not known."""
    for row in FORMATS:
        if source.method in row.methods:
            return row
    known = ", ".join(method for row in FORMATS for method in row.methods)
    raise MxortError(f"{source.file}: quant_method: got {source.method!r}, expected one of {known}")
