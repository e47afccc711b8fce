"""How a site will run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Operator:
    """How a site will run: the operator's attributes."""

    rotation: int
    activation_format: str
    accuracy_level: int
