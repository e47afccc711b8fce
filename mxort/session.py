"""Running converted models: the library, its registration and a session helper.

onnxruntime is imported only when a function here needs it: it ships under several package names, none of
which mxort may depend on.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mxort.errors import MxortError

if TYPE_CHECKING:
    import onnxruntime as ort  # type: ignore[import-untyped]

MIN_ONNXRUNTIME = (1, 22)
"""Oldest onnxruntime whose custom-op interface the library is tested with."""

MIN_ONNXRUNTIME_FOR_EP = (1, 24)
"""Oldest onnxruntime whose plugin execution providers may have a kernel registry."""

LIBRARY_NAME = "libmxort.so"
EP_NAME = "MxortExecutionProvider"

_LOG_FATAL = 4
_REGISTERED_KEY = (
    "mxort.registered"  # a session config entry: the mark lives and dies with the options object
)


def get_library_path() -> str:
    """Absolute path of libmxort.so: for SessionOptions.register_custom_ops_library, or any other language.

    Raises MxortError where the package was not built or installed.
    """
    spec = importlib.util.find_spec("mxort._native")  # finds without loading
    if spec is None or spec.origin is None:
        raise MxortError("the compiled part of mxort is not installed (build it with `pip install .`)")
    path = Path(spec.origin).with_name(LIBRARY_NAME)
    if not path.is_file():
        raise MxortError(f"{path}: the library is missing; reinstall mxort")
    return str(path)


def get_ep_names() -> list[str]:
    """Names of the plugin execution providers in the library: none while it has no CreateEpFactories.

    The name is that of onnxruntime's packaging convention for plugin execution provider libraries; today the
    library is a custom-op library only, and saying otherwise would make callers register what is not there.
    """
    library = ctypes.CDLL(get_library_path())
    return [EP_NAME] if hasattr(library, "CreateEpFactories") else []


def get_ep_name() -> str:
    """The name of the library's one execution provider. Raises MxortError while it has none."""
    names = get_ep_names()
    if not names:
        raise MxortError(f"{LIBRARY_NAME} has no execution provider yet: use mxort.register(session_options)")
    return names[0]


def parse_version(text: str) -> tuple[int, int]:
    """(major, minor) of a version such as "1.22.2" or "1.27.1.dev20250101"; (0, 0) where it is not one."""
    parts = text.split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (IndexError, ValueError):
        return 0, 0


def require_onnxruntime() -> Any:
    """The onnxruntime module, whichever package it came in. Raises MxortError when missing or too old."""
    needed = ".".join(map(str, MIN_ONNXRUNTIME))
    try:
        module = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise MxortError(
            f"onnxruntime cannot be imported ({error}); install one, e.g. `pip install 'mxort[cpu]'`"
        ) from error
    version = getattr(module, "__version__", "unknown")
    if parse_version(version) < MIN_ONNXRUNTIME:
        raise MxortError(f"onnxruntime {version} is too old: mxort needs {needed} or later")
    return module


def register(session_options: ort.SessionOptions | None = None) -> ort.SessionOptions:
    """Registers the mxort operators on ``session_options`` (new ones if None) and returns them.

    Registering the same options again does nothing. Raises MxortError when onnxruntime is missing, older than
    1.22 or refuses the library, or when the library is missing.
    """
    runtime = require_onnxruntime()
    options = runtime.SessionOptions() if session_options is None else session_options
    if _is_registered(options):
        return options
    path = get_library_path()
    try:
        options.register_custom_ops_library(path)
    except Exception as error:  # onnxruntime raises its own types, which differ between versions
        raise MxortError(f"onnxruntime {runtime.__version__} refuses {path}: {error}") from error
    options.add_session_config_entry(_REGISTERED_KEY, "1")
    return options


def _is_registered(options: ort.SessionOptions) -> bool:
    try:
        return bool(options.get_session_config_entry(_REGISTERED_KEY) == "1")
    except RuntimeError:  # how onnxruntime says that there is no such entry
        return False


def InferenceSession(  # noqa: N802 (the drop-in for onnxruntime.InferenceSession)
    path_or_bytes: str | os.PathLike[str] | bytes,
    session_options: ort.SessionOptions | None = None,
    providers: Sequence[Any] | None = None,
    **kwargs: Any,
) -> ort.InferenceSession:
    """An onnxruntime.InferenceSession that knows the mxort operators, on the CPU unless told otherwise.

    ``session_options`` get the library registered, other arguments go to onnxruntime as they are. Raises
    MxortError as :func:`register` does; complaints about the model are those of onnxruntime.
    """
    options = register(session_options)
    model = path_or_bytes if isinstance(path_or_bytes, bytes) else os.fspath(path_or_bytes)
    chosen = ["CPUExecutionProvider"] if providers is None else list(providers)
    return require_onnxruntime().InferenceSession(model, options, providers=chosen, **kwargs)


def open_session(
    model: str | os.PathLike[str] | bytes, session_options: ort.SessionOptions | None = None
) -> ort.InferenceSession:
    """:func:`InferenceSession` for the command line: any failure is a one-line MxortError naming the file."""
    name = "model" if isinstance(model, bytes) else os.fspath(model)
    if session_options is None:
        session_options = require_onnxruntime().SessionOptions()
    session_options.log_severity_level = _LOG_FATAL  # what it logs as an error also arrives as an exception
    if not isinstance(model, bytes) and not Path(model).is_file():
        raise MxortError(f"{name}: no such file")
    try:
        return InferenceSession(model, session_options)
    except MxortError:
        raise
    except Exception as error:  # onnxruntime's exception types have no common base but this
        raise MxortError(f"{name}: onnxruntime cannot open it: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """The text of an exception on one line, without "[ONNXRuntimeError] : 1 : FAIL : " before it."""
    text = " ".join(str(error).split())
    return text.split(" : ", 3)[-1] if text.startswith("[ONNXRuntimeError]") else text
