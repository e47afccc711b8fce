"""Mixtures of experts in checkpoints: where their weights are, and the node that the builder's graph gets for them.

onnxruntime-genai's builder (0.18) knows the experts of gpt-oss alone, and computes with them. So the node is made here,
for it and for architectures that are another one but for their experts: ``stands_for`` is what the builder is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mxort.converters.lazy_weights import Bytes, LazyWeight, Rows
from mxort.errors import MxortError
from mxort.formats import dequantize_mxfp4
from mxort.models import origin
from mxort.models.checkpoint import Checkpoint, Packed
from mxort.models.shards import Tensor

STACKS = ("gate_up_proj", "down_proj")
"""transformers' names of the two stacks of weights in ``mlp.experts``."""

_INTERLEAVED, _HALVES = 1, 2
"""swiglu_fusion of MoE: rows of gate and up in turn, or one after the other."""


@dataclass(frozen=True)
class Family:
    """An architecture with experts. ``module``: what checkpoints call transformers' ``mlp``.

    ``parts``: an expert's weights of each stack in checkpoints, by their names below ``experts.N``. ``fused``: the
    stacks are tensors of their own, [E, K, N] where they are float, gate and up in turn. ``router``: its module.
    """

    stands_for: str
    module: str
    router: str
    parts: tuple[tuple[str, ...], ...]
    fused: bool = False


FAMILIES = {
    "GptOssForCausalLM": Family("GptOssForCausalLM", "mlp", "router", ((), ()), fused=True),
    "MixtralForCausalLM": Family("MistralForCausalLM", "block_sparse_moe", "gate", (("w1", "w3"), ("w2",))),
    "Qwen3MoeForCausalLM": Family(
        "Qwen3ForCausalLM", "mlp", "gate", (("gate_proj", "up_proj"), ("down_proj",))
    ),
}


@dataclass(frozen=True)
class Stack:
    """All rows [E N, K] of a tensor with a stack (``Rows`` of lazy_weights): packed [E, N, K], or float [E, K, N]."""

    weight: Tensor | Packed

    @property
    def name(self) -> str:
        return self.weight.name

    @property
    def is_packed(self) -> bool:
        return isinstance(self.weight, Packed)

    @property
    def activation_format(self) -> str | None:
        return self.weight.activation_format if isinstance(self.weight, Packed) else None

    @property
    def shape(self) -> tuple[int, int]:
        e, a, b = self.weight.shape
        return (e * a, b) if self.is_packed else (e * b, a)

    def packed(self) -> tuple[Bytes, Bytes] | None:
        if not isinstance(self.weight, Packed):
            return None
        codes, scales = self.weight.arrays()
        rows = self.shape[0]
        return codes.reshape(rows, -1), scales.reshape(rows, -1)

    def values(self) -> NDArray[Any]:
        if not isinstance(self.weight, Packed):
            return self.weight.array().transpose(0, 2, 1).reshape(self.shape)
        codes, scales = self.weight.arrays()
        rows, k = self.shape
        return dequantize_mxfp4(codes.reshape(rows, -1), scales.reshape(rows, -1), k)


@dataclass(frozen=True)
class Turns:
    """The rows of an expert's gate and up, float [I, K] both, in turn (``Rows`` of lazy_weights)."""

    gate: Tensor
    up: Tensor
    activation_format: None = None
    is_packed: bool = False

    @property
    def name(self) -> str:
        return f"{self.gate.name}{origin.IN_TURN}{self.up.name}"

    @property
    def shape(self) -> tuple[int, int]:
        return self.gate.shape[0] + self.up.shape[0], self.gate.shape[1]

    def packed(self) -> None:
        return None

    def values(self) -> NDArray[Any]:
        return np.stack([self.gate.array(), self.up.array()], axis=1).reshape(self.shape)


