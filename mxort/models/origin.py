"""What an imported folder keeps of its checkpoint, so that it can become one again.

Nodes name the tensors that their weights are made of, with the rows of each. What is in no node's weight under its
own numbers (norms, biases), and the types that float weights had, are in a file beside the model; config.json is the
checkpoint's, without what it said of quantisation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mxort.errors import MxortError
from mxort.models import shards
from mxort.models.checkpoint import Checkpoint
from mxort.models.shard_writer import NewTensor, write_file
from mxort.models.shards import FLOATS, Tensor

NAMES = "mxort.checkpoint"
"""Metadata key of nodes: the tensors of the checkpoint that their weight is made of, with their rows where not all."""

IN_TURN = "|"
"""Stands between the names of tensors whose rows a weight has in turn."""

ROWS = "mxort.checkpoint_rows"
"""Metadata key of nodes: how many rows each of them has."""

FILE = "checkpoint.safetensors"
CONFIG = "config.json"
QUANTIZATION = ("quantization_config", "compression_config")
"""What config.json says of the form that weights are in."""

_TYPES = "mxort.types"


@dataclass(frozen=True)
class Origin:
    """``config`` is config.json; ``types`` safetensors' name of the type of float matrices; ``rest`` other tensors."""

    config: Mapping[str, Any]
    types: Mapping[str, str]
    rest: Mapping[str, Tensor]


def plain_config(checkpoint: Checkpoint) -> str:
    """The text of config.json without the quantisation."""
    config = {name: value for name, value in checkpoint.config.items() if name not in QUANTIZATION}
    return json.dumps(config, indent=2)


def write(checkpoint: Checkpoint, path: Path, held: frozenset[str]) -> None:
    """Writes the tensors that no node holds as they are, and the types of those ``held``. May raise OSError."""
    types = {n: t.dtype if t.dtype in FLOATS else "F32" for n, t in checkpoint.floats.items()}
    rest = {}
    for name, tensor in checkpoint.floats.items():
        if name not in held:
            array = np.asarray(tensor.array())
            dtype = next(kind for kind in FLOATS if shards.DTYPES[kind] == array.dtype)
            rest[name] = NewTensor(dtype, tensor.shape, [array])
    matrices = {name: types[name] for name in types if name not in rest}
    write_file(path, rest, {_TYPES: json.dumps(matrices)})


def read(folder: Path) -> Origin:
    """Raises MxortError for a folder that no import wrote."""
    path = folder / FILE
    if not path.is_file():
        raise MxortError(f"{folder}: has no {FILE}, expected a folder that `mxort import` wrote")
    tensors, metadata = shards.read_file(path)
    try:
        types = json.loads(metadata.get(_TYPES, ""))
    except ValueError:
        types = None
    if not isinstance(types, dict) or not all(kind in FLOATS for kind in types.values()):
        raise MxortError(f"{path}: {_TYPES}: got {str(types)[:60]!r}, expected a type for each float weight")
    return Origin(shards.read_json(folder / CONFIG), types, tensors)
