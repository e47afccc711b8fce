"""Tiny checkpoints of the Hugging Face kind, packed here from the formats' own descriptions, and what they compute.

Nothing of mxort is used: codes and scales are drawn at random, put into bytes as each format says, and decoded with a
table for the reference, which is transformers' own model in float32.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import expert_tensors

VOCABULARY = 200
"""The width of no projection: the builder knows the output projection by it."""

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 6},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "phi3": {"original_max_position_embeddings": 256, "sliding_window": 6},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 6},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 6},
    "smollm3": {},
    "granite": {},
    "ernie4_5": {},
    "hunyuan_v1_dense": {"head_dim": 16},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "head_dim": 32,
        "norm_topk_prob": True,
    },
    "gpt_oss": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "head_dim": 16,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}
"""model_type -> what its tiny configuration has beyond the common. Windows are shorter than the texts of tests."""

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


QUANTIZABLE = (torch.nn.Linear, torch.nn.Embedding)


@dataclass(frozen=True)
class Matrix:
    """codes uint8 [..., N, K], 0 to 15; scales uint8 [..., N, K/32]."""

    codes: np.ndarray
    scales: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """float32 [..., N, K]."""
        factors = np.repeat(2.0 ** (self.scales.astype(np.float64) - 127), 32, axis=-1)
        with np.errstate(over="ignore"):  # the largest scales go beyond float
            return (E2M1[self.codes] * factors).astype(np.float32)

    @property
    def bytes(self) -> np.ndarray:
        """uint8 [..., N, K/2], the even k in the low nibble."""
        return self.codes[..., 0::2] | self.codes[..., 1::2] << 4


@dataclass
class Tiny:
    """A checkpoint in ``folder``, and what is in it: ``packed`` by module name, the reference model."""

    folder: Path
    model: Any
    packed: dict[str, Matrix] = field(default_factory=dict)

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """float32 [batch, length, vocabulary] of int64 [batch, length]."""
        with torch.no_grad():
            return self.model(torch.from_numpy(tokens)).logits.numpy()


def random_matrix(rng: np.random.Generator, *shape: int) -> Matrix:
    scales = (*shape[:-1], shape[-1] // 32)
    return Matrix(rng.integers(0, 16, shape, dtype=np.uint8), rng.integers(119, 123, scales, dtype=np.uint8))


def make(
    folder: Path,
    architecture: str = "llama",
    fmt: str = "float",
    *,
    quantize: Callable[[str], bool] = lambda module: "layers." in module,
    quantization: Mapping[str, Any] | None = None,
    shards: int = 1,
    **config: Any,
) -> Tiny:
    """Writes a checkpoint. ``quantization`` changes keys of its quantization_config; ``quantize`` picks linears."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(7)
    torch.manual_seed(7)
    settings = AutoConfig.for_model(architecture, **{**_COMMON, **ARCHITECTURES[architecture], **config})
    model = AutoModelForCausalLM.from_config(settings).float().eval()
    tiny = Tiny(folder, model)
    state: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.from_numpy(rng.standard_normal(tuple(parameter.shape)).astype(np.float32))
            parameter.add_(noise * (0.2 if parameter.ndim == 1 else 0.02))
            parameter.copy_(parameter.bfloat16().float())
            state[name] = parameter.bfloat16()
        for name, module in model.named_modules():
            if fmt not in ("float", "gpt-oss") and isinstance(module, QUANTIZABLE) and quantize(name):
                matrix = random_matrix(rng, *module.weight.shape)
                module.weight.copy_(torch.from_numpy(matrix.values))
                tiny.packed[name] = matrix
                state.pop(f"{name}.weight", None)  # a tied one is there once
            elif name.endswith(".experts"):
                expert_tensors.write(architecture, name, module, state, tiny.packed, rng, fmt, quantize)
        state = {expert_tensors.renamed(architecture, name): tensor for name, tensor in state.items()}
    pack = expert_tensors.gpt_oss if fmt == "gpt-oss" else FORMATS[fmt]  # of experts alone
    config_json = settings.to_dict() | {"architectures": [type(model).__name__], "dtype": "bfloat16"}
    extra, described = pack(tiny.packed)
    if described is not None:
        config_json["quantization_config"] = described | dict(quantization or {})
    (folder / "config.json").write_text(json.dumps(config_json))
    save_tensors(folder, state | extra, shards)
    write_tokenizer(folder)
    return tiny


