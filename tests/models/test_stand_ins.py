"""Stand-ins beside real tensors of the same rows: after the same moves they are the same rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mxort.errors import MxortError
from mxort.models import shards, stand_ins

Move = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
MOVES: dict[str, Move] = {
    "T": lambda a, b: a.T,
    "t": lambda a, b: a.t(),
    "mT": lambda a, b: a.mT,
    "transpose": lambda a, b: a.transpose(0, 1),
    "transpose from the end": lambda a, b: a.transpose(-1, -2),
    "transpose of nothing": lambda a, b: a.transpose(1, 1),
    "permute": lambda a, b: a.permute(1, 0),
    "permute of nothing": lambda a, b: a.permute(0, 1),
    "twice": lambda a, b: a.T.T,
    "cat": lambda a, b: torch.cat([a, b, a]),
    "cat and T": lambda a, b: torch.cat((a, b), dim=0).T,
    "rows": lambda a, b: a[1:4],
    "rows to the end": lambda a, b: a[3:, :],
    "rows of rows": lambda a, b: a[1:][1:3],
    "rows across a seam": lambda a, b: torch.cat([a, b])[4:8],
    "cat of rows": lambda a, b: torch.cat([b[:2], a[2:4]]),
    "parameter": lambda a, b: torch.nn.Parameter(a[1:3], requires_grad=False).data,
    "detach": lambda a, b: a.detach().T.detach(),
    "another type": lambda a, b: a.to(torch.float16).float(),
    "reshape to what it is": lambda a, b: torch.cat([a, b]).reshape(len(a) + len(b), a.shape[1]),
    "contiguous": lambda a, b: a.T.contiguous(),
}


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, tuple[stand_ins.StandIn, torch.Tensor]]:
    """a [6, 4] and b [3, 4]: the stand-in and the numbers."""
    real = {"a": torch.arange(24.0).reshape(6, 4), "b": 100 + torch.arange(12.0).reshape(3, 4)}
    save_file(real, tmp_path / "model.safetensors")
    found, _ = shards.read(tmp_path)
    return {name: (stand_ins.of(found[name]), tensor) for name, tensor in real.items()}


def numbers(tensor: stand_ins.StandIn) -> np.ndarray:
    rows = np.concatenate([piece.values() for piece in tensor.pieces])
    return rows.T if tensor.transposed else rows


@pytest.mark.parametrize("name", MOVES)
def test_moves(name: str, pair: dict[str, tuple[stand_ins.StandIn, torch.Tensor]]) -> None:
    (a, real_a), (b, real_b) = pair["a"], pair["b"]
    expected = MOVES[name](real_a, real_b).float().numpy()
    got = MOVES[name](a, b)
    assert isinstance(got, stand_ins.StandIn)
    assert tuple(got.shape) == expected.shape
    np.testing.assert_array_equal(numbers(got), expected)


@pytest.mark.parametrize(
    "move",
    [
        lambda a, b: a + 1,
        lambda a, b: a * b[:1],
        lambda a, b: a @ b.T,
        lambda a, b: a.sum(),
        lambda a, b: a[:, 1:3],
        lambda a, b: a[::2],
        lambda a, b: a.T[1:],
        lambda a, b: torch.cat([a, b], dim=1),
        lambda a, b: torch.cat([a.T, a.T]),
        lambda a, b: torch.cat([a, torch.zeros(1, 4)]),
        lambda a, b: a.reshape(4, 6),
        lambda a, b: a.numpy(),
        lambda a, b: a.tolist(),
    ],
)
def test_what_cannot_be_followed_is_no_silent_nonsense(
    move: Move, pair: dict[str, tuple[stand_ins.StandIn, torch.Tensor]]
) -> None:
    with pytest.raises((MxortError, RuntimeError, NotImplementedError)):
        move(pair["a"][0], pair["b"][0])
