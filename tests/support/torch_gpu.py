"""A GPU for torch that is none: tensors live on the CPU, but are told apart as torch would tell them.

Within :func:`simulated` torch says that it has a GPU. What is made there is marked, and so is what is computed from
it. An operation on tensors of both kinds fails, as does ``numpy()`` of a marked one without ``force``: where
a program forgets to move something, torch on a real GPU fails, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _device
from torch.utils._pytree import tree_leaves, tree_map_only


def on_gpu(tensor: torch.Tensor) -> bool:
    return getattr(tensor, "simulated_gpu", False)


class _Gpu(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        marked = any(map(on_gpu, given))
        name = getattr(function, "__name__", "")
        if marked and name == "numpy" and not kwargs.get("force"):
            raise TypeError("can't convert cuda device type tensor to numpy")
        if marked and not all(on_gpu(x) or x.dim() == 0 for x in given):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device")
        if function in _device._device_constructors():
            device = kwargs.get("device") or _device.CURRENT_DEVICE
            marked = device is not None and device.type == "cuda"
            kwargs["device"] = "cpu"
        result = function(*args, **kwargs)
        if marked:
            self.operations += 1
            tree_map_only(torch.Tensor, lambda x: setattr(x, "simulated_gpu", True), result)
        return result


@contextmanager
def simulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Gpu]:
    """``.operations`` of the result counts what was computed on the GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with _Gpu() as gpu:
        yield gpu
