"""Writing safetensors, a tensor at a time: the library's own writer wants them all in memory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mxort.models.shards import DTYPES, INDEX, SINGLE

SHARD_BYTES = 5_000_000_000
"""A file is begun anew beyond this: what checkpoints of others are cut at."""

_CHUNK_BYTES = 1 << 25
_ALIGNMENT = 8


@dataclass(frozen=True)
class NewTensor:
    """A tensor to write: ``parts`` are its rows, in order, cast to ``dtype`` (a name of safetensors) as they go."""

    dtype: str
    shape: tuple[int, ...]
    parts: Sequence[NDArray[Any]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def write(self, file: BinaryIO) -> None:
        dtype = DTYPES[self.dtype]
        for part in self.parts:
            rows = part.reshape(-1) if part.ndim < 2 else part
            step = max(1, _CHUNK_BYTES // max(1, rows[:1].size * dtype.itemsize))
            for start in range(0, len(rows), step):
                chunk = np.ascontiguousarray(rows[start : start + step].astype(dtype, copy=False))
                file.write(chunk.view(np.uint8).data)


def write(folder: Path, tensors: Mapping[str, NewTensor], shard_bytes: int = SHARD_BYTES) -> int:
    """Writes one file, or several and their index, into ``folder`` -> their bytes. May raise OSError."""
    shards: list[dict[str, NewTensor]] = [{}]
    for name, tensor in tensors.items():
        if shards[-1] and sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > shard_bytes:
            shards.append({})
        shards[-1][name] = tensor
    if len(shards) == 1:
        return write_file(folder / SINGLE, shards[0])
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    total = sum(write_file(folder / name, shard) for name, shard in zip(names, shards, strict=True))
    index = {
        "metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
        "weight_map": {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
    return total


def write_file(
    path: Path, tensors: Mapping[str, NewTensor], metadata: Mapping[str, str] | None = None
) -> int:
    """Writes a file -> its bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            tensor.write(file)
    return 8 + len(text) + offset