def save_tensors(folder: Path, tensors: dict[str, torch.Tensor], shards: int = 1) -> None:
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in sorted(tensors.items())}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(tensors.items())[shard::shards])
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )


def write_tokenizer(folder: Path) -> None:
    """A byte pair tokenizer without merges, of the kind that onnxruntime-genai reads: a token for each letter."""
    special = ["<pad>", "<s>", "</s>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[: VOCABULARY - len(special)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(special + letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)


Tensors = dict[str, torch.Tensor]
Packed = Mapping[str, Matrix]


def _pairs(packed: Packed, codes: str, scales: str) -> Tensors:
    tensors = {}
    for name, matrix in packed.items():
        tensors[name + codes] = torch.from_numpy(matrix.bytes)
        tensors[name + scales] = torch.from_numpy(matrix.scales)
    return tensors


def _float(packed: Packed) -> tuple[Tensors, None]:
    return {}, None


def _quark(packed: Packed) -> tuple[Tensors, dict[str, Any]]:
    weight = {
        "dtype": "fp4",
        "qscheme": "per_group",
        "group_size": 32,
        "ch_axis": -1,
        "scale_format": "e8m0",
        "scale_calculation_mode": "even",
        "round_method": "half_even",
        "is_dynamic": False,
        "symmetric": None,
    }
    return _pairs(packed, ".weight", ".weight_scale"), {
        "quant_method": "quark",
        "quant_mode": "eager_mode",
        "algo_config": None,
        "global_quant_config": {
            "weight": weight,
            "input_tensors": None,
            "output_tensors": None,
            "bias": None,
        },
        "layer_quant_config": {},
        "layer_type_quant_config": {},
        "exclude": ["lm_head"],
        "export": {"weight_format": "real_quantized", "pack_method": "reorder", "kv_cache_group": []},
    }


def _quark_w4a4(packed: Packed) -> tuple[Tensors, dict[str, Any]]:
    tensors, config = _quark(packed)
    spec = config["global_quant_config"]
    spec["input_tensors"] = spec["weight"] | {"is_dynamic": True}
    return tensors, config


def _compressed_tensors(packed: Packed) -> tuple[Tensors, dict[str, Any]]:
    weights = {
        "num_bits": 4,
        "type": "float",
        "strategy": "group",
        "group_size": 32,
        "symmetric": True,
        "dynamic": False,
        "actorder": None,
        "scale_dtype": "torch.uint8",
    }
    group = {
        "format": "mxfp4-pack-quantized",
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
    }
    return _pairs(packed, ".weight_packed", ".weight_scale"), {
        "quant_method": "compressed-tensors",
        "format": "mxfp4-pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "sparsity_config": {},
        "transform_config": {},
    }


def _compressed_tensors_w4a4(packed: Packed) -> tuple[Tensors, dict[str, Any]]:
    tensors, config = _compressed_tensors(packed)
    group = config["config_groups"]["group_0"]
    group["input_activations"] = group["weights"] | {"dynamic": True}
    return tensors, config


def _modelopt(packed: Packed) -> tuple[Tensors, dict[str, Any]]:
    return _pairs(packed, ".weight", ".weight_scale"), {
        "quant_method": "modelopt",
        "quant_algo": "mxfp4",
        "group_size": 32,
        "exclude_modules": ["lm_head"],
    }


def _auto_round(packed: Packed) -> tuple[Tensors, dict[str, Any]]:
    return _pairs(packed, ".weight_packed", ".weight_scale"), {
        "quant_method": "auto-round",
        "packing_format": "auto_round:llm_compressor",
        "bits": 4,
        "data_type": "mx_fp",
        "group_size": 32,
        "sym": True,
        "act_bits": 16,
        "extra_config": {},
        "block_name_to_quantize": "model.layers",
    }


FORMATS: dict[str, Callable[[Packed], tuple[Tensors, dict[str, Any] | None]]] = {
    "float": _float,
    "quark": _quark,
    "quark-w4a4": _quark_w4a4,
    "compressed-tensors": _compressed_tensors,
    "compressed-tensors-w4a4": _compressed_tensors_w4a4,
    "modelopt": _modelopt,
    "auto-round": _auto_round,
}
"""Name -> what puts matrices into the format's tensors and describes them."""

OF_MATRICES = tuple(name for name in FORMATS if name not in ("float", "gpt-oss"))
"""Those with codes and scales of any linear layer; gpt-oss has them of experts alone."""
