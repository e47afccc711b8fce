"""Running converted models: the library and its registration.

onnxruntime is imported only when a function here needs it: it ships under several package names, none of
which mxort may depend on.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mxort.errors import MxortError
from mxort.runtime import hardware
from mxort.runtime.hardware import CPU

if TYPE_CHECKING:
    import onnxruntime as ort  # type: ignore[import-untyped]

MIN_ONNXRUNTIME = (1, 22)
"""Oldest onnxruntime whose custom-op interface the library is tested with."""

MIN_ONNXRUNTIME_FOR_EP = (1, 24)
"""Oldest onnxruntime whose plugin execution providers may have a kernel registry."""

LIBRARY_NAME = "libmxort.so"
EP_NAME = "MxortExecutionProvider"

_LOG_FATAL = 4
_REGISTRATION = threading.Lock()
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


def load() -> str:
    """Loads libmxort.so into this process and returns its path.

    Afterwards whatever opens a library by name (``register_custom_ops_library("libmxort.so")``, onnxruntime-genai's
    configuration, any dlopen) finds it by its bare name, wherever it is installed. It stays loaded. Raises
    MxortError where the library is missing or cannot be loaded.
    """
    path = get_library_path()
    try:
        ctypes.CDLL(path)
    except OSError as error:
        raise MxortError(f"cannot load {one_line(error)}") from error  # which names the file
    return path


def get_ep_names() -> list[str]:
    """Names of the plugin execution providers in the library, by onnxruntime's packaging convention for such
    libraries: register with ``onnxruntime.register_execution_provider_library(name, get_library_path())``.

    Empty for a library built with headers of onnxruntime that are too old for the execution provider.
    """
    library = ctypes.CDLL(get_library_path())
    return [EP_NAME] if hasattr(library, "CreateEpFactories") else []


def get_ep_name() -> str:
    """The name of the library's one execution provider. Raises MxortError where it was built without."""
    names = get_ep_names()
    if not names:
        raise MxortError(f"this {LIBRARY_NAME} was built without the execution provider")
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


def register(
    session_options: ort.SessionOptions | None = None,
    *,
    device: str | None = None,
    device_options: Mapping[str, object] | None = None,
) -> ort.SessionOptions:
    """Makes ``session_options`` (new ones if None) know the mxort operators and returns them.

    ``device`` is where they run: "cpu" (also None); "gpu" or "gpu:1" (the number is the HIP runtime's); "auto",
    the first GPU that can be used, else the CPU with a RuntimeWarning that says why. ``device_options`` are those
    of the execution provider: ``memory_limit`` (bytes of device memory the session may hold), ``operators``,
    ``self_check``, ``graph_capture`` (README.md). Registering the same options again does nothing.

    Raises MxortError when onnxruntime is missing, older than 1.22 (GPU: 1.24) or refuses the library, when the
    library is missing, when a GPU that was asked for by name cannot be used, and for options that are registered
    for another device.
    """
    runtime = require_onnxruntime()
    options = runtime.SessionOptions() if session_options is None else session_options
    if done := registered_device(options):
        if not hardware.means(device, done):
            raise MxortError(
                f"device: got {device!r}, expected {done!r}, for which these options are registered"
            )
        return options
    device = CPU if device is None else device
    chosen = hardware.choose(device)
    if chosen.gpu is not None:
        try:
            _add_provider(runtime, options, chosen.gpu, device_options or {})
            options.add_session_config_entry(_REGISTERED_KEY, chosen.gpu.name)
            return options
        except MxortError as error:
            if device != hardware.AUTO:
                raise
            chosen = hardware.Choice(None, str(error))
    if chosen.why_cpu:
        warn_of_cpu(chosen.why_cpu)
    path = get_library_path()
    try:
        options.register_custom_ops_library(path)
    except Exception as error:  # onnxruntime raises its own types, which differ between versions
        raise MxortError(f"onnxruntime {runtime.__version__} refuses {path}: {error}") from error
    options.add_session_config_entry(_REGISTERED_KEY, CPU)
    return options


