"""How long work says how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float], None]
"""(what is being done, fraction done in 0..1)."""


def silent(what: str, fraction: float) -> None:
    """Tells nobody."""
