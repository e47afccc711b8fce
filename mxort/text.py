"""Numbers for people, and JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any


def format_bytes(count: int) -> str:
    """A byte count for people: decimal units, as file managers and disk makers count."""
    if count < 1000:
        return f"{count} B"
    size = float(count)
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.5:
            return f"{size:.3g} {unit}"
    return f"{size / 1000:.3g} TB"


def format_sqnr(sqnr_db: float | None) -> str:
    """An SQNR in dB for people: two decimals, "exact" without error, "-" where there is none."""
    if sqnr_db is None:
        return "-"
    return "exact" if sqnr_db == math.inf else f"{sqnr_db:.2f}"


def few(names: Sequence[str], most: int = 3) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def to_json(values: Any, indent: int | None = 2) -> str:
    """``values`` as JSON. What is not finite becomes null; numbers and arrays of numpy are taken too."""
    return json.dumps(plain(values), indent=indent, allow_nan=False)


def plain(value: Any) -> Any:
    """``value`` made of JSON's types: what is not finite is None; numbers and arrays of numpy are taken too."""
    if isinstance(value, Mapping):
        return {key: plain(element) for key, element in value.items()}
    if isinstance(value, list | tuple):
        return [plain(element) for element in value]
    if hasattr(value, "tolist"):  # numpy's
        return plain(value.tolist())
    if isinstance(value, Real) and not isinstance(value, Integral):
        return float(value) if math.isfinite(value) else None
    return value
