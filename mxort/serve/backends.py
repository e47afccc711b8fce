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


def names_of(folders: Sequence[Path]) -> list[str]:
    """A model's name is its folder's. Raises MxortError for names that come twice, and for what is no folder."""
    names = [folder.name or folder.resolve().name for folder in folders]  # a link's own, not its end's
    for name, folder in zip(names, folders, strict=True):
        if names.count(name) > 1:
            raise MxortError(f"{name}: two folders have this name, by which a request chooses its model")
        model_folder.read(folder)
    return names


@contextlib.contextmanager
def open_folders(
    folders: Sequence[Path], limits: Limits, device: str, threads: int = 0
) -> Iterator[dict[str, Backend]]:
    """Name -> model, closed with the block. ``threads`` of each; 0: as onnxruntime chooses, the cores.

    Raises MxortError for what is no folder of a language model or sentence encoder, and as :func:`names_of`.
    """
    with contextlib.ExitStack() as stack:
        backends: dict[str, Backend] = {}
        for name, folder in zip(names_of(folders), folders, strict=True):
            kind = Decoder if model_folder.read(folder).kind == model_folder.GENAI else Encoder
            backends[name] = kind(name, folder, limits, device, threads)
            stack.callback(backends[name].close)
        yield backends
