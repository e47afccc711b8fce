"""Architectures of GGUF files: what their metadata say in the words of config.json, what their tensors are called."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mxort.errors import MxortError
from mxort.models.gguf_tensors import GgufFile

_ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_DENSE = {
    **_ATTENTION,
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_MERGED = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
_NORMED = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_GEMMA = {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_MIXTRAL = {**_ATTENTION, "ffn_norm": "post_attention_layernorm", "ffn_gate_inp": "block_sparse_moe.gate"}
_QWEN3_MOE = {**_ATTENTION, **_NORMED, "ffn_norm": "post_attention_layernorm", "ffn_gate_inp": "mlp.gate"}
_SINKS = "self_attn.sinks"
_GPT_OSS = {
    **_ATTENTION,
    "attn_sinks": _SINKS,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.router",
}
_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

ROPE_FREQUENCIES = "rope_freqs.weight"
"""Llama 3's scaling of positions: float32 [head_dim/2], by what each frequency is divided."""

_BLOCK = re.compile(r"blk\.(\d{1,4})\.(\w+)\.(weight|bias)")
_LLAMA3_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Architecture:
    """A row of the table: ``layer`` has the tensors of a block by the file's names.

    ``alternating``: rows of queries and keys alternate by halves in the file. ``norm_offset``: what norms have added.
    ``scaling``: of positions. ``config``: what the metadata say beyond the common, in config.json's words.
    """

    model_type: str
    layer: Mapping[str, str]
    alternating: bool = False
    norm_offset: float = 0.0
    scaling: str = "none"
    config: Callable[[GgufFile, Mapping[str, Any]], dict[str, Any]] = field(default=lambda file, config: {})


def name_of(architecture: Architecture, stored: str) -> str | None:
    """The model's name of a tensor of the file; None for one that the architecture does not have."""
    whole, _, kind = stored.rpartition(".")
    if whole in _WHOLE and kind == "weight":
        return f"{_WHOLE[whole]}.weight"
    match = _BLOCK.fullmatch(stored)
    if match is None or match[2] not in architecture.layer:
        return None
    inner = architecture.layer[match[2]]
    return f"model.layers.{int(match[1])}.{inner}" + ("" if inner == _SINKS else f".{match[3]}")


def find(file: GgufFile) -> Architecture:
    """The file's row. Raises MxortError where there is none."""
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise MxortError(f"{file.path}: general.architecture: got {name!r}, expected one of {known}")
    row, experts = ARCHITECTURES[name], experts_of(file)
    if experts and row.model_type not in _WITH_EXPERTS:
        if name not in _MORE_WITH_EXPERTS:
            raise MxortError(f"{file.path}: {name}.expert_count: got {experts}, expected none")
        return _MORE_WITH_EXPERTS[name]
    return row


def experts_of(file: GgufFile) -> int:
    """How many experts a layer has, 0 where it has none."""
    return _number(file, f"{file.metadata['general.architecture']}.expert_count", 0, least=0)


_COMMON = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
}
_LIMIT = 1 << 24


