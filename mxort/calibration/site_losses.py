"""What quantising each weight costs: as data, as JSON, and kept in a folder while it is being measured."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mxort.calibration import data as calibration_data
from mxort.calibration.example_inputs import Inputs
from mxort.conversion.recipe import Recipe
from mxort.converters import model_io
from mxort.errors import MxortError
from mxort.formats import WEIGHT_FORMATS
from mxort.version import mxort_version

BASE = "mxfp4"
"""The weight format whose loss is measured. That of the others follows from the noise of the weight."""


@dataclass(frozen=True)
class SiteSensitivity:
    """A node, its weight [N, K] (nodes with the same ``weight`` share it) and what quantising it costs.

    ``loss`` by weight format: measured for mxfp4; for the others that loss times the ratio of the squared errors of
    the weight, as a loss around its minimum, which the float model is, grows with the square of a disturbance.
    """

    node: str
    weight: str
    K: int
    N: int
    loss: Mapping[str, float]


@dataclass(frozen=True)
class Sensitivity:
    """The sites by falling loss. ``loss`` is KL (in nats for each prediction) or noise (over signal).

    ``left_out``: rows of the float model's outputs with a NaN or an infinity, which say nothing. (-inf among logits
    does: such a class is masked.)
    """

    model: str
    source_sha256: str
    loss: str
    samples: int
    sites: tuple[SiteSensitivity, ...]
    skipped: Mapping[str, str]
    left_out: int = 0

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON types."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Any) -> Sensitivity:
        """Inverse of :meth:`to_dict`. Raises MxortError for anything that is no such thing."""
        try:
            rows = tuple(SiteSensitivity(**row) for row in values["sites"])
            if any(set(row.loss) != set(WEIGHT_FORMATS) or row.K < 1 or row.N < 1 for row in rows):
                raise ValueError("a site without a loss for every weight format, or without a size")
            return Sensitivity(**values | {"sites": rows})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise MxortError(f"not a sensitivity of mxort: {type(error).__name__}: {error}") from None

    @staticmethod
    def load(path: str | os.PathLike[str], model: str | os.PathLike[str]) -> Sensitivity:
        """What ``mxort sensitivity --json`` printed of ``model``. Raises MxortError for another model's, too."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise MxortError(f"{path}: cannot be read: {error}") from None
        try:
            known = Sensitivity.from_dict(values)
        except MxortError as error:
            raise MxortError(f"{path}: {error}") from None
        if known.source_sha256 != model_io.load(model).sha256:
            raise MxortError(f"{path}: measured on another model, {known.model}")
        return known


class KeptSites:
    """Finished sites in a folder (None: nowhere), in a file named after all that they depend on.

    A line for each, appended whole, so that several processes may share the file. It is a convenience: what cannot be
    read is measured again, what cannot be written is a warning.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None, sha256: str, recipe: Recipe, feeds: Sequence[Inputs]
    ) -> None:
        self.losses: dict[str, dict[str, float]] = {}
        """By the site's id."""
        self._path: Path | None = None
        self._start = b""
        if folder is None:
            return
        key = hashlib.sha256(
            f"{mxort_version()} {sha256} {recipe.scale_rule} {recipe.column_multiplier}".encode()
        )
        for inputs in feeds:
            key.update(calibration_data.digest(inputs))
        self._path = Path(folder) / f"sensitivity-{key.hexdigest()}.jsonl"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            data = self._path.read_bytes() if self._path.exists() else b""
        except OSError as error:
            self._give_up(error)
            return
        self._start = (
            b"" if not data or data.endswith(b"\n") else b"\n"
        )  # a run ended in the middle of a line
        for line in data.splitlines():
            self.losses |= _finished(line)

    def add(self, site_id: str, losses: dict[str, float]) -> None:
        self.losses[site_id] = losses
        if self._path is None:
            return
        try:
            with self._path.open("ab", buffering=0) as file:
                file.write(self._start + json.dumps({site_id: losses}).encode() + b"\n")
            self._start = b""
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        why = f"{self._path}: {error.strerror or error}: finished sites are not kept"
        warnings.warn(why, RuntimeWarning, stacklevel=3)
        self._path = None


def _finished(line: bytes) -> dict[str, dict[str, float]]:
    """What a line of the file says; nothing where it is not whole or something else."""
    try:
        ((site_id, losses),) = json.loads(line).items()
        values = {name: float(loss) for name, loss in losses.items()}
    except (ValueError, TypeError, AttributeError):
        return {}
    known = set(values) == set(WEIGHT_FORMATS) and all(math.isfinite(loss) for loss in values.values())
    return {site_id: values} if known else {}
