"""The experts of tiny checkpoints (checkpoints.py), under the names and in the layouts that checkpoints have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

PARTS = {
    "mixtral": {"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)},
    "qwen3_moe": {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)},
}
"""An expert's linears in a checkpoint, by the stack of transformers' model that has their rows below each other."""


def renamed(architecture: str, name: str) -> str:
    return name.replace(".mlp.", ".block_sparse_moe.") if architecture == "mixtral" else name


def write(
    architecture: str,
    name: str,
    module: Any,
    state: dict[str, torch.Tensor],
    packed: dict[str, Any],
    rng: np.random.Generator,
    fmt: str,
    quantize: Callable[[str], bool],
) -> None:
    """Moves the experts of transformers' ``module`` from the ``state`` to tensors as checkpoints have them.

    Where ``fmt`` has them in MXFP4 they become random, in the model as in ``packed``.
    """
    from checkpoints import random_matrix

    for stack in ("gate_up_proj", "down_proj"):
        parameter = getattr(module, stack)
        if architecture == "gpt_oss":
            if fmt == "gpt-oss":
                e, k, n = parameter.shape
                packed[f"{name}.{stack}"] = matrix = random_matrix(rng, e, n, k)
                parameter.copy_(torch.from_numpy(matrix.values.transpose(0, 2, 1).copy()))
                del state[f"{name}.{stack}"]
            continue
        del state[f"{name}.{stack}"]
        parts = PARTS[architecture][stack]
        for expert, weights in enumerate(parameter):
            for part, rows in zip(parts, weights.chunk(len(parts)), strict=True):
                linear = renamed(architecture, f"{name}.{expert}.{part}")
                if fmt != "float" and quantize(linear):
                    packed[linear] = matrix = random_matrix(rng, *rows.shape)
                    rows.copy_(torch.from_numpy(matrix.values))
                else:
                    state[f"{linear}.weight"] = rows.bfloat16()


def of_stack(
    architecture: str, name: str, packed: Mapping[str, Any], experts: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(codes [N, K], scales [N, K/32]) of a stack's experts, as transformers' model has the rows."""
    if architecture == "gpt_oss":
        matrix = packed[name]
        return list(zip(matrix.codes, matrix.scales, strict=True))
    prefix, _, stack = name.rpartition(".")
    found = []
    for expert in range(experts):
        parts = PARTS[architecture][stack]
        linears = [packed[renamed(architecture, f"{prefix}.{expert}.{part}")] for part in parts]
        found.append(
            (np.concatenate([m.codes for m in linears]), np.concatenate([m.scales for m in linears]))
        )
    return found


def gpt_oss(packed: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors = {}
    for name, matrix in packed.items():
        blocks = matrix.bytes.reshape(*matrix.scales.shape, 16)
        tensors[f"{name}_blocks"] = torch.from_numpy(blocks)
        tensors[f"{name}_scales"] = torch.from_numpy(matrix.scales)
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    return tensors, {"quant_method": "mxfp4", "modules_to_not_convert": kept}
