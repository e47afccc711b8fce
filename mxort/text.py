"""Numbers for people."""

from __future__ import annotations

import math


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
