"""Weights of a model in memory whose numbers are elsewhere, and of those the ones that are MXFP4 there already.

A graph that is built from a checkpoint has these as initializers. They are read when the writer or a quantisation
asks, one at a time; codes and scales that a checkpoint has are kept as they are (:func:`packed`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mxort.converters.constants import Stored

if TYPE_CHECKING:
    from mxort.converters.sites import Site

MXFP4 = "mxfp4"

_CHUNK_BYTES = 1 << 25

Bytes = NDArray[np.uint8]


class Rows(Protocol):
    """Some rows of a weight W^T [N, K]."""

    @property
    def name(self) -> str:
        """The tensor's name in the checkpoint, with its rows where these are not all."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def activation_format(self) -> str | None:
        """What the operand of MXFP4 rows is rounded to; None: what the recipe says."""

    def values(self) -> NDArray[Any]:
        """[N, K] in float32, float16 or bfloat16; may be a view of a file."""

    def packed(self) -> tuple[Bytes, Bytes] | None:
        """Codes uint8 [N, K/2] and scales uint8 [N, K/32]; None for rows that are floats."""

    @property
    def is_packed(self) -> bool: ...


class LazyWeight(ir.LazyTensor):
    """W^T [N, K], the rows of ``pieces`` below each other, or transposed to W [K, N]; in ``dtype`` for who asks.

    With ``experts`` E they are a stack [E, N / E, K].
    """

    def __init__(
        self, pieces: Sequence[Rows], transposed: bool, dtype: ir.DataType, name: str, experts: int = 0
    ) -> None:
        self.pieces, self.transposed = tuple(pieces), transposed
        self.source_bytes: int | None = None
        """What the weight takes in the file that it comes from, where that is less; None: what it takes here."""
        rows, k = sum(piece.shape[0] for piece in pieces), pieces[0].shape[1]
        self.matrix = (rows, k)
        shape = (experts, rows // experts, k) if experts else (k, rows) if transposed else (rows, k)

        def read() -> ir.TensorProtocol:
            array = self.stored().astype(dtype.numpy(), copy=False)
            return ir.Tensor(np.ascontiguousarray(array), dtype=dtype, name=name)

        super().__init__(read, dtype, ir.Shape(shape), name=name)

    def stored(self) -> NDArray[Any]:
        """The numbers in the type that they are stored in: a view of the file, where they are in one piece."""
        parts = [piece.values() for piece in self.pieces]
        array = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return array.T if self.transposed else array.reshape(self.shape.numpy())

    def tofile(self, file: Any) -> None:
        """Writes the bytes, some rows at a time."""
        array, dtype = self.stored(), self.dtype.numpy()
        array = array.reshape(-1, array.shape[-1]) if array.ndim > 2 else array
        rows = max(1, _CHUNK_BYTES // max(1, array.shape[1] * dtype.itemsize))
        for start in range(0, len(array), rows):
            file.write(
                np.ascontiguousarray(array[start : start + rows].astype(dtype, copy=False))
                .view(np.uint8)
                .data
            )

    @property
    def is_packed(self) -> bool:
        """Whether all rows are MXFP4 already, with operands of one kind."""
        return all(piece.is_packed for piece in self.pieces) and (
            len({piece.activation_format for piece in self.pieces}) == 1
        )


def _tensor(site: Site) -> LazyWeight | None:
    """The tensor that is the site's weight, all of it, and MXFP4 already."""
    weight = site.weight
    if weight is None or not isinstance(weight.source, Stored) or weight.casts:
        return None
    tensor = weight.source.tensor
    if not isinstance(tensor, LazyWeight) or not tensor.is_packed:
        return None
    whole = {2: (("T", (1, 0)),) if tensor.transposed else (), 3: (("R", tensor.matrix),)}
    return tensor if weight.steps == whole[len(tensor.shape)] else None


def source_bytes(site: Site) -> int:
    """What the site's weight takes in the model that it comes from."""
    weight = site.weight
    if weight is None:
        return 0
    tensors = [root.tensor for root in weight.source.roots]
    known = [_bytes_before(tensor) for tensor in tensors]
    if not all(known):
        return weight.nbytes
    return sum(known) * weight.size // max(1, sum(tensor.size for tensor in tensors))


def _bytes_before(tensor: ir.TensorProtocol) -> int:
    """0 where nothing is known."""
    return (tensor.source_bytes or 0) if isinstance(tensor, LazyWeight) else 0


def is_quantised(site: Site) -> bool:
    """Whether the site's weight was read from a quantised one: it would grow where it stays float."""
    roots = site.weight.source.roots if site.weight is not None else ()
    return any(_bytes_before(root.tensor) for root in roots)


def is_packed(site: Site) -> bool:
    """Whether the site's weight is MXFP4 already: codes and scales are kept."""
    return _tensor(site) is not None


def packed(site: Site) -> tuple[Bytes, Bytes] | None:
    """Codes uint8 [N, K/2] and scales uint8 [N, K/32] of a weight that is MXFP4 already."""
    tensor = _tensor(site)
    if tensor is None:
        return None
    parts = [part for piece in tensor.pieces if (part := piece.packed()) is not None]
    if len(parts) == 1:  # views of the file, which the writer reads from there
        return parts[0]
    codes, scales = zip(*parts, strict=True)
    return np.concatenate(codes), np.concatenate(scales)


def activation_format(site: Site) -> str | None:
    """What the checkpoint has the operand rounded to; None: nothing is known."""
    tensor = _tensor(site)
    return None if tensor is None else tensor.pieces[0].activation_format


def settle(sites: Sequence[Site]) -> list[Site]:
    """The sites; those whose weight is MXFP4 already become what it is, whatever the recipe says of others."""
    return [replace(s, skip="", weight_format=MXFP4, table=False) if is_packed(s) else s for s in sites]
