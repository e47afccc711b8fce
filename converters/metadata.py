"""What a conversion writes into the model's metadata, and reading it back.

onnx refuses to merge models whose metadata have different values for one key. So the keys of a conversion hold a part
of the digest of their values: ``mxort.1a2b3c4d.recipe``. Equal conversions have equal keys and values, different ones
different keys, and a merged model holds both. Before 0.2 the keys were ``mxort.recipe`` and so on, still read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import onnx_ir as ir

_KEY = re.compile(r"mxort\.(?:(?P<mark>[0-9a-f]{8})\.)?(?P<field>version|recipe|source_sha256)")


@dataclass(frozen=True)
class Conversion:
    """``version`` of mxort, ``recipe`` as JSON, SHA-256 of the source's files ("" for a model in memory)."""

    version: str
    recipe: str
    source_sha256: str = ""

    def write(self, model: ir.Model) -> None:
        values = {name: value for name, value in asdict(self).items() if value}
        mark = hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest()[:8]
        model.metadata_props.update({f"mxort.{mark}.{name}": value for name, value in values.items()})


def conversions(properties: Mapping[str, str]) -> list[Conversion]:
    """All conversions that a model's metadata tell of: several in a merged model."""
    found: dict[str, dict[str, str]] = {}
    for key, value in properties.items():
        if match := _KEY.fullmatch(key):
            found.setdefault(match["mark"] or "", {})[match["field"]] = value
    names = [field.name for field in fields(Conversion)]
    return [Conversion(*(held.get(name, "") for name in names)) for held in found.values()]