def warn_of_cpu(why: str) -> None:
    """A RuntimeWarning at the caller of the public function that calls this."""
    warnings.warn(f"mxort runs on the CPU: {why}", RuntimeWarning, stacklevel=3)


def registered_device(options: ort.SessionOptions) -> str:
    """Where :func:`register` made these options run; "" if it did not."""
    try:
        return str(options.get_session_config_entry(_REGISTERED_KEY))
    except RuntimeError:  # how onnxruntime says that there is no such entry
        return ""


def _add_provider(
    runtime: Any, options: ort.SessionOptions, gpu: hardware.Device, device_options: Mapping[str, object]
) -> None:
    version = runtime.__version__
    if parse_version(version) < MIN_ONNXRUNTIME_FOR_EP:
        needed = ".".join(map(str, MIN_ONNXRUNTIME_FOR_EP))
        raise MxortError(
            f"onnxruntime {version} is too old for a GPU: the execution provider needs {needed} or later"
        )
    texts = {name: _option_text(value) for name, value in device_options.items()}
    for ep_device in _ep_devices(runtime):
        if ep_device.ep_metadata.get("device_id") == str(gpu.ordinal):
            options.add_provider_for_devices([ep_device], texts)
            return
    raise MxortError(
        f"{gpu.name} ({gpu.arch}, PCI {gpu.pci_bus_id}): onnxruntime {version} does not list this GPU"
    )


def _option_text(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _ep_devices(runtime: Any) -> list[Any]:
    """The GPUs that onnxruntime has of our execution provider, whose library is registered if it was not.

    GPUs that onnxruntime does not find (it looks in /sys/class/drm, which containers and partitioned GPUs may
    lack) are offered as virtual devices to an application that allows it, by a name that ends in ".virtual".
    """
    name = get_ep_name()
    with _REGISTRATION:
        for registration in ("", name, f"{name}.virtual"):
            if registration:
                try:
                    runtime.register_execution_provider_library(registration, get_library_path())
                except Exception as error:
                    text = one_line(error)
                    raise MxortError(
                        f"onnxruntime {runtime.__version__} refuses {LIBRARY_NAME}: {text}"
                    ) from error
            found = [each for each in runtime.get_ep_devices() if each.ep_name == name and _is_gpu(each)]
            if found:
                return found
            if registration:
                runtime.unregister_execution_provider_library(registration)
    return []


def _is_gpu(device: Any) -> bool:
    """Whether it is no CPU, which is a device of the provider too."""
    return bool(device.device.type.name == "GPU")


def open_session(
    model: str | os.PathLike[str] | bytes,
    session_options: ort.SessionOptions | None = None,
    device: str | None = CPU,
) -> ort.InferenceSession:
    """:class:`mxort.InferenceSession` for the command line: any failure is a one-line MxortError naming the file.

    On the CPU unless asked: what is measured and compared should not change with the machine.
    """
    name = "model" if isinstance(model, bytes) else os.fspath(model)
    if session_options is None:
        session_options = require_onnxruntime().SessionOptions()
    session_options.log_severity_level = _LOG_FATAL  # what it logs as an error also arrives as an exception
    if not isinstance(model, bytes) and not Path(model).is_file():
        raise MxortError(f"{name}: no such file")
    from mxort.runtime.inference_session import InferenceSession  # onnxruntime is optional until here

    try:
        return InferenceSession(model, session_options, device=device)
    except MxortError:
        raise
    except Exception as error:  # onnxruntime's exception types have no common base but this
        raise MxortError(f"{name}: onnxruntime cannot open it: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """The text of an exception on one line, without "[ONNXRuntimeError] : 1 : FAIL : " before it."""
    text = " ".join(str(error).split())
    return text.split(" : ", 3)[-1] if text.startswith("[ONNXRuntimeError]") else text
