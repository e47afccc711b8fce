"""Finished weights in a folder, under names made from all that they depend on. It never makes a conversion fail."""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mxort.calibration import data as calibration_data
from mxort.calibration.example_inputs import Inputs
from mxort.conversion.recipe import Recipe
from mxort.converters.model_io import Source
from mxort.converters.sites import Site
from mxort.errors import MxortError
from mxort.formats import WEIGHT_FORMATS, blocks_of
from mxort.quantize import QuantizedWeight
from mxort.version import mxort_version

_VERSION = 4
"""Raised when an algorithm changes what it makes of the same input."""

Made = tuple[QuantizedWeight, float]
"""A weight and its SQNR in dB."""


class WeightCache:
    """``warning`` says, once something could not be kept, what and why; "" until then."""

    def __init__(self, folder: Path, source: Source, recipe: Recipe) -> None:
        if not source.sha256:
            raise MxortError(f"{source.name}: a cache needs a model file")
        self.warning = ""
        self._folder = folder
        depends = f"{_VERSION} {mxort_version()} {source.sha256} {recipe.to_json()}"
        self._key = hashlib.sha256(depends.encode())

    def watch(self, feeds: Iterable[Inputs]) -> Iterator[Inputs]:
        """The same feeds, which become part of the name."""
        for inputs in feeds:
            self._key.update(calibration_data.digest(inputs))
            yield inputs

    def get(self, site: Site, make: Callable[[], Made]) -> Made:
        """The weight of a site, from the folder or made and kept there."""
        key = self._key.copy()
        key.update(site.id.encode())
        path = self._folder / f"{key.hexdigest()}.npz"
        found = _read(path, site)
        if found is None:
            found = make()
            if not self.warning:
                self._write(path, *found)
        return found

    def _write(self, path: Path, weight: QuantizedWeight, sqnr: float) -> None:
        """Into a file of its own, then renamed: another process may be writing the same weight."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._folder) as own:
                partial = Path(own) / path.name
                np.savez(partial, **_arrays(weight, sqnr))
                partial.replace(path)
        except OSError as error:
            self.warning = f"{self._folder}: finished weights cannot be kept there: {error.strerror or error}"


def _arrays(weight: QuantizedWeight, sqnr: float) -> dict[str, Any]:
    arrays = {
        "codes": weight.codes,
        "scales": weight.scales,
        "column_scale": weight.column_scale,
        "note": weight.note,
        "sqnr_db": sqnr,
    }
    return arrays if weight.losses is None else arrays | {"losses": weight.losses}


def _read(path: Path, site: Site) -> Made | None:
    """What the file holds, if it is there and whole and of the site's shape."""
    blocks = blocks_of(site.K)
    expected = {
        "codes": (np.uint8, (site.N, blocks * WEIGHT_FORMATS[site.weight_format].block_bytes)),
        "scales": (np.uint8, (site.N, blocks)),
        "column_scale": (np.float32, (site.N,)),
    }
    try:
        with np.load(path, allow_pickle=False) as kept:
            arrays = {name: kept[name] for name in expected}
            note, sqnr = str(kept["note"]), float(kept["sqnr_db"])
            losses = tuple(map(float, kept["losses"])) if "losses" in kept else None
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
        return None
    if any((arrays[name].dtype, arrays[name].shape) != entry for name, entry in expected.items()):
        return None
    if losses is not None and len(losses) != 2:
        return None
    return QuantizedWeight(**arrays, note=note, weight_format=site.weight_format, losses=losses), sqnr
