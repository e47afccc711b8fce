"""Reading calibration and evaluation data: whatever the user has, as one dictionary of arrays per sample."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mxort.calibration import plain_text
from mxort.calibration.example_inputs import (
    Inputs,
    check_inputs,
    generate_inputs,
    load_inputs,
    sliding_caches,
)
from mxort.errors import MxortError, first_line

Sample = Mapping[str, NDArray[Any]] | NDArray[Any]
"""Arrays by input name, or the array of the model's main input (tokens: int [n] or [batch, n])."""

Data = str | os.PathLike[str] | Iterable["Sample | Data"]
"""Samples, or a file or folder of them: .npz arrays by input name; .npy one array, of the main input; .jsonl a
line {"input_ids": [...]} for each sample, as Hugging Face's tokenised data sets are written; a .txt file (not one in a
folder): :func:`mxort.calibration.plain_text.windows`. Or several of these, one after the other.
"""

_SUFFIXES = (".npz", ".npy", ".jsonl")
_TEXT = plain_text.SUFFIX
_MAIN_INPUT = "input_ids"
_MADE_UP = ("mask", "position", "token_type", "segment", "use_cache")


def samples(data: Data, model: ir.Model, name: str) -> Iterator[Inputs]:
    """The samples, each with all inputs of ``model`` (called ``name`` in errors: its path, where it is a file).

    Inputs whose content is implied may be left out: masks (ones), positions, token types (zeros) and an empty
    KV cache (one over which a window slides has its size, and nothing in it that is read). Raises MxortError for data
    that cannot be read or does not fit, or where there is none.
    """
    found = False
    for label, sample in _read(data, model, name):
        found = True
        try:
            yield complete(sample, model, name)
        except MxortError as error:
            raise MxortError(f"{label}: {error}") from None
    if not found:
        where = data if isinstance(data, str | os.PathLike) else "calibration data"
        raise MxortError(f"{where}: no samples (files ending in {', '.join(_SUFFIXES)}, or text in {_TEXT})")


def complete(sample: Sample, model: ir.Model, name: str) -> Inputs:
    """``sample`` with the implied inputs of ``model``. Raises MxortError where it does not fit."""
    declared = {
        value.name or "": value for value in model.graph.inputs if value.name not in model.graph.initializers
    }
    if isinstance(sample, np.ndarray):
        sample = {_main_input(declared, name): sample[None] if sample.ndim == 1 else sample}
    inputs: Inputs = {}
    for key, array in sample.items():
        value = declared.get(key)
        if value is not None and value.dtype is not None and _widens(array.dtype, value.dtype.numpy()):
            array = array.astype(value.dtype.numpy())
        inputs[key] = array
    missing = declared.keys() - inputs.keys()
    if missing:
        sizes = dict(_sizes(inputs, declared))
        sliding = sliding_caches(model)
        for key, array in generate_inputs(model, name, dims=sizes, given=inputs).items():
            implied = array.size == 0 or key in sliding or any(part in key for part in _MADE_UP)
            if implied:
                inputs[key] = array
    check_inputs(inputs, model, name)
    return inputs


def digest(inputs: Inputs) -> bytes:
    """SHA-256 of a sample's names, types, shapes and numbers."""
    result = hashlib.sha256()
    for key in sorted(inputs):
        array = np.ascontiguousarray(inputs[key])
        result.update(f"{key} {array.dtype} {array.shape} ".encode())
        result.update(array.tobytes())
    return result.digest()


def _read(data: Data, model: ir.Model, name: str) -> Iterator[tuple[str, Sample]]:
    if not isinstance(data, str | os.PathLike):
        for number, part in enumerate(data):
            if isinstance(part, Mapping | np.ndarray):
                yield f"sample {number}", part
            else:
                yield from _read(part, model, name)
        return
    path = Path(data)
    if path.is_file() and path.suffix == _TEXT:
        for number, tokens in enumerate(plain_text.windows(path, model, Path(name))):
            yield f"{path}, sample {number}", tokens
        return
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    elif path.is_file() and path.suffix in _SUFFIXES:
        files = [path]
    elif path.is_file():
        raise MxortError(f"{path}: expected a folder or a file ending in {', '.join((*_SUFFIXES, _TEXT))}")
    else:
        raise MxortError(f"{path}: no such file or folder")
    for file in files:
        yield from _read_file(file)


def _read_file(file: Path) -> Iterator[tuple[str, Sample]]:
    if file.suffix == ".npz":
        yield str(file), load_inputs(file)
    elif file.suffix == ".npy":
        try:
            array: NDArray[Any] = np.load(file, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise MxortError(f"{file}: not an .npy file of numbers: {first_line(error)}") from None
        yield str(file), array
    else:
        yield from _read_lines(file)


def _read_lines(file: Path) -> Iterator[tuple[str, Sample]]:
    with file.open("rb") as stream:
        for number, data in enumerate(stream, 1):
            label = f"{file}:{number}"
            try:
                line = data.decode()
            except UnicodeDecodeError:
                raise MxortError(f"{label}: not UTF-8") from None
            try:
                record = json.loads(line)
                sample = {key: np.array(value, np.int64) for key, value in record.items()}
            except (ValueError, TypeError, AttributeError, OverflowError):
                raise MxortError(f'{label}: expected a line like {{"input_ids": [1, 2, 3]}}') from None
            yield label, {key: array[None] if array.ndim == 1 else array for key, array in sample.items()}


def _main_input(declared: Mapping[str, ir.Value], name: str) -> str:
    if _MAIN_INPUT in declared:
        return _MAIN_INPUT
    if len(declared) == 1:
        return next(iter(declared))
    raise MxortError(f"{name}: which of its inputs is the array for? Name it: {', '.join(declared)}")


def _widens(given: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Whether integers of one width stand for those of another, as between tokenisers and models."""
    return given != wanted and given.kind in "iu" and wanted.kind in "iu"


def _sizes(inputs: Inputs, declared: Mapping[str, ir.Value]) -> Iterator[tuple[str, int]]:
    """Sizes of the symbolic dimensions of what is given."""
    for key, array in inputs.items():
        value = declared.get(key)
        if value is not None and value.shape is not None and len(value.shape) == array.ndim:
            for dim, size in zip(value.shape, array.shape, strict=True):
                if not isinstance(dim, int) and dim.value:
                    yield dim.value, size
