"""Folders to what serves them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from mxort.errors import MxortError
from mxort.models import folder as model_folder
from mxort.serve.decoder import Decoder
from mxort.serve.encoder import Encoder
from mxort.serve.limits import Limits

Backend = Decoder | Encoder


@contextlib.contextmanager
def open_folders(folders: Sequence[Path], limits: Limits, device: str) -> Iterator[dict[str, Backend]]:
    """Name -> model, closed with the block. A model's name is its folder's.

    Raises MxortError for what is no folder of a language model or sentence encoder, and for names that come twice.
    """
    names = [folder.name or folder.resolve().name for folder in folders]  # a link's own, not its end's
    for name in names:
        if names.count(name) > 1:
            raise MxortError(f"{name}: two folders have this name, by which a request chooses its model")
    with contextlib.ExitStack() as stack:
        backends = {}
        for name, folder in zip(names, folders, strict=True):
            backends[name] = _open(name, folder, limits, device)
            stack.callback(backends[name].close)
        yield backends


def _open(name: str, folder: Path, limits: Limits, device: str) -> Backend:
    kind = model_folder.read(folder).kind
    return (Decoder if kind == model_folder.GENAI else Encoder)(name, folder, limits, device)
