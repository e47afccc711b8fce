"""Tiny GGUF files, with the names, the order of rows and the blocks of llama.cpp's converter written down here anew.

The numbers are those of a tiny checkpoint (:mod:`checkpoints`), whose model is the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType, TokenType, quants
from tokenizers import pre_tokenizers

import checkpoints
import expert_tensors

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.router": "ffn_gate_inp",
    "self_attn": "attn_sinks",
}
ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "phi3": "phi3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "mixtral": "llama",
    "qwen3_moe": "qwen3moe",
    "gpt_oss": "gpt-oss",
}
"""model_type -> general.architecture."""


def mxfp4_blocks(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """uint8 [N, K/32 * 17] of codes [N, K] and scales [N, K/32]: a scale, then byte j of elements j and j + 16."""
    n, k = codes.shape
    halves = codes.reshape(n, k // 32, 2, 16)
    blocks = np.concatenate([scales[..., None], halves[:, :, 0] | halves[:, :, 1] << 4], axis=-1)
    return np.ascontiguousarray(blocks.astype(np.uint8)).reshape(n, -1)


def interleave(array: np.ndarray, heads: int) -> np.ndarray:
    """A head's rows r and r + d/2 beside each other, as llama.cpp's converter has them for Llama."""
    n = array.shape[0]
    order = [head * (n // heads) + half * (n // heads // 2) + row
             for head in range(heads) for row in range(n // heads // 2) for half in (0, 1)]  # fmt: skip
    return array[order]


def stored_name(name: str, architecture: str) -> str:
    module, _, kind = name.rpartition(".")
    kind = "weight" if kind == "sinks" else kind
    if module in NAMES:
        return f"{NAMES[module]}.{kind}"
    _, _, layer, inner = module.split(".", 3)
    if inner == "post_attention_layernorm":
        own = architecture in ("gemma2", "gemma3_text", "gpt_oss")
        short = "post_attention_norm" if own else "ffn_norm"
    else:
        gemma = {"pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm"}
        short = (NAMES | gemma)[inner]
    return f"blk.{layer}.{short}.{kind}"


def make(
    path: Path,
    architecture: str = "llama",
    kind: str = "MXFP4",
    *,
    change: Callable[[GGUFWriter], None] = lambda writer: None,
    quantize: Callable[[str], bool] = lambda module: "layers." in module,
    **config: Any,
) -> checkpoints.Tiny:
    """Writes a GGUF file whose linears that ``quantize`` picks are of ``kind``; the model has what they come to."""
    of_experts = "gpt-oss" if architecture == "gpt_oss" else "quark"  # of the experts alone
    fmt = of_experts if kind == "MXFP4" else "float"
    tiny = checkpoints.make(path.with_suffix(".hf"), architecture, fmt, quantize=quantize, **config)
    settings = tiny.model.config
    writer = GGUFWriter(path, ARCHITECTURES[architecture])
    _metadata(writer, settings)
    change(writer)
    heads = {"q_proj": settings.num_attention_heads, "k_proj": settings.num_key_value_heads}
    for name, parameter in tiny.model.named_parameters():
        module = name.rpartition(".")[0]
        if ".experts." in name:
            _add_experts(writer, name, parameter, architecture, tiny.packed, kind)
            continue
        order = heads.get(module.rpartition(".")[2], 0) if architecture in ("llama", "mixtral") else 0
        stored = stored_name(name, architecture)
        if module in tiny.packed and name.endswith(".weight"):
            matrix = tiny.packed[module]
            codes, scales = (interleave(a, order) if order else a for a in (matrix.codes, matrix.scales))
            writer.add_tensor(stored, mxfp4_blocks(codes, scales), raw_dtype=GGMLQuantizationType.MXFP4)
            continue
        numbers = parameter.detach().numpy().astype(np.float32)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            numbers = numbers + 1
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(numbers - 1))
        numbers = interleave(numbers, order) if order else numbers
        if numbers.ndim == 1 or kind == "MXFP4" or not quantize(module):
            writer.add_tensor(stored, np.ascontiguousarray(numbers))
            continue
        blocks, back = encode(numbers, kind)
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(deinterleave(back, order))))
        writer.add_tensor(stored, blocks, raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tiny


def _add_experts(
    writer: GGUFWriter, name: str, parameter: torch.nn.Parameter, architecture: str, packed: Any, kind: str
) -> None:
    """Stacks [E, N, K] of gate, up and down, of transformers' parameter; its numbers become what is written."""
    layer, stack = name.split(".")[2], name.rpartition(".")[2]
    turns = architecture == "gpt_oss"
    parts = ("gate", "up") if stack.startswith("gate_up") else ("down",)
    for at, part in enumerate(parts):
        stored = f"blk.{layer}.ffn_{part}_exps." + ("bias" if stack.endswith("_bias") else "weight")
        with torch.no_grad():
            numbers = parameter.detach()
            numbers = numbers.transpose(1, 2) if turns and numbers.ndim == 3 else numbers
            count = len(parts)
            rows = numbers[:, at::count] if turns else numbers.chunk(count, dim=1)[at]
            if stack.endswith("_bias"):
                writer.add_tensor(stored, np.ascontiguousarray(rows.numpy()))
            elif kind == "MXFP4":
                matrices = expert_tensors.of_stack(architecture, name, packed, len(numbers))
                blocks = [mxfp4_blocks(*(a[at::count] if turns else np.split(a, count)[at] for a in m))
                          for m in matrices]  # fmt: skip
                writer.add_tensor(stored, np.stack(blocks), raw_dtype=GGMLQuantizationType.MXFP4)
            else:
                flat = np.ascontiguousarray(rows.numpy()).reshape(-1, rows.shape[-1])
                blocks, back = encode(flat, kind)
                rows.copy_(torch.from_numpy(back).reshape(rows.shape))
                raw = np.asarray(blocks).reshape(*rows.shape[:2], -1)
                writer.add_tensor(stored, raw, raw_dtype=GGMLQuantizationType[kind])


