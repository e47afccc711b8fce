"""What a conversion did: one row per candidate node, as data, JSON and text (``mxort.pages.report``: as a page)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import onnx
import onnx_ir as ir
from rich.console import Console

from mxort.console import console as new_console
from mxort.conversion import tables
from mxort.conversion.gains import Gain
from mxort.conversion.recipe import Recipe
from mxort.errors import MxortError
from mxort.text import format_bytes, to_json

CONVERTED = "converted"
SKIPPED = "skipped"


@dataclass(frozen=True)
class SiteReport:
    """One node that multiplies by a weight, and what became of it.

    ``reason`` says why a skipped node was left alone; ``note`` adds to a converted one (bias folded, weight
    shared, rotation reduced). K is the length of the dot product, N the number of output columns; both,
    ``weight`` and the byte counts are absent (0, "") where the node has no constant matrix.
    ``converted_bytes`` counts the weight's codes, scales and column multipliers; 0 where another node brings
    the same weight. ``sqnr_db`` is 10*log10(sum(w^2) / sum((w - dequantised w)^2)): infinite for an exact
    weight, None for a skipped node. ``gain_db``: of a calibrated weight, 10*log10 of the squared error of its outputs
    with plain rounding over that with this one, on the calibration data. ``original_bytes`` of a skipped node: of all
    its constants. ``expert_rows``: of calibrated experts, how many rows each saw.
    """

    node: str
    op_type: str
    status: str
    reason: str = ""
    K: int = 0
    N: int = 0
    weight: str = ""
    original_bytes: int = 0
    converted_bytes: int = 0
    sqnr_db: float | None = None
    gain_db: float | None = None
    rotation: int = 1
    activation_format: str = "none"
    accuracy_level: int = 0
    weight_format: str = ""
    algorithm: str = ""
    seconds: float = 0.0
    note: str = ""
    expert_rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Report:
    """The result of :func:`mxort.convert`. Byte counts are of whole files, with external data.

    ``sites`` ends with rows for other nodes that hold much of the file, and for what of it is no constant. ``gains``:
    what options that were not given would make of its size. ``fused``: by operator how many nodes got a kernel of this
    library, and how many did not by reason. ``cache_bytes``: of a head's position in a cache of keys and values that
    the conversion made MXFP8 or MXFP4; 0 where it did not. ``calibration``: the data it was calibrated on, "" where
    there were none.

    ``model`` is the converted model where no output path was given (of the type that was handed in), else
    None; it is not part of the JSON.
    """

    source: str
    output: str
    recipe: Recipe
    original_bytes: int
    converted_bytes: int
    seconds: float
    peak_rss_bytes: int
    sites: tuple[SiteReport, ...]
    mxort_version: str = ""
    source_sha256: str = ""
    opset: int = 0
    ir_version: int = 0
    warnings: tuple[str, ...] = ()
    gains: tuple[Gain, ...] = ()
    fused: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    cache_bytes: int = 0
    calibration: str = ""
    model: onnx.ModelProto | ir.Model | None = field(default=None, repr=False, compare=False)

    @property
    def converted(self) -> tuple[SiteReport, ...]:
        return tuple(site for site in self.sites if site.status == CONVERTED)

    @property
    def skipped(self) -> tuple[SiteReport, ...]:
        return tuple(site for site in self.sites if site.status == SKIPPED)

    @property
    def bits_per_weight(self) -> float | None:
        """Bits of codes and scales for each weight converted, one that is shared counted once; None without any."""
        stored = [site for site in self.converted if site.converted_bytes]
        weights = sum(site.K * site.N for site in stored)
        return 8 * sum(site.converted_bytes for site in stored) / weights if weights else None

    @property
    def mean_sqnr_db(self) -> float | None:
        """Mean over the converted weights that are not exact; None where there is none."""
        values = [s.sqnr_db for s in self.converted if s.sqnr_db is not None and math.isfinite(s.sqnr_db)]
        return sum(values) / len(values) if values else None

    def to_dict(self) -> dict[str, Any]:
        """All fields but ``model``, as JSON types; an infinite SQNR (exact) is the string "inf"."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "model"}
        rows = [asdict(site) for site in self.sites]
        for row in rows:
            if row["sqnr_db"] == math.inf:
                row["sqnr_db"] = "inf"
        return values | {
            "recipe": self.recipe.to_dict(),
            "sites": rows,
            "warnings": list(self.warnings),
            "gains": [asdict(gain) for gain in self.gains],
        }

    def to_json(self, indent: int | None = 2) -> str:
        return to_json(self.to_dict(), indent)

    @staticmethod
    def from_json(text: str) -> Report:
        """Inverse of :meth:`to_json`. Raises MxortError for anything that is not a report."""
        try:
            values = json.loads(text)
            rows = values.pop("sites")
            for row in rows:
                row["sqnr_db"] = math.inf if row["sqnr_db"] == "inf" else row["sqnr_db"]
            return Report(
                **values
                | {
                    "recipe": Recipe.from_dict(values["recipe"]),
                    "warnings": tuple(values["warnings"]),
                    "sites": tuple(
                        SiteReport(**row | {"expert_rows": tuple(row.get("expert_rows", ()))}) for row in rows
                    ),
                    "gains": tuple(Gain(gain["options"], gain["nbytes"]) for gain in values.get("gains", ())),
                }
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise MxortError(f"not a report of mxort: {type(error).__name__}: {error}") from None

    def summary(self) -> str:
        """One line: sizes, counts, mean SQNR, time and memory."""
        ratio = self.original_bytes / self.converted_bytes if self.converted_bytes else math.nan
        sqnr = "" if self.mean_sqnr_db is None else f", mean weight SQNR {self.mean_sqnr_db:.2f} dB"
        before, after = format_bytes(self.original_bytes), format_bytes(self.converted_bytes)
        bits = "" if self.bits_per_weight is None else f", {self.bits_per_weight:.2f} bits per weight"
        return (
            f"{before} -> {after} ({ratio:.2f}x), "
            f"{len(self.converted)} nodes converted, {len(self.skipped)} skipped{bits}{sqnr}, "
            f"{self.seconds:.1f} s, peak memory {format_bytes(self.peak_rss_bytes)}"
        )

    def print(self, console: Console | None = None, every_node: bool = False, warnings: bool = True) -> None:
        """Writes the tables, the warnings and the summary to ``console`` (default: standard output).

        Converted nodes of one shape share a row, unless ``every_node`` asks for one row each.
        ``warnings``: whether they are written; the command line has them on standard error.
        """
        out = console or new_console(markup=True)
        if self.converted:
            out.print((tables.every_node if every_node else tables.grouped)(self.converted))
        if self.skipped:
            out.print(tables.left_alone(self.skipped, self.converted_bytes))
        if self.calibration:
            out.print(f"calibrated on {self.calibration}", markup=False, highlight=False)
        for line in (*tables.expert_rows(self.converted), *tables.fused(self.fused)):
            out.print(line, markup=False, highlight=False)
        if self.cache_bytes:
            line = f'cache in {self.recipe.kv_cache}: genai_config.json needs "head_size": {self.cache_bytes}'
            out.print(line, markup=False, highlight=False)
        for line in tables.options(self.gains, self.converted_bytes):
            out.print(line, markup=False, highlight=False)
        for warning in self.warnings if warnings else ():
            out.print(f"warning: {warning}", style="yellow", markup=False)
        out.print(self.summary(), markup=False, highlight=False)
