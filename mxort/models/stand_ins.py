"""torch tensors that stand in for weights while onnxruntime-genai's builder writes its graph.

The builder moves weights about before it names them: it transposes, cuts rows out of merged projections and puts
projections below each other. A stand-in has no numbers. It knows which rows of which weights of the checkpoint it is,
and so what is left of all the moving is known too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mxort.converters.lazy_weights import Bytes
from mxort.errors import MxortError
from mxort.models.checkpoint import Packed
from mxort.models.shards import Tensor


@dataclass(frozen=True)
class Piece:
    """Rows start:stop of a matrix [N, K] of the checkpoint (``Rows`` of lazy_weights)."""

    weight: Tensor | Packed
    start: int
    stop: int
    activation_format: str | None = None

    @property
    def name(self) -> str:
        whole = (self.start, self.stop) == (0, self.weight.shape[0])
        return self.weight.name + ("" if whole else f"[{self.start}:{self.stop}]")

    @property
    def shape(self) -> tuple[int, int]:
        return self.stop - self.start, self.weight.shape[1]

    @property
    def is_packed(self) -> bool:
        return isinstance(self.weight, Packed)

    def values(self) -> NDArray[Any]:
        if isinstance(self.weight, Packed):
            return self.weight.values(self.start, self.stop)
        return self.weight.array()[self.start : self.stop]

    def packed(self) -> tuple[Bytes, Bytes] | None:
        if not isinstance(self.weight, Packed):
            return None
        codes, scales = self.weight.arrays()
        return codes[self.start : self.stop], scales[self.start : self.stop]

    def rows(self, start: int, stop: int) -> Piece:
        """Rows start:stop of these."""
        return Piece(self.weight, self.start + start, self.start + stop, self.activation_format)


class StandIn(torch.Tensor):
    """The rows of ``pieces`` below each other, [N, K], or ``transposed`` [K, N]."""

    pieces: tuple[Piece, ...]
    transposed: bool

    @staticmethod
    def __new__(cls, pieces: tuple[Piece, ...], transposed: bool = False) -> StandIn:
        shape = (sum(piece.shape[0] for piece in pieces), pieces[0].shape[1])
        made: StandIn = torch.Tensor._make_wrapper_subclass(
            cls, shape[::-1] if transposed else shape, dtype=torch.float32, device=torch.device("cpu")
        )
        made.pieces, made.transposed = pieces, transposed
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"StandIn({[piece.name for piece in self.pieces]})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        move = _MOVES.get(func.overloadpacket)
        moved = move(*args, **(kwargs or {})) if move is not None else None
        if moved is None:
            names = [a.pieces[0].weight.name for a in args if isinstance(a, cls)]
            where = f" with {names[0]!r}" if names else ""
            raise MxortError(f"the model builder does {func}{where}, which an import cannot follow")
        return moved


def of(weight: Tensor | Packed) -> StandIn:
    """The stand-in of a matrix of the checkpoint."""
    activation_format = weight.activation_format if isinstance(weight, Packed) else None
    return StandIn((Piece(weight, 0, weight.shape[0], activation_format),))


def values(tensor: Tensor) -> torch.Tensor:
    """A small tensor's numbers, float32: norms and biases, which the builder computes with."""
    return torch.from_numpy(np.array(tensor.array(), np.float32))


def _same(tensor: StandIn, *_: Any, **__: Any) -> StandIn:
    return StandIn(tensor.pieces, tensor.transposed)


def _transpose(tensor: StandIn, first: int = 0, second: int = 1) -> StandIn:
    return StandIn(tensor.pieces, tensor.transposed != ((first - second) % 2 == 1))


def _permute(tensor: StandIn, axes: list[int]) -> StandIn:
    return _transpose(tensor, 0, axes[0])  # axes[0] is what becomes the first


def _below(tensors: list[StandIn], axis: int = 0) -> StandIn | None:
    if axis != 0 or not all(isinstance(t, StandIn) and not t.transposed for t in tensors):
        return None
    return StandIn(tuple(piece for tensor in tensors for piece in tensor.pieces))


def _rows(
    tensor: StandIn, axis: int = 0, start: int | None = None, stop: int | None = None, step: int = 1
) -> StandIn | None:
    picked = range(*slice(start, stop, step).indices(tensor.shape[axis]))
    if picked == range(tensor.shape[axis]):
        return _same(tensor)
    if axis != 0 or tensor.transposed or step != 1 or not picked:
        return None
    pieces, first = [], 0
    for piece in tensor.pieces:
        low, high = max(picked.start - first, 0), min(picked.stop - first, piece.shape[0])
        if low < high:
            pieces.append(piece.rows(low, high))
        first += piece.shape[0]
    return StandIn(tuple(pieces))


def _view(tensor: StandIn, shape: Any) -> StandIn | None:
    return _same(tensor) if tuple(shape) == tuple(tensor.shape) else None


_aten = torch.ops.aten
_MOVES: dict[Any, Callable[..., StandIn | None]] = {
    _aten.detach: _same,
    _aten.alias: _same,
    _aten.clone: _same,
    _aten._to_copy: _same,
    _aten.t: _transpose,
    _aten.transpose: _transpose,
    _aten.permute: _permute,
    _aten.cat: _below,
    _aten.slice: _rows,
    _aten.view: _view,
    _aten.reshape: _view,
    _aten._unsafe_view: _view,
}
"""What the builder may do with a weight before it is an initializer, and what that makes of the rows."""
