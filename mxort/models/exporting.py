"""The way back: an imported folder as a checkpoint that vLLM and SGLang load, a converted model in standard ONNX."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

from mxort.converters import model_io, rewrite, standard
from mxort.converters.staged_output import StagedOutput
from mxort.errors import MxortError
from mxort.formats import BLOCK_SIZE
from mxort.models import builder, exported_weights, folder, formats, genai_config, origin, shard_writer
from mxort.models.exported_weights import Weights
from mxort.models.formats import Export
from mxort.models.origin import Origin
from mxort.models.shard_writer import NewTensor
from mxort.models.staged_folder import StagedFolder
from mxort.text import format_bytes

STANDARD = "standard"
TARGETS = (*formats.EXPORTS, STANDARD)
"""What can be exported to."""

_EMBEDDING, _HEAD = "model.embed_tokens", "lm_head"
_WEIGHT = ".weight"
_NOT_EXPORTED = (genai_config.NAME, origin.CONFIG)


@dataclass(frozen=True)
class ExportReport:
    """What was written: ``packed`` weights in MXFP4 (standard: in any format), ``floats`` other tensors."""

    source: str
    output: str
    target: str
    packed: int
    floats: int
    nbytes: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def summary(self) -> str:
        floats = f", {self.floats} tensors in float" if self.floats else ""
        return (
            f"{self.target}: {self.packed} packed weights{floats}, {format_bytes(self.nbytes)} in {self.output}, "
            f"{self.seconds:.1f} s"
        )


def export(source: str | os.PathLike[str], out: str | os.PathLike[str], to: str = STANDARD) -> ExportReport:
    """Writes what mxort has imported or converted in the words of others; codes and scales are kept byte for byte.

    ``to``: "compressed-tensors" or "quark" make a folder ``out`` (config.json, safetensors, tokenizer) of one that
    :func:`mxort.import_checkpoint` wrote; "standard" makes an ONNX file ``out`` of a converted one, or of a folder's,
    with DequantizeLinear and MatMul of opset 24. ``out`` appears whole or not at all.

    Raises MxortError for what the format cannot say: a rotation, column multipliers (standard has those), formats of
    weights or activations that it does not have.
    """
    started = time.perf_counter()
    if to not in TARGETS:
        raise MxortError(f"unknown format: got {to!r}, expected one of {', '.join(TARGETS)}")
    path, target = Path(source), Path(out)
    if not path.exists():
        raise MxortError(f"{path}: cannot read: no such file or folder")
    counts = _standard(path, target) if to == STANDARD else _checkpoint(path, target, to)
    return ExportReport(str(path), str(target), to, *counts, time.perf_counter() - started)


def _load(path: Path) -> model_io.Source:
    """The converted model of a file, or the only one of a folder."""
    file = path
    if path.is_dir():
        models = [model for model in folder.read(path).models if model.part]
        if len(models) != 1:
            raise MxortError(f"{path}: has {len(models)} models, expected one")
        file = path / models[0].path
    source = model_io.load(file)
    if not rewrite.is_converted(source.model):
        raise MxortError(f"{file}: is not converted, expected a model with weights in MX formats")
    return source


def _standard(path: Path, out: Path) -> tuple[int, int, int]:
    source = _load(path)
    with StagedOutput(out, source, external=bool(source.data_files)) as output:
        try:
            count = standard.rewrite(source.model)
        except standard.StandardError as error:
            raise MxortError(f"{source.name}: {error}") from None
        output.write(source.model)
        return count, 0, output.commit()


def _checkpoint(path: Path, out: Path, to: str) -> tuple[int, int, int]:
    if not path.is_dir():
        raise MxortError(f"{path}: expected a folder that `mxort import` wrote, to export to {to}")
    kept = origin.read(path)
    weights = exported_weights.collect(_load(path))
    form = formats.EXPORTS[to]
    if weights.activation_format not in form.activations:
        known = ", ".join(form.activations)
        raise MxortError(f"{path}: activation_format {weights.activation_format}: {to} has {known}")
    tensors = _tensors(path, kept, weights, form)
    floats = tuple(sorted(_linears(weights)))
    config = {**kept.config, "quantization_config": form.settings(weights.activation_format, floats)}
    with StagedFolder(out, path) as output:
        output.write(json.dumps(config, indent=2), PurePath(origin.CONFIG))
        for pattern in builder.COMPANIONS:
            for file in path.glob(pattern):
                if file.name not in _NOT_EXPORTED:
                    output.copy(file, PurePath(file.name))
        with output.naming():
            nbytes = shard_writer.write(output.staged, tensors)
        output.commit()
    packed = sum(weight.is_packed for weight in weights.by_name.values())
    return packed, len(tensors) - 2 * packed, nbytes


def _tensors(path: Path, kept: Origin, weights: Weights, form: Export) -> dict[str, NewTensor]:
    """All tensors of the checkpoint in the form's own names."""
    found: dict[str, NewTensor] = {}
    for name, weight in weights.by_name.items():
        if not weight.is_packed:
            numbers = weight.columns(0)
            shape = sum(map(len, numbers)), numbers[0].shape[1]
            found[name] = NewTensor(kept.types.get(name, "F32"), shape, numbers)
            continue
        module = name.removesuffix(_WEIGHT)
        if module == _EMBEDDING:
            raise MxortError(
                f"{path}: tensor {name!r} is an embedding in MXFP4, which the format has for linears only"
            )
        codes, scales = weight.columns(0), weight.columns(1)
        rows, blocks = sum(map(len, scales)), scales[0].shape[1]
        if codes[0].shape[1] != blocks * BLOCK_SIZE // 2:
            raise MxortError(
                f"{path}: tensor {name!r}: codes of {codes[0].shape[1]} bytes a row for {blocks} blocks"
            )
        found[module + form.codes] = NewTensor("U8", (rows, codes[0].shape[1]), codes)
        found[module + form.scales] = NewTensor("U8", (rows, blocks), scales)
    for name, tensor in kept.rest.items():
        found[name] = NewTensor(tensor.dtype, tensor.shape, [tensor.array()])
    return dict(sorted(found.items()))


def _linears(weights: Weights) -> set[str]:
    """Modules that are float and no embedding; the output projection too where it is the embedding."""
    floats = {n.removesuffix(_WEIGHT) for n, w in weights.by_name.items() if not w.is_packed}
    packed_head = _HEAD + _WEIGHT in weights.by_name and weights.by_name[_HEAD + _WEIGHT].is_packed
    return (floats - {_EMBEDDING}) | (set() if packed_head else {_HEAD})
