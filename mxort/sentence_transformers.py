"""sentence-transformers: its ONNX backend with the library. Needs sentence-transformers and optimum-onnx.

model = mxort.sentence_transformers.open(folder)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from mxort.errors import MxortError
from mxort.optimum import keywords


def open(
    folder: str | os.PathLike[str],
    *,
    device: str = "cpu",
    device_options: Mapping[str, object] | None = None,
    **keywords_of_class: Any,
) -> Any:
    """The ``SentenceTransformer`` of a folder, converted or not; further keywords are its own.

    ``device``, ``device_options`` and the errors are those of :func:`mxort.register`.
    """
    try:
        from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]
    except ImportError as error:
        raise MxortError(f"sentence-transformers cannot be imported: {error}") from error
    theirs = keywords_of_class.pop("model_kwargs", None) or {}
    ours = keywords(theirs.pop("session_options", None), device, device_options)
    return SentenceTransformer(
        os.fspath(folder), backend="onnx", device="cpu", model_kwargs=ours | theirs, **keywords_of_class
    )
