"""mxort: ONNX models with MXFP4 weights: ``convert`` makes them, ``InferenceSession`` runs them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mxort.comparison import compare as compare
    from mxort.errors import MxortError as MxortError
    from mxort.hardware import Device as Device
    from mxort.hardware import devices as devices
    from mxort.pipeline import convert as convert
    from mxort.recipe import PRESETS as PRESETS
    from mxort.recipe import Recipe as Recipe
    from mxort.report import Report as Report
    from mxort.report import SiteReport as SiteReport
    from mxort.session import InferenceSession as InferenceSession
    from mxort.session import get_ep_name as get_ep_name
    from mxort.session import get_ep_names as get_ep_names
    from mxort.session import get_library_path as get_library_path
    from mxort.session import register as register

_HOME = {
    "Device": "hardware",
    "InferenceSession": "session",
    "MxortError": "errors",
    "PRESETS": "recipe",
    "Recipe": "recipe",
    "Report": "report",
    "SiteReport": "report",
    "compare": "comparison",
    "convert": "pipeline",
    "devices": "hardware",
    "get_ep_name": "session",
    "get_ep_names": "session",
    "get_library_path": "session",
    "register": "session",
}
"""Public name -> its module. Imported when first used: a serving process that only registers the library
should not pay for the converter, and onnxruntime is optional.
"""

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("mxort")
    if name not in _HOME:
        raise AttributeError(f"module 'mxort' has no attribute {name!r}")
    value = getattr(import_module(f"mxort.{_HOME[name]}"), name)
    globals()[name] = value  # later look-ups find it at once
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
