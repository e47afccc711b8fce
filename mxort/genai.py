"""onnxruntime-genai: folders opened with the library of this installation, on the CPU or an AMD GPU.

A folder of :func:`mxort.convert_folder` needs none of this on the CPU: it is for GPUs, and for decoders that are files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mxort.errors import MxortError
from mxort.runtime import hardware
from mxort.runtime.session import LIBRARY_NAME, get_ep_name, get_library_path, load, one_line, warn_of_cpu

_Path = str | os.PathLike[str]
_Options = Mapping[str, object]
_registered: set[str] = set()

_AMD = "AMDGPUExecutionProvider"
"""The name of AMD's own provider, under which ours may be registered: genai 0.18 leaves the cache on the device and the
inputs in pinned memory for this name alone, of decoders that write their cache in place."""


def open(
    folder: _Path, *, device: str = "cpu", device_options: _Options | None = None, threads: int = 0
) -> Any:
    """The onnxruntime_genai.Model of a folder. ``device`` and ``device_options`` are those of :func:`mxort.register`.
    ``threads`` of the decoder; 0: as the folder says, else the cores.

    On a GPU, layers of the decoder and of parts without options of their own run there. The cache stays there where the
    folder says that it is written in place (past_present_share_buffer), as for decoders with GroupQueryAttention.
    Raises MxortError where onnxruntime-genai is missing or cannot open the folder, and for a GPU that cannot be used.
    """
    try:
        import onnxruntime_genai as genai  # type: ignore[import-untyped]
    except ImportError as error:
        raise MxortError(f"onnxruntime-genai cannot be imported: {error}") from error
    chosen = hardware.choose(device)
    if chosen.why_cpu:
        warn_of_cpu(chosen.why_cpu)
    load()  # genai accepts no path to an installation, but a name that is loaded
    try:
        config = genai.Config(os.fspath(folder))
        options: dict[str, Any] = {"intra_op_num_threads": threads} if threads else {}
        options["custom_ops_library"] = LIBRARY_NAME
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        if chosen.gpu is not None:
            name = _AMD if _in_place(Path(folder)) else get_ep_name()
            _add_provider(genai, config, name, {**(device_options or {}), "device_id": chosen.gpu.ordinal})
        return genai.Model(config)
    except Exception as why:  # of several types, without a base of their own
        raise MxortError(f"{os.fspath(folder)}: onnxruntime-genai cannot open it: {one_line(why)}") from why


def _in_place(folder: Path) -> bool:
    """Whether the folder's decoder writes its cache in place."""
    search = json.loads((folder / "genai_config.json").read_text()).get("search", {})
    return search.get("past_present_share_buffer") is True


def _add_provider(genai: Any, config: Any, name: str, options: _Options) -> None:
    if name not in _registered:
        # The ending lets the library offer GPUs, too, that onnxruntime does not find in /sys/class/drm.
        genai.register_execution_provider_library(f"{name}.virtual", get_library_path())
        _registered.add(name)
    config.clear_providers()
    config.append_provider(name)
    for option, value in options.items():
        config.set_provider_option(name, option, str(int(value) if isinstance(value, bool) else value))
