"""gpt-oss: experts in tensors of their own, [E, N, K/32, 16] codes; everything else bfloat16."""

from __future__ import annotations

from typing import Any

from mxort.models.formats.base import Export, Format, Layout, Source


def _layout(source: Source) -> Layout:
    return Layout("_blocks", "_scales", blocks=True)


def _settings(activation_format: str, floats: tuple[str, ...]) -> dict[str, Any]:
    """quantization_config of gpt-oss-20b and 120b, whose readers take it as it is."""
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    return {"quant_method": "mxfp4", "modules_to_not_convert": kept}


FORMAT = Format(
    "gpt-oss", ("mxfp4",), _layout, Export("_blocks", "_scales", ("none",), _settings, stacks=True)
)
