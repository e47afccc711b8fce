"""What onnxruntime-genai's builder (0.18) reads out of a configuration otherwise than transformers (5) means it.

Found by comparing logits with transformers' (tests/models): each would give a graph that is silently wrong, or none.
A step goes when the builder has learnt it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mxort.errors import MxortError
from mxort.models import experts
from mxort.models.checkpoint import Checkpoint

COMPARED = frozenset(
    {
        "Ernie4_5ForCausalLM",
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
        "GemmaForCausalLM",
        "GptOssForCausalLM",
        "GraniteForCausalLM",
        "HunYuanDenseV1ForCausalLM",
        "Lfm2ForCausalLM",
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "MixtralForCausalLM",
        "Phi3ForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "Qwen3MoeForCausalLM",
        "SmolLM3ForCausalLM",
    }
)
"""Architectures whose logits agree with transformers' to float rounding (tests/models/test_architectures.py)."""

_DIFFERENT = ("NemotronForCausalLM", "OlmoForCausalLM", "PhiForCausalLM")
"""Those whose logits do not: 1e-2, 3e-1 and 1e-3 of them is wrong in the builder's own float graph."""

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")

_LIMITS = {"max_position_embeddings": 1 << 24, "head_dim": 1 << 14}
"""What the builder makes tables of that no weight of the checkpoint holds it to."""

_LLAMA_ROPE = ("default", "llama3")


def prepare(config: Any, file: Path) -> None:
    """Changes the transformers configuration of ``file`` so that the builder sees what is meant.

    Raises MxortError for what cannot be said to it.
    """
    for step in (_rope_by_layer, _llama_rope, _window_everywhere):
        step(config, file)


def check(checkpoint: Checkpoint) -> Iterator[str]:
    """Warnings about the architecture. Raises MxortError for one that cannot be imported, or would be wrong."""
    file, name = checkpoint.settings, checkpoint.architecture
    inner = checkpoint.config.get("text_config")
    for config in (checkpoint.config, inner if isinstance(inner, Mapping) else {}):
        for key in _EXPERTS:
            if isinstance(count := config.get(key), int) and count > 1:
                experts.check(checkpoint, config, key, count)
    limits = {"num_hidden_layers": len(checkpoint.floats) + len(checkpoint.packed), **_LIMITS}
    for key, most in limits.items():
        value = checkpoint.config.get(key)
        if value is not None and (not isinstance(value, int) or not 0 < value <= most):
            raise MxortError(f"{file}: {key}: got {value!r}, expected a number from 1 to {most}")
    if name in _DIFFERENT:
        raise MxortError(f"{file}: architecture {name}: the model builder's graph computes something else")
    if name not in COMPARED:
        yield f"architecture {name}: never compared with transformers"


def _rope_by_layer(config: Any, file: Path) -> None:
    """Gemma 3: transformers has an entry for each kind of layer, the builder one and rope_local_base_freq."""
    parameters = getattr(config, "rope_parameters", None) or {}
    local, everywhere = parameters.get("sliding_attention"), parameters.get("full_attention")
    if not isinstance(local, dict) or not isinstance(everywhere, dict):
        return
    if (local["rope_type"], everywhere["rope_type"]) != ("default", "default"):
        raise MxortError(f"{file}: rope_parameters: got {parameters!r}, expected the rope_type 'default'")
    config.rope_parameters = dict(everywhere)
    config.rope_local_base_freq = local["rope_theta"]


def _llama_rope(config: Any, file: Path) -> None:
    """Llama: the builder takes every scaling but llama3's for none."""
    kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if config.model_type == "llama" and kind not in _LLAMA_ROPE:
        raise MxortError(f"{file}: rope_type: got {kind!r}, expected {' or '.join(_LLAMA_ROPE)} for a Llama")


def _window_everywhere(config: Any, file: Path) -> None:
    """Mistral and Phi-3: a window without layer_types is every layer's, the builder takes it for none's."""
    if getattr(config, "sliding_window", None) and getattr(config, "layer_types", None) is None:
        config.layer_types = ["sliding_attention"] * config.num_hidden_layers
