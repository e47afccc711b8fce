"""A checkpoint of 2 GB within the memory that docs/models.md states."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import checkpoints

HIDDEN, INNER, LAYERS, VOCABULARY = 3072, 9216, 28, 32000
MOST_BYTES = 1_500_000_000


def random_layer(rng: np.random.Generator, layer: int) -> dict[str, np.ndarray]:
    """A layer of Llama as Quark has it: codes uint8 [N, K/2] and scales uint8 [N, K/32]; norms float16."""
    prefix = f"model.layers.{layer}."
    tensors = {
        prefix + norm: np.ones(HIDDEN, np.float16)
        for norm in ("input_layernorm.weight", "post_attention_layernorm.weight")
    }
    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (1024, HIDDEN),
        "self_attn.v_proj": (1024, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }
    for name, (n, k) in shapes.items():
        tensors[f"{prefix}{name}.weight"] = rng.integers(0, 256, (n, k // 2), dtype=np.uint8)
        tensors[f"{prefix}{name}.weight_scale"] = rng.integers(118, 124, (n, k // 32), dtype=np.uint8)
    return tensors


def write(folder: Path) -> None:
    checkpoints.make(folder, "llama", "quark")
    (folder / "model.safetensors").unlink()
    path = folder / "config.json"
    sizes = {
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": VOCABULARY,
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | sizes))
    rng = np.random.default_rng(1)
    table = rng.standard_normal((VOCABULARY, HIDDEN), np.float32).astype(np.float16)
    whole = {"model.norm.weight": np.ones(HIDDEN, np.float16)}
    whole |= {"model.embed_tokens.weight": table, "lm_head.weight": table[::-1].copy()}
    weight_map = {}
    for shard in range(-1, LAYERS):
        tensors = whole if shard < 0 else random_layer(rng, shard)
        name = f"model-{shard + 2:05}-of-{LAYERS + 1:05}.safetensors"
        save_file(tensors, folder / name)
        weight_map |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.slow
@pytest.mark.parametrize("table_format", ["float", "mxint8"])
def test_memory_is_bounded(table_format: str, tmp_path: Path) -> None:
    write(tmp_path / "checkpoint")
    command = [sys.executable, "-m", "mxort", "import", tmp_path / "checkpoint", "-o", tmp_path / "out"]
    options = ["--table-format", table_format, "--json"]
    done = subprocess.run([*command, *options], check=True, capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert 1.9e9 < report["checkpoint_bytes"] < 2.2e9
    assert len(report["kept"]) == 5 * LAYERS
    # Of a whole process: some 0.45 GB are torch, transformers and the builder.
    assert 0.3e9 < report["conversion"]["peak_rss_bytes"] < MOST_BYTES
