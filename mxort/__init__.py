"""mxort: ONNX models with MXFP4 weights: ``convert`` makes them, ``InferenceSession`` runs them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mxort.calibration.self_written import SelfWritten as SelfWritten
    from mxort.conversion.inspection import inspect as inspect
    from mxort.conversion.pipeline import convert as convert
    from mxort.conversion.recipe import PRESETS as PRESETS
    from mxort.conversion.recipe import Recipe as Recipe
    from mxort.conversion.report import Report as Report
    from mxort.conversion.report import SiteReport as SiteReport
    from mxort.conversion.weights import Calibration as Calibration
    from mxort.errors import MxortError as MxortError
    from mxort.evaluation.comparison import compare as compare
    from mxort.evaluation.evaluate import evaluate as evaluate
    from mxort.models.conversion import convert_folder as convert_folder
    from mxort.models.exporting import export as export
    from mxort.models.importing import import_checkpoint as import_checkpoint
    from mxort.models.report import FolderReport as FolderReport
    from mxort.runtime.generator import Generator as Generator
    from mxort.runtime.hardware import Device as Device
    from mxort.runtime.hardware import devices as devices
    from mxort.runtime.inference_session import InferenceSession as InferenceSession
    from mxort.runtime.session import get_ep_name as get_ep_name
    from mxort.runtime.session import get_ep_names as get_ep_names
    from mxort.runtime.session import get_library_path as get_library_path
    from mxort.runtime.session import load as load
    from mxort.runtime.session import register as register

_HOME = {
    "Calibration": "conversion.weights",
    "Device": "runtime.hardware",
    "FolderReport": "models.report",
    "Generator": "runtime.generator",
    "InferenceSession": "runtime.inference_session",
    "MxortError": "errors",
    "PRESETS": "conversion.recipe",
    "Recipe": "conversion.recipe",
    "Report": "conversion.report",
    "SelfWritten": "calibration.self_written",
    "SiteReport": "conversion.report",
    "compare": "evaluation.comparison",
    "convert": "conversion.pipeline",
    "convert_folder": "models.conversion",
    "devices": "runtime.hardware",
    "evaluate": "evaluation.evaluate",
    "export": "models.exporting",
    "get_ep_name": "runtime.session",
    "get_ep_names": "runtime.session",
    "get_library_path": "runtime.session",
    "import_checkpoint": "models.importing",
    "inspect": "conversion.inspection",
    "load": "runtime.session",
    "register": "runtime.session",
}
"""Public name -> its module. Imported when first used: a serving process that only registers the library
should not pay for the converter, and onnxruntime is optional.
"""

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from mxort.version import mxort_version

        return mxort_version()
    if name not in _HOME:
        raise AttributeError(f"module 'mxort' has no attribute {name!r}")
    value = getattr(import_module(f"mxort.{_HOME[name]}"), name)
    globals()[name] = value  # later look-ups find it at once
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
