"""Triton Inference Server: a model repository whose onnxruntime backend loads the library. CPU only: that backend knows
no execution provider from elsewhere.

    mxort.triton.write("model.mxfp4.onnx", "models", "encoder")
"""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePath

import onnx_ir as ir

from mxort.converters import model_io
from mxort.converters.walk import tensors
from mxort.errors import MxortError
from mxort.models.staged_folder import StagedFolder
from mxort.runtime.session import LIBRARY_NAME, get_library_path

_CONFIG = """name: {name}
backend: "onnxruntime"
max_batch_size: 0
model_operations {{ op_library_filename: {library} }}
"""
"""Inputs and outputs are what the server finds in the model. The strings of this format are JSON's."""


def write(
    model: str | os.PathLike[str],
    repository: str | os.PathLike[str],
    name: str,
    *,
    seen_at: str | os.PathLike[str] | None = None,
) -> Path:
    """Writes the folder ``name`` of a repository: config.pbtxt, 1/model.onnx with its data, libmxort.so -> its path.

    ``seen_at`` is where the server finds the repository (/models in a container; default: where it is here), as the
    backend takes no path relative to the model. The folder must not exist, or be empty. Raises MxortError for a model
    that cannot be read, and where the folder cannot be written; nothing is then written.
    """
    if name in ("", ".", "..") or "/" in name:
        raise MxortError(f"name: got {name!r}, expected that of a folder")
    model_io.load(model)  # refuses what is damaged, and data outside of the model's folder
    folder = Path(repository) / name
    library = Path(repository).resolve() if seen_at is None else Path(seen_at)
    file = Path(model)
    with StagedFolder(folder, file) as output:
        output.copy(file, PurePath("1", "model.onnx"))
        held = (place.tensor for place in tensors(ir.load(file)))
        for data in sorted({str(t.location) for t in held if isinstance(t, ir.ExternalTensor)}):
            output.copy(file.parent / data, PurePath("1", data))
        output.copy(Path(get_library_path()), PurePath(LIBRARY_NAME))
        text = _CONFIG.format(name=json.dumps(name), library=json.dumps(str(library / name / LIBRARY_NAME)))
        output.write(text, PurePath("config.pbtxt"))
        output.commit()
    return folder
