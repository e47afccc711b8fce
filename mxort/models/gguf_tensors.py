"""A GGUF file: its metadata, and its tensors as those of a checkpoint, read when they are asked for.

The library ``gguf`` reads the header and knows the block formats. MXFP4 (type 39) is taken apart here: a block is the
scale and 16 bytes, of which byte j has element j in its low nibble and element j + 16 in the high one, where the
operator has two neighbours in a byte.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mxort.errors import MxortError, first_line
from mxort.formats import BLOCK_SIZE
from mxort.models.checkpoint import Packed
from mxort.models.shards import Tensor

MXFP4 = "MXFP4"
_HALF = BLOCK_SIZE // 2
_MXFP4_BYTES = 1 + _HALF
_CHUNK_BLOCKS = 1 << 15

PLAIN: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""Types that are no blocks."""

_DEQUANTISED = (
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "IQ4_NL",
    "IQ4_XS",
)
"""Types whose numbers ``gguf`` computes, exactly, in float32."""

_MOST_ELEMENTS = 1 << 22
"""Of an array in the metadata: vocabularies have a few 100,000. The reader makes an object of each."""


@dataclass(frozen=True)
class _Stored(Tensor):
    """A tensor of the file under the name that the model has for it.

    ``shape`` is in elements; ``stored_name`` what the file calls it; ``dtype`` its type there. ``heads``: for each of
    so many heads, the first and second halves of its rows alternate in the file (0: they do not), as llama.cpp has the
    rows of queries and keys for its kind of rotary positions. ``less`` is taken off: Gemma's norms have 1 added.
    """

    stored_name: str = ""
    heads: int = 0
    less: float = 0.0

    @property
    def label(self) -> str:
        return f"{self.file}: tensor {self.stored_name!r}"

    def _bytes(self) -> NDArray[np.uint8]:
        """A view of the file, uint8 [..., bytes of a row]."""
        shape = (*self.shape[:-1], row_bytes(self.dtype, self.shape[-1]))
        try:
            return np.memmap(self.file, np.uint8, "r", self.begin, shape)
        except (OSError, ValueError) as error:
            raise MxortError(f"{self.label}: cannot read: {first_line(error)}") from None

    def _in_order(self, array: NDArray[Any]) -> NDArray[Any]:
        """The rows as the model has them."""
        if not self.heads:
            return array
        alternating = array.reshape(self.heads, -1, 2, *array.shape[1:])
        return np.ascontiguousarray(alternating.swapaxes(1, 2)).reshape(array.shape)


