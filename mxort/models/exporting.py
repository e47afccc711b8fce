"""The way back: an imported folder as a checkpoint that vLLM and SGLang load, a converted model in standard ONNX."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from mxort.converters import model_io, rewrite, standard
from mxort.converters.staged_output import StagedOutput
from mxort.errors import MxortError
from mxort.formats import BLOCK_SIZE
from mxort.models import builder, exported_weights, folder, formats, genai_config, origin, shard_writer
from mxort.models.exported_weights import Weight, Weights
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

    ``to``: "compressed-tensors", "quark" or, of gpt-oss, "mxfp4" make a folder ``out`` (config.json, safetensors,
    tokenizer) of one that :func:`mxort.import_checkpoint` wrote; "standard" makes an ONNX file ``out`` of a converted
    one, or of a folder's, with DequantizeLinear and MatMul of opset 24. ``out`` appears whole or not at all.

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
    tensors = _tensors(path, kept, weights, to)
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


def _tensors(path: Path, kept: Origin, weights: Weights, to: str) -> dict[str, NewTensor]:
    """All tensors of the checkpoint in the form's own names."""
    found: dict[str, NewTensor] = {}
    for name, weight in weights.by_name.items():
        if weight.is_packed:
            found |= _packed(path, name, weight, to)
        else:
            found[name] = _floats(weight, kept.types.get(name, "F32"))
    for name, tensor in kept.rest.items():
        found[name] = NewTensor(tensor.dtype, tensor.shape, [tensor.array()])
    return dict(sorted(found.items()))


def _floats(weight: Weight, dtype: str) -> NewTensor:
    """A matrix [N, K]; a stack of experts [E, K, N], as float ones are."""
    numbers = weight.columns(0)
    rows, k = sum(map(len, numbers)), numbers[0].shape[1]
    if not weight.experts:
        return NewTensor(dtype, (rows, k), numbers)
    n = rows // weight.experts
    stack = np.concatenate(numbers).reshape(weight.experts, n, k)
    return NewTensor(dtype, (weight.experts, k, n), [expert.T for expert in stack])


def _packed(path: Path, name: str, weight: Weight, to: str) -> dict[str, NewTensor]:
    """Codes and scales of a weight. Raises MxortError where the form has no place for them."""
    form, module = formats.EXPORTS[to], name.removesuffix(_WEIGHT)
    if module == _EMBEDDING:
        raise MxortError(
            f"{path}: tensor {name!r} is an embedding in MXFP4, which the format has for linears only"
        )
    if weight.experts and not form.stacks:
        raise MxortError(
            f"{path}: tensor {name!r} is a stack of experts, which {to} does not have: mxfp4 does"
        )
    if form.stacks and not weight.experts:
        raise MxortError(
            f"{path}: tensor {name!r} is a matrix in MXFP4, which {to} has for stacks of experts only"
        )
    codes, scales = weight.columns(0), weight.columns(1)
    rows, blocks, half = sum(map(len, scales)), scales[0].shape[1], BLOCK_SIZE // 2
    if codes[0].shape[1] != blocks * half:
        raise MxortError(
            f"{path}: tensor {name!r}: codes of {codes[0].shape[1]} bytes a row for {blocks} blocks"
        )
    stack = (weight.experts, rows // weight.experts) if weight.experts else (rows,)
    of_codes = (*stack, blocks, half) if weight.experts else (rows, blocks * half)
    return {
        module + form.codes: NewTensor("U8", of_codes, codes),
        module + form.scales: NewTensor("U8", (*stack, blocks), scales),
    }


def _linears(weights: Weights) -> set[str]:
    """Modules that are float and no embedding; the output projection too where it is the embedding."""
    floats = {n.removesuffix(_WEIGHT) for n, w in weights.by_name.items() if not w.is_packed}
    packed_head = _HEAD + _WEIGHT in weights.by_name and weights.by_name[_HEAD + _WEIGHT].is_packed
    return (floats - {_EMBEDDING}) | (set() if packed_head else {_HEAD})
