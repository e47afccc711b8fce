"""gpt-oss: experts in tensors of their own, [E, N, K/32, 16] codes; everything else bfloat16."""

from __future__ import annotations

from mxort.models.formats.base import Format, Layout, Source


def _layout(source: Source) -> Layout:
    return Layout("_blocks", "_scales", blocks=True)


FORMAT = Format("gpt-oss", ("mxfp4",), _layout)
