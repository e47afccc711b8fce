"""AutoRound's own format: `quant_method: auto-round`, data_type mx_fp."""

from __future__ import annotations

import re
from typing import Any

from mxort.formats import BLOCK_SIZE
from mxort.models.formats.base import Format, Layout, Linear, Settings, Source

_MX = ("mx_fp", "mx_fp4", "mx_fp_rceil", "mx_fp4_rceil")
_ACTIVATIONS = {4: "mxfp4", 8: "mxfp8_e4m3"}
_FLOAT_BITS = 16
_UNROUNDED = (_FLOAT_BITS, 32)


def _layout(source: Source) -> Layout:
    settings = source.settings
    for name in ("rotation_config", "hadamard_matrix", "hadamard_config"):
        if found := settings.get(name):
            raise source.refuse(name, found, "none: a rotation is not imported")
    layers = source.table(settings, "extra_config")

    def linear(module: str) -> Linear:
        override = next((source.table(layers, p) for p in layers if p == module or _matches(p, module)), {})
        return _linear(source, {**settings, **override}, f"linear {module}")

    rounded = _linear(source, settings, "").activation_format is not None
    rule = "rceil" if "rceil" in str(settings.get("act_data_type")) else "floor"
    note = f"activations: AutoRound's scale rule is {rule!r}, the operator's 'even'"
    return Layout(".weight_packed", ".weight_scale", linear, notes=(note,) if rounded else ())


def _matches(pattern: str, module: str) -> bool:
    try:
        return re.fullmatch(pattern, module) is not None
    except re.error:
        return False


def _linear(source: Source, settings: Settings, where: str) -> Linear:
    expected: dict[str, tuple[Any, ...]] = {
        "bits": (4,),
        "data_type": _MX,
        "group_size": (BLOCK_SIZE,),
        "sym": (True,),
    }
    for name, allowed in expected.items():
        if settings.get(name) not in allowed:
            raise source.refuse(
                f"{where} {name}".strip(), settings.get(name), " or ".join(map(repr, allowed))
            )
    bits = settings.get("act_bits") or _FLOAT_BITS
    if bits in _UNROUNDED or source.float_activations:
        return Linear()
    source.expect(where, settings, "act_bits", *_ACTIVATIONS, *_UNROUNDED)
    source.expect(where, settings, "act_dynamic", True)
    source.expect(where, settings, "act_group_size", BLOCK_SIZE)
    source.expect(where, settings, "act_data_type", *_MX, "mx_fp8", "mx_fp8_rceil")
    return Linear(_ACTIVATIONS[bits])


FORMAT = Format("AutoRound", ("auto-round", "auto_round"), _layout)
