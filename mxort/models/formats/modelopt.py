"""NVIDIA ModelOpt: `quant_algo: mxfp4`, in config.json or in a hf_quant_config.json beside it."""

from __future__ import annotations

from typing import Any

from mxort.formats import BLOCK_SIZE
from mxort.models.formats.base import Format, Layout, Linear, Source

_MIXED = "MIXED_PRECISION"
_NOTES = {
    "MXFP4": "quant_algo mxfp4 does not say whether activations are rounded: they are as the recipe says",
    "W4A8_MXFP4_FP8": "activations in FP8 with one scale a tensor are no MX format: they are as the recipe says",
}


def _layout(source: Source) -> Layout:
    settings = source.settings
    algorithm = _algorithm(settings)
    layers = source.table(settings, "quantized_layers") if algorithm == _MIXED else {}
    if algorithm != _MIXED:
        _check(source, "quant_algo", settings)

    def linear(module: str) -> Linear:
        if algorithm == _MIXED:
            _check(source, f"quantized_layers {module} quant_algo", source.table(layers, module))
        return Linear()

    asked = (
        {algorithm} if algorithm != _MIXED else {_algorithm(source.table(layers, name)) for name in layers}
    )
    notes = tuple(note for name, note in _NOTES.items() if name in asked)
    return Layout(
        ".weight", ".weight_scale", linear, ignored=(".input_scale", ".k_scale", ".v_scale"), notes=notes
    )


def _algorithm(settings: Any) -> str:
    return str(settings.get("quant_algo", "")).upper()


def _check(source: Source, where: str, settings: Any) -> None:
    if _algorithm(settings) not in _NOTES:
        raise source.refuse(where, settings.get("quant_algo"), "mxfp4 or W4A8_MXFP4_FP8")
    source.expect(where.removesuffix("quant_algo").strip(), settings, "group_size", BLOCK_SIZE)


FORMAT = Format("ModelOpt", ("modelopt",), _layout)
