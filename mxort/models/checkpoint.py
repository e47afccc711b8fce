"""A folder of the Hugging Face kind, opened: its settings, its float tensors, its MXFP4 weights. No weight is read.

Weights that are MXFP4 come in the operator's own bytes (docs/format.md): every format in :mod:`mxort.models.formats`
stores them so, which is why an import is a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxort.errors import MxortError
from mxort.formats import BLOCK_SIZE, SCALE_NAN, dequantize_mxfp4
from mxort.models import formats, shards
from mxort.models.formats import Layout, Source
from mxort.models.shards import Tensor

_CODES_IN_BYTE = 2
_SCALES = ("U8", "F8_E8M0")
_FLOAT_BUFFERS = (".rotary_emb.inv_freq",)
"""Endings of tensors that old checkpoints carry and every model computes for itself."""


@dataclass(frozen=True)
class Packed:
    """A weight in MXFP4: codes uint8 [..., N, K/2], scales uint8 [..., N, K/32]."""

    name: str
    codes: Tensor
    scales: Tensor
    activation_format: str | None

    @property
    def shape(self) -> tuple[int, ...]:
        """[..., N, K]."""
        return (*self.scales.shape[:-1], self.scales.shape[-1] * BLOCK_SIZE)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    def arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Views of the file: codes [..., N, K/2], scales [..., N, K/32]. Raises MxortError for a scale that is NaN."""
        scales = self.scales.array()
        if (scales == SCALE_NAN).any():
            raise MxortError(f"{self.scales.label} has the scale {SCALE_NAN}, which is NaN")
        return self.codes.array().reshape(*self.shape[:-1], -1), scales

    def values(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows start:stop of a weight [N, K], exactly."""
        codes, scales = self.arrays()
        return dequantize_mxfp4(codes[start:stop], scales[start:stop], self.shape[-1])


@dataclass(frozen=True)
class Checkpoint:
    """``floats`` and ``packed`` by the name of the parameter (``model.layers.0.self_attn.q_proj.weight``).

    ``format`` is what people call it, "" for a float checkpoint. ``config`` is config.json. ``folder`` may be a file
    that has everything (GGUF); ``write_tokenizer`` then writes the tokenizer's files into a folder.
    """

    folder: Path
    config: Mapping[str, Any]
    format: str
    files: tuple[Path, ...]
    floats: Mapping[str, Tensor]
    packed: Mapping[str, Packed]
    notes: tuple[str, ...] = ()
    write_tokenizer: Callable[[Path], None] | None = None

    @property
    def settings(self) -> Path:
        """The file that says what the model is, for messages."""
        return self.folder if self.write_tokenizer else self.folder / "config.json"

    @property
    def nbytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    @property
    def architecture(self) -> str:
        """The name of the model's class. Raises MxortError where config.json has none."""
        names = self.config.get("architectures")
        if not isinstance(names, list) or not names or not isinstance(names[0], str):
            raise MxortError(f"{self.settings}: architectures: got {names!r}, expected a class")
        return names[0]


def open_checkpoint(folder: Path, *, float_activations: bool = False) -> Checkpoint:
    """Reads config.json and the headers of the weights.

    ``float_activations``: what the checkpoint says of activations is passed over.

    Raises MxortError for what is missing, damaged, or quantised in a way that cannot be kept byte for byte.
    """
    if not folder.is_dir():
        raise MxortError(f"{folder}: expected a folder with config.json and safetensors")
    config = shards.read_json(folder / "config.json")
    tensors, files = shards.read(folder)
    source = _quantization(folder, config)
    if source is None:
        floats = _floats(tensors, frozenset())
        return Checkpoint(folder, config, "", files, floats, {})
    source = replace(source, float_activations=float_activations)
    row = formats.find(source)
    layout = row.layout(source)
    packed, used = _packed(tensors, layout)
    if not packed:
        raise MxortError(f"{source.file}: says {row.name}, but no tensor ends in {layout.scales!r}")
    ignored = {name for name in tensors if name.endswith(layout.ignored)} if layout.ignored else set()
    floats = _floats(tensors, used | ignored)
    return Checkpoint(folder, config, row.name, files, floats, packed, layout.notes)


def _quantization(folder: Path, config: Mapping[str, Any]) -> Source | None:
    """The settings of the quantisation; None for a float checkpoint."""
    beside = folder / "hf_quant_config.json"
    settings = config.get("quantization_config")
    if beside.exists():  # ModelOpt's, which says more than its copy in config.json
        content = shards.read_json(beside)
        inner = content.get("quantization")
        if isinstance(inner, dict):
            return Source(beside, {**inner, "quant_method": "modelopt"})
    if settings is None:
        return None
    if not isinstance(settings, dict):
        raise MxortError(
            f"{folder / 'config.json'}: quantization_config: got {settings!r}, expected an object"
        )
    if "quant_method" not in settings and "quant_algo" in settings:
        settings = {**settings, "quant_method": "modelopt"}
    return Source(folder / "config.json", settings)


def _packed(tensors: Mapping[str, Tensor], layout: Layout) -> tuple[dict[str, Packed], frozenset[str]]:
    """(the MXFP4 weights, the tensors that are in them)."""
    found: dict[str, Packed] = {}
    used: set[str] = set()
    for name, scales in tensors.items():
        if not name.endswith(layout.scales):
            continue
        module = name.removesuffix(layout.scales)
        codes = tensors.get(module + layout.codes)
        if codes is None:
            raise MxortError(f"{scales.label} has no {module + layout.codes!r} beside it")
        _check(codes, scales, layout.blocks)
        parameter = module if layout.blocks else module + ".weight"
        found[parameter] = Packed(parameter, codes, scales, layout.linear(module).activation_format)
        used |= {name, codes.name}
    return found, frozenset(used)


def _check(codes: Tensor, scales: Tensor, blocks: bool) -> None:
    """Raises MxortError where types or shapes are not those of MXFP4."""
    if codes.dtype != "U8":
        raise MxortError(f"{codes.label} has the type {codes.dtype}, expected U8 (MXFP4 codes)")
    if scales.dtype not in _SCALES:
        raise MxortError(f"{scales.label} has the type {scales.dtype}, expected U8 (E8M0 scales)")
    rank = 3 if blocks else 2
    half = BLOCK_SIZE // _CODES_IN_BYTE
    *rows, per_row = scales.shape if len(scales.shape) == rank else (0, 0)
    expected = (*rows, per_row, half) if blocks else (*rows, per_row * half)
    if codes.shape != expected or not scales.size:
        raise MxortError(
            f"{codes.label} has the shape {list(codes.shape)} and its scales {list(scales.shape)}, expected "
            + (
                "[E, N, K/32, 16] and [E, N, K/32]"
                if blocks
                else "[N, K/2] and [N, K/32], K a multiple of 32"
            )
        )


def _floats(tensors: Mapping[str, Tensor], used: frozenset[str] | set[str]) -> dict[str, Tensor]:
    """The other tensors. Raises MxortError for one that is no float."""
    found = {}
    for name, tensor in tensors.items():
        if name in used or name.endswith(_FLOAT_BUFFERS):
            continue
        if tensor.dtype not in shards.FLOATS:
            raise MxortError(
                f"{tensor.label} has the type {tensor.dtype}, expected {', '.join(shards.FLOATS)}"
            )
        found[name] = tensor
    return found
