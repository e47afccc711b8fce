"""AMD Quark: `quant_method: quark`, weights packed with scales of their own (real_quantized)."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any

from mxort.formats import BLOCK_SIZE
from mxort.models.formats.base import Export, Format, Layout, Linear, Source


def _layout(source: Source) -> Layout:
    settings = source.settings
    export = source.table(settings, "export")
    source.expect("export", export, "weight_format", "real_quantized")
    source.expect("export", export, "pack_method", "reorder", "order")
    for algorithm in _algorithms(settings.get("algo_config")):
        if "rotation" in algorithm or "quarot" in algorithm:
            raise source.refuse("algo_config", algorithm, "no rotation: its part at run time is not imported")
    source.table(settings, "global_quant_config")
    overrides = source.table(settings, "layer_quant_config")
    if by_type := source.table(settings, "layer_type_quant_config"):
        raise source.refuse("layer_type_quant_config", sorted(by_type), "none")

    def linear(module: str) -> Linear:
        pattern = next((p for p in overrides if fnmatch(module, p)), None)
        name = "global_quant_config" if pattern is None else f"layer_quant_config {pattern}"
        spec = source.table(settings if pattern is None else overrides, pattern or "global_quant_config")
        _is_mxfp4(source, f"{name} weight", spec.get("weight"))
        operand = spec.get("input_tensors")
        left = operand is None or source.float_activations
        return Linear(None if left else _activation(source, f"{name} input_tensors", operand))

    return Layout(
        ".weight", ".weight_scale", linear, ignored=(".output_scale", ".input_scale"), notes=_notes(source)
    )


def _algorithms(configured: Any) -> list[str]:
    found = configured if isinstance(configured, list) else [configured]
    return [str(item.get("name", "")).lower() for item in found if isinstance(item, dict)]


def _is_mxfp4(source: Source, where: str, spec: Any) -> None:
    """Raises MxortError for a tensor that is not E2M1 with an E8M0 scale for each 32 along K."""
    if not isinstance(spec, dict):  # a list: quantised twice
        raise source.refuse(where, spec, "one specification")
    if spec.get("qscheme") == "mx":
        raise source.refuse(f"{where} qscheme", "mx", "'per_group': the older packing is not imported")
    for name, allowed in (
        ("dtype", ("fp4", "mxfp4")),
        ("qscheme", ("per_group",)),
        ("group_size", (BLOCK_SIZE,)),
        ("ch_axis", (-1, 1)),
        ("scale_format", ("e8m0",)),
    ):
        source.expect(where, spec, name, *allowed)
    if spec.get("dtype") is None:
        raise source.refuse(f"{where} dtype", None, "'fp4'")


_FORMATS = {
    "fp4": "mxfp4",
    "mxfp4": "mxfp4",
    "fp6_e2m3": "mxfp6_e2m3",
    "fp6_e3m2": "mxfp6_e3m2",
    "fp8_e4m3": "mxfp8_e4m3",
}


def _activation(source: Source, where: str, spec: Any) -> str:
    if not isinstance(spec, dict):
        raise source.refuse(where, spec, "one specification")
    source.expect(where, spec, "group_size", BLOCK_SIZE)
    source.expect(where, spec, "qscheme", "per_group")
    source.expect(where, spec, "scale_format", "e8m0")
    source.expect(where, spec, "is_dynamic", True)
    dtype = spec.get("dtype")
    if not isinstance(dtype, str) or dtype not in _FORMATS or spec.get("group_size") is None:
        raise source.refuse(f"{where} dtype", dtype, f"{', '.join(_FORMATS)} in groups of {BLOCK_SIZE}")
    return _FORMATS[dtype]


def _notes(source: Source) -> tuple[str, ...]:
    operand = source.table(source.settings, "global_quant_config").get("input_tensors")
    rule = operand.get("scale_calculation_mode") if isinstance(operand, dict) else None
    if rule in (None, "even"):
        return ()
    return (f"activations: the checkpoint's scale rule is {rule!r}, the operator's 'even'",)


def _settings(activation_format: str, floats: tuple[str, ...]) -> dict[str, Any]:
    """quantization_config as Quark 0.13 writes it."""
    words = {name: word for word, name in reversed(_FORMATS.items())}  # the first word of each format
    operand = _tensor(words[activation_format], dynamic=True) if activation_format in words else None
    return {
        "quant_method": "quark",
        "quant_mode": "eager_mode",
        "algo_config": None,
        "global_quant_config": {
            "weight": _tensor("fp4", dynamic=False),
            "input_tensors": operand,
            "output_tensors": None,
            "bias": None,
            "target_device": None,
        },
        "layer_quant_config": {},
        "layer_type_quant_config": {},
        "exclude": list(floats),
        "softmax_quant_spec": None,
        "kv_cache_quant_config": {},
        "kv_cache_post_rope": False,
        "export": {
            "kv_cache_group": [],
            "min_kv_scale": 0.0,
            "pack_method": "reorder",
            "weight_format": "real_quantized",
            "weight_merge_groups": None,
        },
    }


def _tensor(dtype: str, *, dynamic: bool) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "qscheme": "per_group",
        "group_size": BLOCK_SIZE,
        "ch_axis": -1,
        "is_dynamic": dynamic,
        "symmetric": None,
        "round_method": "half_even",
        "scale_type": "float",
        "scale_format": "e8m0",
        "scale_calculation_mode": "even",
        "mx_element_dtype": None,
        "observer_cls": "PerBlockMXObserver",
        "is_scale_quant": False,
    }


FORMAT = Format(
    "AMD Quark",
    ("quark",),
    _layout,
    Export(".weight", ".weight_scale", ("none", *dict.fromkeys(_FORMATS.values())), _settings),
)
