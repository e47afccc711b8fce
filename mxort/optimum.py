"""optimum: models of its ORTModel classes whose session has the library. Needs optimum-onnx.

    model = mxort.optimum.open(ORTModelForFeatureExtraction, folder)

optimum opens a converted folder without this too, and runs it as float, slowly.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from mxort.runtime import hardware
from mxort.runtime.session import get_ep_name, register, registered_device

_Model_co = TypeVar("_Model_co", covariant=True)


class _Class(Protocol[_Model_co]):
    def from_pretrained(self, model_id: str, **keywords: Any) -> _Model_co: ...


def open(
    model_class: _Class[_Model_co],
    folder: str | os.PathLike[str],
    *,
    device: str = "cpu",
    device_options: Mapping[str, object] | None = None,
    **keywords_of_class: Any,
) -> _Model_co:
    """``model_class.from_pretrained(folder)`` with :func:`keywords`; further ones are passed on."""
    ours = keywords(keywords_of_class.pop("session_options", None), device, device_options)
    return model_class.from_pretrained(os.fspath(folder), **ours | keywords_of_class)


def keywords(
    session_options: Any = None, device: str = "cpu", device_options: Mapping[str, object] | None = None
) -> dict[str, Any]:
    """What ``from_pretrained`` needs; sentence-transformers takes it as ``model_kwargs``.

    ``session_options`` (new ones if None) get the library. ``device``, ``device_options`` and the errors are those of
    :func:`mxort.register`.
    """
    session_options = register(session_options)
    # optimum names the provider itself, and what the options have does not count: these are to make the name known.
    name = registered_device(register(device=device, device_options=device_options))
    if name == hardware.CPU:
        return {"session_options": session_options, "provider": "CPUExecutionProvider"}
    options = {**(device_options or {}), "device_id": name.removeprefix("gpu:")}
    texts = {key: str(int(value) if isinstance(value, bool) else value) for key, value in options.items()}
    return {"session_options": session_options, "provider": get_ep_name(), "provider_options": texts}