def deinterleave(array: np.ndarray, heads: int) -> np.ndarray:
    if not heads:
        return array
    order = interleave(np.arange(len(array)), heads)
    result = np.empty_like(array)
    result[order] = array
    return result


def encode(numbers: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """(the bytes of a type, the numbers that they mean). K-quants, which the library only reads, are drawn."""
    qtype = GGMLQuantizationType[kind]
    if kind in ("Q4_K", "Q6_K"):
        rng = np.random.default_rng(len(numbers))
        size, scale_at = {"Q4_K": (144, 0), "Q6_K": (210, 208)}[kind]
        blocks = rng.integers(0, 256, (len(numbers), numbers.shape[1] // 256, size), dtype=np.uint8)
        halves = (2,) if kind == "Q6_K" else (2, 2)  # the float16 of the block, and Q4_K's of its minima
        for index, _ in enumerate(halves):
            small = np.full(blocks.shape[:2], 2e-5, np.float16)
            blocks[..., scale_at + 2 * index : scale_at + 2 * index + 2] = small[..., None].view(np.uint8)
        stored = blocks.reshape(len(numbers), -1)
    else:
        stored = quants.quantize(numbers, qtype)
    return stored, quants.dequantize(stored, qtype).astype(np.float32)


def _metadata(writer: GGUFWriter, settings: Any) -> None:
    writer.add_context_length(settings.max_position_embeddings)
    writer.add_embedding_length(settings.hidden_size)
    writer.add_block_count(settings.num_hidden_layers)
    writer.add_feed_forward_length(settings.intermediate_size)
    writer.add_head_count(settings.num_attention_heads)
    writer.add_head_count_kv(settings.num_key_value_heads)
    head_dim = getattr(settings, "head_dim", None)
    writer.add_key_length(head_dim or settings.hidden_size // settings.num_attention_heads)
    writer.add_layer_norm_rms_eps(settings.rms_norm_eps)
    rope = settings.rope_parameters
    writer.add_rope_freq_base((rope.get("full_attention") or rope)["rope_theta"])
    if settings.model_type in ("mixtral", "qwen3_moe", "gpt_oss"):
        writer.add_expert_count(settings.num_local_experts)
        writer.add_expert_used_count(settings.num_experts_per_tok)
        width = getattr(settings, "moe_intermediate_size", settings.intermediate_size)
        writer.add_expert_feed_forward_length(width)
    if settings.model_type == "gpt_oss":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if settings.model_type in ("gemma2", "gemma3_text", "phi3", "gpt_oss"):
        writer.add_sliding_window(settings.sliding_window)
    if settings.model_type == "gemma2":
        writer.add_attn_logit_softcapping(settings.attn_logit_softcapping)
        writer.add_final_logit_softcapping(settings.final_logit_softcapping)
    special = ["<pad>", "<s>", "</s>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[: checkpoints.VOCABULARY - len(special) - 1]
    tokens = [*special, *letters, "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * len(special) + [TokenType.NORMAL] * (len(letters) + 1))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
