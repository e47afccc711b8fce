"""compressed-tensors (llm-compressor, AutoRound's export for vLLM): `mxfp4-pack-quantized`."""

from __future__ import annotations

import re
from typing import Any

from mxort.formats import BLOCK_SIZE
from mxort.models.formats.base import Export, Format, Layout, Linear, Settings, Source

_FORMAT = "mxfp4-pack-quantized"
_ACTIVATIONS = {4: "mxfp4", 8: "mxfp8_e4m3"}


def _layout(source: Source) -> Layout:
    settings = source.settings
    source.expect("", settings, "format", _FORMAT, "mixed-precision")
    source.expect("", settings, "quantization_status", "compressed")
    for name in ("sparsity_config", "transform_config"):
        if found := source.table(settings, name):
            if name == "sparsity_config" and found.get("format") in (None, "dense"):
                continue
            raise source.refuse(name, sorted(found), "none")
    groups = source.table(settings, "config_groups")
    targets = {name: source.names(source.table(groups, name), "targets") for name in groups}
    patterns = _patterns(source, targets)

    def linear(module: str) -> Linear:
        name = _group(targets, patterns, module)
        if name is None:
            raise source.refuse(
                f"config_groups: the group of {module!r}", None, "one with targets that match"
            )
        return _linear(source, name, source.table(groups, name))

    notes = ("kv_cache_scheme: the cache stays float",) if settings.get("kv_cache_scheme") else ()
    return Layout(".weight_packed", ".weight_scale", linear, ignored=(".weight_shape",), notes=notes)


def _patterns(source: Source, targets: dict[str, tuple[str, ...]]) -> dict[str, re.Pattern[str]]:
    """The targets that are regular expressions."""
    found = {}
    for target in (target for names in targets.values() for target in names if target.startswith("re:")):
        try:
            found[target] = re.compile(target.removeprefix("re:"))
        except (re.error, RecursionError, OverflowError):
            raise source.refuse("config_groups targets", target, "a regular expression") from None
    return found


def _group(
    targets: dict[str, tuple[str, ...]], patterns: dict[str, re.Pattern[str]], module: str
) -> str | None:
    """The group of a module: by its name, else by a pattern, else by its class."""
    for matches in (
        lambda target: target == module or module.endswith("." + target),
        lambda target: target.startswith("re:") and patterns[target].match(module),
        lambda target: target == "Linear",
    ):
        for name, names in targets.items():
            if any(matches(target) for target in names):
                return name
    return None


def _linear(source: Source, name: str, group: Settings) -> Linear:
    source.expect(name, group, "format", _FORMAT)
    _is_mx(source, f"{name} weights", source.table(group, "weights"), (4,))
    source.expect(f"{name} weights", source.table(group, "weights"), "actorder", "static", "weight", False)
    if group.get("input_activations") is None or source.float_activations:
        return Linear()
    operand = source.table(group, "input_activations")
    _is_mx(source, f"{name} input_activations", operand, tuple(_ACTIVATIONS))
    source.expect(f"{name} input_activations", operand, "dynamic", True)
    return Linear(_ACTIVATIONS[int(operand["num_bits"])])


def _is_mx(source: Source, where: str, spec: Settings, bits: tuple[int, ...]) -> None:
    expected: dict[str, tuple[Any, ...]] = {
        "num_bits": bits,
        "type": ("float",),
        "strategy": ("group",),
        "group_size": (BLOCK_SIZE,),
        "symmetric": (True,),
    }
    for name, allowed in expected.items():
        source.expect(where, spec, name, *allowed)
        if spec.get(name) is None:
            raise source.refuse(f"{where} {name}", None, " or ".join(map(repr, allowed)))


def _settings(activation_format: str, floats: tuple[str, ...]) -> dict[str, Any]:
    """quantization_config as llm-compressor writes it."""
    bits = {name: number for number, name in _ACTIVATIONS.items()}
    return {
        "quant_method": "compressed-tensors",
        "format": _FORMAT,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "sparsity_config": {},
        "transform_config": {},
        "ignore": list(floats),
        "config_groups": {
            "group_0": {
                "format": _FORMAT,
                "targets": ["Linear"],
                "weights": _in_groups(4, dynamic=False),
                "input_activations": _in_groups(bits[activation_format], dynamic=True)
                if activation_format in bits
                else None,
                "output_activations": None,
            }
        },
    }


def _in_groups(bits: int, *, dynamic: bool) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": "float",
        "strategy": "group",
        "group_size": BLOCK_SIZE,
        "symmetric": True,
        "dynamic": dynamic,
        "scale_dtype": "torch.uint8",
        "zp_dtype": None,
        "actorder": None,
        "block_structure": None,
        "observer": None if dynamic else "memoryless_minmax",
        "observer_kwargs": {},
    }


FORMAT = Format(
    "compressed-tensors",
    ("compressed-tensors",),
    _layout,
    Export(".weight_packed", ".weight_scale", ("none", *_ACTIVATIONS.values()), _settings),
)