def configuration(file: GgufFile, architecture: Architecture) -> dict[str, Any]:
    """What config.json would say. Raises MxortError for what is missing, or says what the table has no word for."""
    name = file.metadata["general.architecture"]
    found: dict[str, Any] = {key: _number(file, f"{name}.{stored}") for key, stored in _COMMON.items()}
    heads, hidden = found["num_attention_heads"], found["hidden_size"]
    found |= {
        "num_key_value_heads": _number(file, f"{name}.attention.head_count_kv", heads),
        "head_dim": _number(file, f"{name}.attention.key_length", hidden // heads),
        "rms_norm_eps": _real(file, f"{name}.attention.layer_norm_rms_epsilon"),
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_theta": _real(file, f"{name}.rope.freq_base", 10000.0),
    }
    for token, stored in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        key = f"tokenizer.ggml.{stored}_token_id"
        found[f"{token}_token_id"] = _number(file, key, least=0) if key in file.metadata else None
    if found["num_hidden_layers"] > len(file.tensors):
        raise MxortError(f"{file.path}: {name}.block_count: got more blocks than there are tensors")
    scaling = file.metadata.get(f"{name}.rope.scaling.type", "none")
    if scaling != architecture.scaling:
        raise MxortError(
            f"{file.path}: {name}.rope.scaling.type: got {_short(scaling)}, expected {architecture.scaling!r}"
        )
    rotated = _number(file, f"{name}.rope.dimension_count", found["head_dim"])
    if rotated != found["head_dim"]:
        raise MxortError(
            f"{file.path}: {name}.rope.dimension_count: got {rotated}, expected {found['head_dim']}"
        )
    return found | architecture.config(file, found)


def _number(file: GgufFile, key: str, default: int | None = None, least: int = 1) -> int:
    value = file.metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _LIMIT:
        raise MxortError(
            f"{file.path}: {key}: got {_short(value)}, expected a number from {least} to {_LIMIT}"
        )
    return value


def _real(file: GgufFile, key: str, default: float | None = None) -> float:
    value = file.metadata.get(key, default)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or value <= 0
    ):
        raise MxortError(f"{file.path}: {key}: got {_short(value)}, expected a positive number")
    return float(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def _llama(file: GgufFile, config: Mapping[str, Any]) -> dict[str, Any]:
    if window := file.metadata.get("llama.attention.sliding_window"):
        raise MxortError(f"{file.path}: llama.attention.sliding_window: got {_short(window)}, expected none")
    found: dict[str, Any] = {"attention_bias": "blk.0.attn_q.bias" in file.tensors}
    if ROPE_FREQUENCIES in file.tensors:
        found["rope_parameters"] = _llama3(file, config)
    return found


def _llama3(file: GgufFile, config: Mapping[str, Any]) -> dict[str, Any]:
    """Llama 3's rope_parameters, of which the file has only what they make. Raises MxortError for others."""
    tensor = file.tensors[ROPE_FREQUENCIES]
    factors = np.asarray(tensor.array(), np.float64).reshape(-1)
    half = int(config["head_dim"]) // 2
    if len(factors) != half or not np.isfinite(factors).all() or not (factors >= 1).all():
        raise MxortError(
            f"{tensor.label} has the shape {list(tensor.shape)}, expected {half} factors of 1 or more"
        )
    factor, low, high, length = float(factors.max()), 1.0, 4.0, 8192
    wavelength = 2 * np.pi * config["rope_theta"] ** (np.arange(half) / half)
    blend = np.clip((length / wavelength - low) / (high - low), 0, 1)
    expected = 1 / ((1 - blend) / factor + blend)
    if np.abs(factors / expected - 1).max() > _LLAMA3_TOLERANCE:
        raise MxortError(f"{tensor.label} scales positions otherwise than Llama 3 (from {length} on)")
    return {
        "rope_type": "llama3",
        "rope_theta": config["rope_theta"],
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": length,
    }


_LARGEST = {"gemma2": 46, "gemma3": 62}
"""Layers of the 27B sizes, whose attention is scaled by the width over the heads; llama.cpp tells them by that too."""


def _windowed_gemma(file: GgufFile, config: Mapping[str, Any]) -> dict[str, Any]:
    """Gemma 2 and 3: some layers have a window; which, the architecture says."""
    name = file.metadata["general.architecture"]
    largest = config["num_hidden_layers"] == _LARGEST[name]
    per_head = int(config["hidden_size"]) // int(config["num_attention_heads"])
    found: dict[str, Any] = {
        "sliding_window": _number(file, f"{name}.attention.sliding_window"),
        "query_pre_attn_scalar": per_head if largest else config["head_dim"],
    }
    if name == "gemma2":
        for part in ("attn", "final"):
            found[f"{part}_logit_softcapping"] = _real(file, f"{name}.{part}_logit_softcapping")
    return found


def _phi3(file: GgufFile, config: Mapping[str, Any]) -> dict[str, Any]:
    window = _number(file, "phi3.attention.sliding_window", 0, least=0)
    return {
        "sliding_window": window or None,
        "original_max_position_embeddings": config["max_position_embeddings"],
    }


_ROUTING = {
    "expert_shared_count": (0,),
    "expert_group_count": (0, 1),
    "expert_weights_scale": (0, 1),
    "expert_weights_norm": (True,),
    "expert_gating_func": (0, 1),
}
"""Keys that change what experts compute -> values that mean: softmax, the chosen weighted to a sum of 1."""


def _experts(file: GgufFile, count: str) -> dict[str, Any]:
    """How many experts there are, by config.json's key ``count``, and how many a row gets."""
    name = file.metadata["general.architecture"]
    for key, allowed in _ROUTING.items():
        value = file.metadata.get(f"{name}.{key}", allowed[0])
        if value not in allowed:
            raise MxortError(f"{file.path}: {name}.{key}: got {_short(value)}, expected {allowed[-1]}")
    return {
        count: _number(file, f"{name}.expert_count"),
        "num_experts_per_tok": _number(file, f"{name}.expert_used_count"),
    }


def _mixtral(file: GgufFile, config: Mapping[str, Any]) -> dict[str, Any]:
    if window := file.metadata.get("llama.attention.sliding_window"):
        raise MxortError(f"{file.path}: llama.attention.sliding_window: got {_short(window)}, expected none")
    return _experts(file, "num_local_experts")


def _qwen3_moe(file: GgufFile, config: Mapping[str, Any]) -> dict[str, Any]:
    width = _number(file, "qwen3moe.expert_feed_forward_length")
    return {**_experts(file, "num_experts"), "moe_intermediate_size": width, "norm_topk_prob": True}


def _gpt_oss(file: GgufFile, config: Mapping[str, Any]) -> dict[str, Any]:
    """The truncation of positions is no word of the files; the model has none."""
    scaling = "gpt-oss.rope.scaling"
    width = _number(file, "gpt-oss.expert_feed_forward_length", config["intermediate_size"])
    return {
        **_experts(file, "num_local_experts"),
        "intermediate_size": width,
        "sliding_window": _number(file, "gpt-oss.attention.sliding_window"),
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": config["rope_theta"],
            "factor": _real(file, f"{scaling}.factor"),
            "beta_fast": _real(file, f"{scaling}.yarn_beta_fast", 32.0),
            "beta_slow": _real(file, f"{scaling}.yarn_beta_slow", 1.0),
            "truncate": False,
            "original_max_position_embeddings": _number(file, f"{scaling}.original_context_length"),
        },
    }


_WITH_EXPERTS = frozenset({"mixtral", "qwen3_moe", "gpt_oss"})
_MORE_WITH_EXPERTS = {"llama": Architecture("mixtral", _MIXTRAL, alternating=True, config=_mixtral)}
"""general.architecture -> its row where it has experts."""

ARCHITECTURES = {
    "llama": Architecture("llama", _DENSE, alternating=True, config=_llama),
    "qwen2": Architecture("qwen2", _DENSE),
    "qwen3": Architecture("qwen3", _DENSE | _NORMED),
    "qwen3moe": Architecture("qwen3_moe", _QWEN3_MOE, config=_qwen3_moe),
    "gpt-oss": Architecture("gpt_oss", _GPT_OSS, scaling="yarn", config=_gpt_oss),
    "phi3": Architecture("phi3", _MERGED, config=_phi3),
    "gemma2": Architecture("gemma2", _DENSE | _GEMMA, norm_offset=1.0, config=_windowed_gemma),
    "gemma3": Architecture("gemma3_text", _DENSE | _NORMED | _GEMMA, norm_offset=1.0, config=_windowed_gemma),
}
"""general.architecture -> its row. transformers makes the tokenizer: what it knows none for cannot be here."""
