"""Experts of GGUF files, which have stacks [E, N, K] of gate, up and down, under the names that checkpoints have.

A checkpoint has either an expert's weights one by one, which are ranges of a stack, or for gpt-oss a stack of gate
and up, whose rows are those of two stacks in turn.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxort.errors import MxortError
from mxort.models.checkpoint import Packed
from mxort.models.experts import STACKS, Family
from mxort.models.gguf_tensors import MXFP4, GgufFile, Values, packed
from mxort.models.shards import Tensor

_PARTS = ("gate", "up", "down")
_TENSOR = re.compile(r"blk\.(\d{1,4})\.ffn_(gate|up|down)_exps\.(weight|bias)")


@dataclass(frozen=True)
class _InTurn(Tensor):
    """The rows of tensors [E, N, ...] in turn; ``turned``: [E, K, N], as gpt-oss has float stacks."""

    parts: tuple[Tensor, ...] = ()
    turned: bool = False

    @property
    def label(self) -> str:
        return self.parts[0].label

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def array(self) -> NDArray[Any]:
        count, rows = len(self.parts), self.parts[0].array()
        if count > 1:
            first = rows
            same = len({part.dtype for part in self.parts}) == 1
            shape = first.shape[0], count * first.shape[1], *first.shape[2:]
            rows = np.empty(shape, first.dtype if same else np.float32)
            for at, part in enumerate(self.parts):
                rows[:, at::count] = first if at == 0 else part.array()
        return rows.swapaxes(1, 2) if self.turned else rows


def is_one(tensor: Values) -> bool:
    """Whether a tensor of a file has weights or biases of experts."""
    return _TENSOR.fullmatch(tensor.stored_name) is not None


def of(file: GgufFile, family: Family, experts: int) -> Iterator[Tensor | Packed]:
    """The tensors of the experts under the checkpoint's names.

    Raises MxortError for stacks that are missing, do not fit each other or are not of so many experts.
    """
    layers: dict[tuple[int, str], dict[str, Values]] = defaultdict(dict)
    for tensor in filter(is_one, file.tensors.values()):
        match = _TENSOR.fullmatch(tensor.stored_name)
        assert match is not None
        axes = "[E, N, K]" if match[3] == "weight" else "[E, N]"
        if len(tensor.shape) != axes.count(",") + 1 or tensor.shape[0] != experts:
            raise MxortError(
                f"{tensor.label} has the shape {list(tensor.shape)}, expected {axes} of {experts} experts"
            )
        layers[int(match[1]), match[3]][match[2]] = tensor
    for (layer, kind), stacks in sorted(layers.items()):
        _check(stacks, layer, kind)
        prefix = f"model.layers.{layer}.{family.module}.experts"
        if family.fused:
            yield from _stacks(stacks, prefix, kind)
        else:
            yield from _one_by_one(stacks, prefix, kind, family)


def _check(stacks: Mapping[str, Values], layer: int, kind: str) -> None:
    """Raises MxortError where gate, up and down do not go together."""
    first = next(iter(stacks.values()))
    if missing := [part for part in _PARTS if part not in stacks]:
        raise MxortError(f"{first.label} has no 'blk.{layer}.ffn_{missing[0]}_exps.{kind}' beside it")
    gate, up = stacks["gate"], stacks["up"]
    if gate.shape != up.shape or (gate.dtype != up.dtype and MXFP4 in (gate.dtype, up.dtype)):
        raise MxortError(
            f"{up.label} has the shape {list(up.shape)} and the type {up.dtype}, "
            f"its gate {list(gate.shape)} and {gate.dtype}"
        )


def _stacks(stacks: Mapping[str, Values], prefix: str, kind: str) -> Iterator[Tensor | Packed]:
    """gpt-oss: gate_up_proj and down_proj, [E, N, K] where they are MXFP4, else [E, K, N]; their biases [E, N]."""
    for name, parts in zip(STACKS, (("gate", "up"), ("down",)), strict=True):
        whole = tuple(stacks[part] for part in parts)
        if kind == "bias":
            yield _in_turn(f"{prefix}.{name}_bias", whole)
        elif whole[0].dtype == MXFP4:
            pairs = [packed(part) for part in whole]
            codes, scales = (
                _in_turn(f"{prefix}.{name}", tuple(pair))
                for pair in zip(*((p.codes, p.scales) for p in pairs), strict=True)
            )
            yield Packed(f"{prefix}.{name}", codes, scales, None)
        else:
            yield _in_turn(f"{prefix}.{name}", whole, turned=True)


def _in_turn(name: str, parts: tuple[Tensor, ...], turned: bool = False) -> _InTurn:
    first = parts[0]
    e, n, *rest = first.shape
    shape = (e, *rest, n * len(parts)) if turned else (e, n * len(parts), *rest)
    return _InTurn(name, first.file, first.dtype, shape, first.begin, parts, turned)


def _one_by_one(
    stacks: Mapping[str, Values], prefix: str, kind: str, family: Family
) -> Iterator[Tensor | Packed]:
    names = [part for parts in family.parts for part in parts]
    for part, name in zip(_PARTS, names, strict=True):
        stack = stacks[part]
        step = stack.nbytes // stack.shape[0]
        for expert in range(stack.shape[0]):
            one = replace(
                stack,
                name=f"{prefix}.{expert}.{name}.{kind}",
                shape=stack.shape[1:],
                begin=stack.begin + expert * step,
            )
            yield packed(one) if one.dtype == MXFP4 else one
