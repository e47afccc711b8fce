"""Tiny transformers with random weights as torch exports them, and what they compute in double."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

BATCH, LENGTH, PAST, VOCABULARY = 2, 5, 3, 97

_SPREAD = 0.15
"""Of the weights: with transformers' 0.02 all scores would be alike, and a wrong rotation or mask hardly to be seen."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Exported:
    """A file, arrays to feed it with (float32 ones for a bfloat16 model), and its module."""

    path: Path
    feeds: Arrays
    module: torch.nn.Module

    def run(self, dtype: torch.dtype) -> list[NDArray[np.float64]]:
        """The outputs for the feeds, computed by torch in ``dtype`` with the weights of the file."""
        own = next(self.module.parameters()).dtype
        module = self.module.to(dtype)
        with torch.no_grad():
            out = module(*[_to(dtype, _to(own, torch.from_numpy(x))) for x in self.feeds.values()])
        self.module.to(own)
        return [t.double().numpy() for t in (out if isinstance(out, tuple) else (out,))]


class Bfloat16(torch.nn.Module):
    """A module in bfloat16 for callers who have no such arrays: float32 goes in and comes out."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any) -> Any:
        out = self.module(*[_to(torch.bfloat16, t) for t in inputs])
        return tuple(t.float() for t in out) if isinstance(out, tuple) else out.float()


class Decoder(torch.nn.Module):
    """A causal language model with its cache as flat tensors: logits, and the caches of each layer."""

    def __init__(self, model: Any, cached: bool) -> None:
        super().__init__()
        self.model, self.cached = model, cached

    def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any, *past: Any) -> Any:
        cache = transformers.DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache if self.cached else None,
            use_cache=self.cached,
        )
        if not self.cached:
            return out.logits
        return (out.logits, *(t for layer in out.past_key_values.layers for t in (layer.keys, layer.values)))


class Pixels(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Any) -> Any:
        return self.model(pixel_values=pixel_values).last_hidden_state


class Pair(torch.nn.Module):
    """An encoder and its decoder."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, attention_mask: Any, decoder_input_ids: Any) -> Any:
        return self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            use_cache=False,
        ).logits


def llama(
    path: Path,
    *,
    cached: bool = False,
    dtype: torch.dtype = torch.float32,
    dynamo: bool = True,
    **settings: Any,
) -> Exported:
    """Two layers, two query heads for each of keys; the second row of the batch is not to see its second token."""
    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    small |= {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 128,
    }
    config = transformers.LlamaConfig(**(small | {"initializer_range": _SPREAD} | settings))
    model = _module(transformers.LlamaForCausalLM, config, dtype)
    past = PAST if cached else 0
    mask = np.ones((BATCH, past + LENGTH), np.int64)
    mask[1, 1] = 0
    feeds = {
        "input_ids": _tokens(LENGTH),
        "attention_mask": mask,
        "position_ids": np.maximum(np.cumsum(mask, 1) - 1, 0)[:, past:],
    }
    axes: dict[str, dict[int, str]] = {
        "input_ids": {0: "batch", 1: "sequence"},
        "attention_mask": {0: "batch", 1: "total"},
        "position_ids": {0: "batch", 1: "sequence"},
    }
    rng = np.random.default_rng(2)
    outputs = ["logits"]
    for layer in range(config.num_hidden_layers if cached else 0):
        for kind in ("key", "value"):
            shape = (BATCH, config.num_key_value_heads, past, config.head_dim)
            feeds[f"past.{layer}.{kind}"] = rng.standard_normal(shape).astype(_numpy(dtype))
            axes[f"past.{layer}.{kind}"] = {0: "batch", 2: "past"}
            outputs.append(f"present.{layer}.{kind}")
    return _export(path, Decoder(model, cached), feeds, axes, outputs, dynamo)


def vit(path: Path, *, dtype: torch.dtype = torch.float32, fixed: bool = False) -> Exported:
    """Patches of 8 x 8 pixels, a class token, two layers; ``fixed``: for this batch only."""
    config = transformers.ViTConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8,
        initializer_range=_SPREAD,
    )  # fmt: skip
    model = _module(transformers.ViTModel, config, dtype)
    pixels = np.random.default_rng(3).standard_normal((BATCH, 3, 32, 32)).astype(_numpy(dtype))
    axes: dict[str, dict[int, str]] = {"pixel_values": {} if fixed else {0: "batch"}}
    return _export(path, Pixels(model), {"pixel_values": pixels}, axes, ["hidden"], dynamo=True)


def t5(path: Path, *, dtype: torch.dtype = torch.float32, dynamo: bool = True) -> Exported:
    """Relative positions, cross attention, RMS norms without rotation; the second row is padded on the right."""
    config = transformers.T5Config(
        d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, vocab_size=VOCABULARY, feed_forward_proj="gated-gelu",
        initializer_factor=1.0, decoder_start_token_id=0,
    )  # fmt: skip
    config._attn_implementation = "eager"
    model = _module(transformers.T5ForConditionalGeneration, config, dtype)
    mask = np.ones((BATCH, LENGTH), np.int64)
    mask[1, -2:] = 0
    feeds = {"input_ids": _tokens(LENGTH), "attention_mask": mask, "decoder_input_ids": _tokens(PAST)}
    axes = {name: {0: "batch", 1: "target" if "decoder" in name else "source"} for name in feeds}
    return _export(path, Pair(model), feeds, axes, ["logits"], dynamo)


MODELS: Mapping[str, Callable[..., Exported]] = {"llama": llama, "vit": vit, "t5": t5}


def _numpy(dtype: torch.dtype) -> type:
    return np.float16 if dtype == torch.float16 else np.float32


def _tokens(length: int) -> NDArray[np.int64]:
    return np.random.default_rng(length).integers(1, VOCABULARY, (BATCH, length))


def _module(kind: Any, config: Any, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    return kind(config).to(dtype).eval()


def _to(dtype: torch.dtype, tensor: Any) -> Any:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _export(
    path: Path,
    module: torch.nn.Module,
    feeds: Arrays,
    axes: dict[str, dict[int, str]],
    outputs: list[str],
    dynamo: bool,
) -> Exported:
    module.eval()
    inputs = tuple(torch.from_numpy(x) for x in feeds.values())
    names: dict[str, Any] = {"input_names": list(feeds), "output_names": outputs, "verbose": False}
    low = next(module.parameters()).dtype == torch.bfloat16
    whole = Bfloat16(module).eval() if low else module
    if dynamo:
        shapes = [dict.fromkeys(axes[name], torch.export.Dim.DYNAMIC) for name in feeds]
        variadic = len(shapes) if low else sum(name.startswith("past.") for name in feeds)
        first = len(shapes) - variadic
        dims = (*shapes[:first], *([tuple(shapes[first:])] if variadic else []))
        torch.onnx.export(whole, inputs, path, dynamo=True, dynamic_shapes=dims, **names)
    else:
        torch.onnx.export(whole, inputs, path, dynamo=False, opset_version=17, dynamic_axes=axes, **names)
    return Exported(path, feeds, module)
