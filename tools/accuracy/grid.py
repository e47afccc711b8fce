"""Which text a decoder is calibrated on, by which text it then reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mxort.evaluation.evaluate import evaluate
from tools.accuracy.subjects import RTN, WINDOW, Row, SmolLM2, Tokens, spread, tokenised
from tools.accuracy.texts import KINDS, passages

WINDOWS, TESTS = 32, 4
"""Calibration windows of a row, however many texts share them, and test windows of each text."""


def _row(key: str, label: str, *texts: str, written: int = 0) -> Row:
    return Row(key, label, True, texts=texts, written=written)


class SmolLM2Grid(SmolLM2):
    """Perplexity over the float model's, on texts of four kinds, by the text of calibration."""

    name = "smollm2-grid"
    heading = ("calibrated on", *KINDS, "mean", "worst")
    rows = (
        RTN,
        _row("self", "what the model writes", written=WINDOWS),
        *(_row(kind, kind, kind) for kind in KINDS),
        _row("self-plays", "plays, and what the model writes", "plays", written=WINDOWS),
        _row("self-reference", "reference, and what the model writes", "reference", written=WINDOWS),
        _row("all", "a quarter of each", *KINDS),
    )

    def __init__(self, cache: Path, windows: int) -> None:
        super().__init__(cache, windows)
        self._cache = cache
        self._parts: dict[str, tuple[list[Tokens], list[Tokens]]] = {}

    def calibration(self, row: Row) -> list[Tokens]:
        each = WINDOWS // max(1, len(row.texts))
        return [window for kind in row.texts for window in spread(np.array(self._windows_of(kind)[1]), each)]

    def measure(self, converted: Path, threads: int) -> dict[str, float]:
        found: dict[str, float] = {}
        for kind in KINDS:
            tested = spread(np.array(self._windows_of(kind)[0]), TESTS)
            metrics = evaluate(self.model, converted, tested, threads=threads).metrics
            found[kind] = metrics["perplexity"] / metrics["perplexity_reference"]
            found[f"{kind}_kl"] = metrics["kl"]
        return found

    def cells(self, result: Mapping[str, float]) -> tuple[str, ...]:
        ratios = [result[kind] for kind in KINDS]
        return tuple(f"{x:.3f}" for x in (*ratios, sum(ratios) / len(ratios), max(ratios)))

    def _windows_of(self, kind: str) -> tuple[list[Tokens], list[Tokens]]:
        """(to test on, to calibrate on): of each passage the windows that it fills."""
        if kind not in self._parts:
            test, rest = (
                [
                    tokens[start : start + WINDOW]
                    for passage in part
                    for tokens in [tokenised(self.model.parent, passage)]
                    for start in range(0, len(tokens) - WINDOW + 1, WINDOW)
                ]
                for part in passages(kind, self._cache)
            )
            self._parts[kind] = test, rest
        return self._parts[kind]