@dataclass(frozen=True)
class Values(_Stored):
    """A tensor of numbers: a view of the file where it has plain ones, else float32, computed from its blocks."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape[:-1]) * row_bytes(self.dtype, self.shape[-1])

    def array(self) -> NDArray[Any]:
        stored = self._bytes()
        if self.dtype in PLAIN:
            numbers: NDArray[Any] = stored.view(PLAIN[self.dtype])
        else:
            from gguf import GGMLQuantizationType, quants

            numbers = quants.dequantize(stored, GGMLQuantizationType[self.dtype])
        return self._in_order(numbers.astype(np.float32) - np.float32(self.less) if self.less else numbers)


@dataclass(frozen=True)
class Codes(_Stored):
    """The codes of an MXFP4 tensor in the operator's order. ``shape`` is [N, K/2]."""

    @property
    def nbytes(self) -> int:
        return self.size

    def array(self) -> NDArray[np.uint8]:
        blocks = _blocks(self)
        codes = np.empty((*blocks.shape[:-1], _HALF), np.uint8)
        whole, made = blocks.reshape(-1, _MXFP4_BYTES), codes.reshape(-1, _HALF)
        for start in range(0, len(whole), _CHUNK_BLOCKS):
            part, out = whole[start : start + _CHUNK_BLOCKS, 1:], made[start : start + _CHUNK_BLOCKS]
            even, odd = part[:, 0::2], part[:, 1::2]
            out[:, : _HALF // 2] = even & 15 | odd << 4  # elements 0 to 15
            out[:, _HALF // 2 :] = even >> 4 | odd & 240  # elements 16 to 31
        return self._in_order(codes.reshape(self.shape))


@dataclass(frozen=True)
class Scales(_Stored):
    """The scales of an MXFP4 tensor: E8M0, as the operator's. ``shape`` is [N, K/32]."""

    @property
    def nbytes(self) -> int:
        return self.size

    def array(self) -> NDArray[np.uint8]:
        return self._in_order(np.ascontiguousarray(_blocks(self)[..., 0]))


def packed(tensor: Values) -> Packed:
    """A weight [..., N, K] of type MXFP4 as an import takes it."""
    *rows, width = tensor.shape
    part = (tensor.begin, tensor.stored_name, tensor.heads)
    codes = Codes(tensor.name, tensor.file, "U8", (*rows, width // 2), *part)
    scales = Scales(tensor.name, tensor.file, "U8", (*rows, width // BLOCK_SIZE), *part)
    return Packed(tensor.name, codes, scales, None)


def _blocks(part: Codes | Scales) -> NDArray[np.uint8]:
    """uint8 [N, K/32, 17]."""
    blocks = part.shape[-1] // (_HALF if isinstance(part, Codes) else 1)
    whole = Values(
        part.name, part.file, MXFP4, (*part.shape[:-1], blocks * BLOCK_SIZE), part.begin, part.stored_name
    )
    return whole._bytes().reshape(*part.shape[:-1], blocks, _MXFP4_BYTES)


def row_bytes(dtype: str, width: int) -> int:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    elements, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[dtype]]
    return width // elements * nbytes


@dataclass(frozen=True)
class GgufFile:
    """``metadata``: Python's numbers, texts and lists by key. ``tensors`` by the file's names."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Values]


def read(path: Path) -> GgufFile:
    """Reads the header of a GGUF file; no tensor. Raises MxortError for a damaged file and for an unknown type."""
    if importlib.util.find_spec("gguf") is None:
        raise MxortError("import of GGUF needs gguf: pip install 'mxort[import]'")
    try:
        reader = _reader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except MxortError:
        raise
    except Exception as error:  # what the library meets in a damaged file is open-ended
        raise MxortError(f"{path}: not a GGUF file, or damaged: {first_line(error)}") from None
    if reader.byte_order != "I":
        raise MxortError(f"{path}: is big-endian, expected little-endian")
    tensors = {}
    for found in reader.tensors:
        kind, shape = found.tensor_type.name, tuple(int(size) for size in reversed(found.shape.tolist()))
        tensor = Values(found.name, path, kind, shape, found.data_offset, found.name)
        if kind not in (*PLAIN, *_DEQUANTISED, MXFP4):
            known = ", ".join((*PLAIN, MXFP4, *_DEQUANTISED))
            raise MxortError(f"{tensor.label} has the type {kind}, expected one of {known}")
        tensors[found.name] = tensor
    _check_places(list(tensors.values()))
    return GgufFile(path, metadata, tensors)


def _check_places(tensors: list[Values]) -> None:
    """Raises MxortError for tensors without elements or on top of each other."""
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.begin):
        if not tensor.shape or not tensor.size:
            raise MxortError(f"{tensor.label} has the shape {list(tensor.shape)}, expected elements")
        if tensor.begin < end:
            raise MxortError(f"{tensor.label} begins before the one ahead of it ends, at byte {end}")
        end = tensor.begin + tensor.nbytes


def _reader(path: Path) -> Any:
    """The library's reader, held to the file's size: it would take what is beyond the end for empty."""
    from gguf import GGUFReader, GGUFValueType

    class Bounded(GGUFReader):
        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> NDArray[Any]:
            end = int(offset) + np.dtype(dtype).itemsize * int(count)
            if end > len(self.data):
                raise ValueError(f"ends at byte {len(self.data)}, expected {end} or more")
            array: NDArray[Any] = super()._get(int(offset), dtype, count, override_order)
            return array

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if raw_type == GGUFValueType.ARRAY:
                kind = int(self._get(orig_offs, np.uint32)[0])
                length = int(self._get(orig_offs + 4, np.uint64)[0])
                if kind == GGUFValueType.ARRAY or length > _MOST_ELEMENTS:
                    raise ValueError(f"an array of {length} elements of type {kind} in the metadata")
            return super()._get_field_parts(orig_offs, raw_type)

    return Bounded(path)