@dataclass(frozen=True)
class Experts:
    """The experts of a checkpoint. Raises MxortError, where it is asked, for tensors that are missing or do not fit."""

    checkpoint: Checkpoint
    family: Family
    used: set[str]

    def renamed(self, parameter: str) -> str:
        """What the checkpoint calls a parameter of transformers' model."""
        return parameter.replace(".mlp.", f".{self.family.module}.")

    def holds(self, parameter: str) -> bool:
        """Whether a parameter of transformers' model is of the experts."""
        return ".mlp.experts." in parameter

    def add(self, builder: Any, config: Any, layer_id: int, moe: Any, root_input: str) -> None:
        """Gives the builder's graph the router and the MoE of a layer."""
        base = f"/model/layers.{layer_id}/moe"
        prefix = f"model.layers.{layer_id}.{self.family.module}.experts"
        logits = self._router(builder, getattr(moe, self.family.router), base, root_input)
        inputs = [root_input, logits]
        fusions = set()
        for stack, name in enumerate(STACKS):
            e, a, b = getattr(moe.experts, name).shape
            shape = (e, b, a) if self.family.fused else (e, a, b)
            pieces = tuple(self._pieces(prefix, stack, e))
            inputs.append(_register(builder, pieces, shape, f"{prefix}.{name}"))
            inputs.append(self._bias(builder, prefix, name, shape[:2]))
            if stack == 0:
                fusions = {_INTERLEAVED if isinstance(piece, Stack | Turns) else _HALVES for piece in pieces}
        if len(fusions) > 1:
            raise MxortError(f"{self.checkpoint.folder}: {prefix}: some experts are MXFP4 and some are not")
        output = f"{base}/MoE/output_0"
        attributes = _attributes(config) | {"swiglu_fusion": fusions.pop()}
        builder.make_node(
            "MoE",
            inputs=inputs,
            outputs=[output],
            name=f"{base}/MoE",
            domain="com.microsoft",
            **attributes,
        )
        builder.make_value(output, builder.io_dtype, shape=builder.make_hidden_state_shape())
        builder.layernorm_attrs["skip_input"] = output

    def _router(self, builder: Any, router: Any, base: str, root_input: str) -> str:
        name = builder.make_matmul(router, f"{base}/router/MatMul", root_input)
        if getattr(router, "bias", None) is not None:
            builder.make_add_bias(router.bias, f"{base}/router/Add", root_input=f"{name}/output_0")
            name = f"{base}/router/Add"
        experts = router.weight.shape[0]
        builder.make_reshape(
            f"{base}/router/Reshape",
            [f"{name}/output_0", f"/model/constants/INT64/{[-1, experts]}"],
            dtype=builder.io_dtype,
            shape=["batch_size * sequence_length", experts],
        )
        return f"{base}/router/Reshape/output_0"

    def _pieces(self, prefix: str, stack: int, experts: int) -> Iterator[Rows]:
        """What the rows of a stack are made of, expert by expert."""
        from mxort.models.stand_ins import Piece

        if self.family.fused:
            yield Stack(self._weight(f"{prefix}.{STACKS[stack]}", 3))
            return
        for expert in range(experts):
            names = [f"{prefix}.{expert}.{part}.weight" for part in self.family.parts[stack]]
            weights = [self._weight(name, 2) for name in names]
            if len(weights) > 1 and all(isinstance(weight, Tensor) for weight in weights):
                gate, up = (weight for weight in weights if isinstance(weight, Tensor))
                if gate.shape != up.shape:
                    raise MxortError(
                        f"{up.label} has the shape {list(up.shape)}, its gate {list(gate.shape)}"
                    )
                yield Turns(gate, up)
                continue
            for weight in weights:
                activations = weight.activation_format if isinstance(weight, Packed) else None
                yield Piece(weight, 0, weight.shape[0], activations)

    def _weight(self, name: str, rank: int) -> Tensor | Packed:
        weight = self.checkpoint.packed.get(name) or self.checkpoint.floats.get(name)
        if weight is None:
            raise MxortError(f"{self.checkpoint.folder}: has no tensor {name!r}, which the model needs")
        if len(weight.shape) != rank:
            raise MxortError(f"{self.checkpoint.folder}: {name!r} has the shape {list(weight.shape)}")
        self.used.add(name)
        return weight

    def _bias(self, builder: Any, prefix: str, name: str, shape: tuple[int, ...]) -> str:
        """The initializer of a stack's bias, "" where the architecture has none."""
        from mxort.models import stand_ins

        if not self.family.fused:
            return ""
        full = f"{prefix}.{name}_bias"
        tensor = self._weight(full, 2)
        if not isinstance(tensor, Tensor) or tensor.shape != shape:
            raise MxortError(
                f"{self.checkpoint.folder}: {full!r} has the shape {list(tensor.shape)}, "
                f"the model needs {list(shape)}"
            )
        builder.make_initializer(stand_ins.values(tensor), full, to=builder.io_dtype)
        return full


def _register(builder: Any, pieces: tuple[Rows, ...], shape: tuple[int, ...], name: str) -> str:
    """The initializer of a stack [E, N, K]. Raises MxortError where the rows are others."""
    got = sum(piece.shape[0] for piece in pieces)
    wrong = [piece for piece in pieces if piece.shape[1] != shape[2]]
    if wrong or got != shape[0] * shape[1]:
        first = wrong[0] if wrong else pieces[0]
        raise MxortError(
            f"{first.name!r} has the shape {list(first.shape)}: the experts have {got} rows, "
            f"the model needs {list(shape)}"
        )
    lazy = LazyWeight(pieces, False, ir.DataType.FLOAT, name, experts=shape[0])
    value = builder.make_value(name, lazy.dtype, lazy.shape)
    value.const_value = lazy
    builder.model.graph.register_initializer(value)
    return name


def check(checkpoint: Checkpoint, config: Mapping[str, Any], key: str, count: int) -> None:
    """Raises MxortError for experts that cannot be imported; ``key`` of config.json says that there are ``count``."""
    file, name = checkpoint.settings, checkpoint.architecture
    if name not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise MxortError(f"{file}: {name} has {count} experts ({key}); those of {known} are imported")
    dense = config.get("mlp_only_layers") or []
    if dense or config.get("decoder_sparse_step", 1) != 1:
        raise MxortError(f"{file}: {name}: some layers have no experts, which is not imported")
    chosen = config.get("num_experts_per_tok")
    if not isinstance(chosen, int) or not 1 <= chosen <= count:
        raise MxortError(f"{file}: num_experts_per_tok: got {chosen!r}, expected a number from 1 to {count}")
    if (activation := config.get("hidden_act", "silu")) != "silu":
        raise MxortError(f"{file}: hidden_act: got {activation!r}, expected 'silu' for experts")


def _attributes(config: Any) -> dict[str, Any]:
    """The attributes of MoE, but for the order of the rows."""
    gpt_oss = config.model_type == "gpt_oss"
    made: dict[str, Any] = {
        "k": config.num_experts_per_tok,
        "activation_type": "swiglu",
        "normalize_routing_weights": int(bool(getattr(config, "norm_topk_prob", True))),
        "activation_alpha": float(getattr(config, "swiglu_alpha", 1.702)) if gpt_oss else 1.0,
        "activation_beta": 1.0 if gpt_oss else 0.0,
    }
    return made | ({"swiglu_limit": float(config.swiglu_limit)} if gpt_oss else {})
