"""The safetensors files of a checkpoint: what tensors there are, and their bytes when they are asked for.

The library ``safetensors`` judges every header (sizes, overlaps, types). Nothing of a tensor is read before
:meth:`Tensor.array` is called, and what it gives is a view of the file that lives as long as it is held.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mxort.errors import MxortError, first_line

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_LENGTH_BYTES = 8
"""A file begins with the length of its header, little-endian; tensors' offsets count from the header's end."""

DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "U8": np.dtype(np.uint8),
    "F8_E8M0": np.dtype(np.uint8),  # scales: their bytes
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
}
"""What is read, by safetensors' names. Other types are listed and refused when they are needed."""

FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file. ``begin``: where its bytes are in it."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"{self.file}: tensor {self.name!r}"

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file. Raises MxortError for a type that is not read."""
        return self.size * self._numpy_dtype().itemsize

    def array(self) -> NDArray[Any]:
        """A view of the file. Raises MxortError for a type that is not read, or a file that is gone."""
        dtype = self._numpy_dtype()
        if not self.size:
            return np.empty(self.shape, dtype)
        try:
            return np.memmap(self.file, dtype, "r", self.begin, self.shape)
        except (OSError, ValueError) as error:
            raise MxortError(f"{self.label}: cannot read: {first_line(error)}") from None

    def _numpy_dtype(self) -> np.dtype[Any]:
        if self.dtype not in DTYPES:
            raise MxortError(f"{self.label} has the type {self.dtype}, expected one of {', '.join(DTYPES)}")
        return DTYPES[self.dtype]


def read(folder: Path) -> tuple[dict[str, Tensor], tuple[Path, ...]]:
    """(the tensors of a checkpoint's folder by name, its files).

    Raises MxortError for a folder without safetensors, an index that is damaged, names a file outside of the folder
    or one that is missing, or does not fit the files, and for a damaged file.
    """
    index = folder / INDEX
    if not index.exists():
        single = folder / SINGLE
        if not single.exists():
            raise MxortError(f"{folder}: got no {SINGLE} and no {INDEX}, expected one of them")
        return _tensors(single), (single,)
    weight_map = _weight_map(index)
    files = {name: folder / name for name in sorted(set(weight_map.values()))}
    for name, file in files.items():
        if not file.is_file():
            raise MxortError(f"{index}: names the file {name!r}, which is missing")
    found: dict[str, Tensor] = {}
    for file in files.values():
        for tensor in _tensors(file).values():
            if tensor.name in found:
                raise MxortError(f"{tensor.label} is in {found[tensor.name].file} too")
            found[tensor.name] = tensor
    for tensor_name, name in weight_map.items():
        if tensor_name not in found or found[tensor_name].file != files[name]:
            raise MxortError(f"{index}: tensor {tensor_name!r} is not in {name!r}, where the index has it")
    return found, tuple(files.values())


def _weight_map(index: Path) -> Mapping[str, str]:
    content = read_json(index).get("weight_map")
    if not isinstance(content, dict) or not content:
        raise MxortError(f"{index}: got no weight_map, expected one with the file of each tensor")
    for tensor, file in content.items():
        plain = isinstance(file, str) and file == Path(file).name and file.endswith(".safetensors")
        if not plain or "\0" in file or "\\" in file:
            raise MxortError(
                f"{index}: tensor {tensor!r} is in {file!r}, expected a .safetensors file of this folder"
            )
    return content


def _tensors(file: Path) -> dict[str, Tensor]:
    return read_file(file)[0]


def read_file(file: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """(the tensors of a file by name, its metadata). Raises MxortError for a damaged file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as checked:
            names, metadata = set(checked.keys()), checked.metadata() or {}
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            header = json.loads(stream.read(length))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise MxortError(f"{file}: not a safetensors file, or damaged: {first_line(error)}") from None
    start = _LENGTH_BYTES + length
    tensors = {
        name: Tensor(
            name,
            file,
            header[name]["dtype"],
            tuple(header[name]["shape"]),
            start + header[name]["data_offsets"][0],
        )
        for name in header
        if name in names
    }
    return tensors, metadata


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises MxortError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MxortError(f"{path}: cannot read: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise MxortError(f"{path}: got {type(content).__name__}, expected a JSON object")
    return content
