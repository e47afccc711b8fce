"""MoEMXFP4 on the provider, on both architectures: against the double oracle, with its bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto
from test_products import Cases

import moe_model
import moe_oracle
import oracle
from moe_oracle import Experts, random_experts

ARCHITECTURES = ["gfx950", "gfx942"]
SHAPES_OF_GATES = {
    "swiglu_oai": {"activation": moe_oracle.SILU, "swiglu_fusion": 1, "activation_alpha": 1.702,
                   "activation_beta": 1.0, "swiglu_limit": 7.0},
    "silu_halves": {"activation": moe_oracle.SILU, "swiglu_fusion": 2},
    "gelu_interleaved": {"activation": moe_oracle.GELU, "swiglu_fusion": 1},
    "gelu_tanh_halves": {"activation": moe_oracle.GELU_TANH, "swiglu_fusion": 2, "swiglu_limit": 0.5},
    "relu": {"activation": moe_oracle.RELU, "swiglu_fusion": 0},
    "gelu": {"activation": moe_oracle.GELU, "swiglu_fusion": 0},
    "none": {"activation": moe_oracle.NONE, "swiglu_fusion": 0},
}  # fmt: skip
TYPES = {"float": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
ELEMENTS = {"float": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


def kernel_of(experts: Experts, arch: str) -> str:
    """What the oracle must know of how a device rounds A: two terms, or one of bfloat16, as AMX."""
    return oracle.TWO_TERMS_KERNEL if arch == "gfx950" else oracle.BFLOAT16_KERNEL


def rows(
    experts: Experts, count: int, dtype: type = np.float32, seed: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([seed, count])
    x = rng.standard_normal((count, experts.gate_up[0].K)).astype(np.float32).astype(dtype)
    return x, (2 * rng.standard_normal((count, len(experts.down)))).astype(np.float32).astype(dtype)


class Layers:
    """Layers that are run in one process, each checked against the oracle."""

    def __init__(self, folder: Path):
        self.cases = Cases(folder)
        self.expected: list[tuple[str, Experts, np.ndarray, np.ndarray]] = []

    def add(
        self, what: str, experts: Experts, x: np.ndarray, logits: np.ndarray, **options: Any
    ) -> onnx.ModelProto:
        proto = moe_model.model(experts, elem_type=ELEMENTS[str(x.dtype).replace("32", "")], **options)
        outside = np.float32 if x.dtype == ml_dtypes.bfloat16 else x.dtype
        self.cases.add(proto, {"X": x.astype(outside), "router": logits.astype(outside)})
        self.expected.append((what, experts, x, logits))
        return proto

    def run(self, arch: str) -> list[np.ndarray]:
        results = self.cases.run(HIPSIM_DEVICES=arch)
        for (what, experts, x, logits), y in zip(self.expected, results, strict=True):
            moe_oracle.assert_close(experts, x, logits, y.astype(x.dtype), what, kernel_of(experts, arch))
        return results


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_formats_and_levels(arch: str, tmp_path: Path) -> None:
    layers = Layers(tmp_path)
    rng = np.random.default_rng(3)
    for fmt, level in oracle.FORMATS_AND_LEVELS:
        for count, rotation in ((5, 32), (40, 64)):  # few rows, many
            experts = random_experts(
                rng, 5, 192, 160 if rotation == 32 else 128, 2, rotation=rotation, activation_format=fmt,
                accuracy_level=level,
            )  # fmt: skip
            layers.add(f"{fmt} {level} {count}", experts, *rows(experts, count))
    layers.run(arch)
