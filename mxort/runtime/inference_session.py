"""``mxort.InferenceSession``. Importing this module imports onnxruntime, which is optional: ``mxort`` does it when
the name is first used."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mxort.errors import MxortError
from mxort.runtime import hardware
from mxort.runtime.hardware import CPU
from mxort.runtime.session import (
    one_line,
    register,
    registered_device,
    require_onnxruntime,
    warn_of_cpu,
)

if TYPE_CHECKING:
    import onnxruntime as ort  # type: ignore[import-untyped]
else:
    ort = require_onnxruntime()

_CPU_ONLY = ["CPUExecutionProvider"]


class InferenceSession(ort.InferenceSession):  # type: ignore[misc]  # onnxruntime has no types
    """An onnxruntime.InferenceSession that knows the mxort operators, on the best device present.

    The arguments are those of onnxruntime; ``sess_options`` are registered (:func:`mxort.register`) in place.
    ``device`` and ``device_options`` are those of :func:`mxort.register`; without a device it is "auto", silently
    where the machine has no AMD GPU at all. ``providers``, or providers that ``sess_options`` have, instead leave
    the choice to the caller, as in onnxruntime. Raises MxortError as :func:`mxort.register` does; complaints about
    the model are those of onnxruntime.
    """

    def __init__(
        self,
        path_or_bytes: str | bytes | os.PathLike[str],
        sess_options: ort.SessionOptions | None = None,
        providers: Sequence[str | tuple[str, dict[Any, Any]]] | None = None,
        provider_options: Sequence[dict[Any, Any]] | None = None,
        *,
        device: str | None = None,
        device_options: Mapping[str, object] | None = None,
        **kwargs: Any,
    ) -> None:
        if providers is not None and device is not None:
            raise MxortError(f"got device={device!r} and providers: expected one of them")
        chosen = providers is not None or (device is None and _has_providers(sess_options))
        if device is None and not chosen and hardware.amd_gpu_present():
            device = hardware.AUTO
        options = register(sess_options, device=device, device_options=device_options)
        on_cpu = registered_device(options) == CPU
        if not chosen and on_cpu:
            providers, provider_options = _CPU_ONLY, None
        elif not on_cpu:
            kwargs.setdefault("enable_fallback", False)  # onnxruntime would print, and run on the CPU
        try:
            super().__init__(path_or_bytes, options, providers, provider_options, **kwargs)
            return
        except Exception as error:
            if device != hardware.AUTO or on_cpu:
                raise
            why = one_line(error)
        options = register(device=CPU) if sess_options is None else options
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # onnxruntime: that providers replace those of the options
            super().__init__(path_or_bytes, options, _CPU_ONLY, None, **kwargs)
        warn_of_cpu(why)


def _has_providers(options: ort.SessionOptions | None) -> bool:
    """Whether the caller chose providers in the options; an onnxruntime without the question has no such options.

    Options that :func:`mxort.register` gave a provider were for a device, and stay so."""
    if options is None or registered_device(options):
        return False
    ask = getattr(options, "has_providers", None)
    return bool(ask and ask())
