"""A mixture of experts in a calibration run: each expert is quantised with the rows that are routed to it.

The first product's weight meets those rows, the second what its quantised first product makes of them. Outputs come
from the same pass, expert by expert, so that no more than one expert is ever unpacked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxort import _native
from mxort.calibration.operator import Operator
from mxort.converters import experts, functions
from mxort.converters.constants import padded_rows
from mxort.converters.sites import Site
from mxort.formats import BLOCK_SIZE, blocks_of
from mxort.quantize import QuantizedWeight, Statistics, with_torch

Floats = NDArray[np.float32]

Read = Callable[[int, int], tuple[Floats, Floats]]
"""(sample, store) -> X [rows, D] and the router's logits [rows, E] of the sample there."""

Quantize = Callable[[Site, int, NDArray[Any], Statistics], QuantizedWeight | None]
"""(stack, expert, what its weight's ``array()`` gives, statistics of the expert's operand) -> the expert's rows.

None: a weight is not finite, and the node stays as it is; no more is asked of it."""


@dataclass(frozen=True)
class Mixture:
    """A node's two stacks, how its products will run, and where its operands are."""

    stacks: tuple[Site, Site]
    operator: Operator
    threads: int


def run(mixture: Mixture, read: Read, samples: int, stores: int, quantize: Quantize) -> list[list[Floats]]:
    """Quantises every expert -> the node's output [rows, D] for each store and sample.

    Store 0 is what the model becomes where there is a second, the float model; alone it is the float model. From an
    expert on that :data:`Quantize` does not want all are computed in float.
    """
    return _Run(mixture, read, samples, stores, quantize).all()


class _Run:
    def __init__(self, mixture: Mixture, read: Read, samples: int, stores: int, quantize: Quantize) -> None:
        self._mixture, self._read, self._quantize = mixture, read, quantize
        self._attributes = experts.attributes_of(mixture.stacks[0].node)
        self._arrays = [site.weight.array() for site in mixture.stacks if site.weight is not None]
        self._samples, self._stores = range(samples), range(stores)
        self._routes = [[self._route(read(i, store)[1]) for i in self._samples] for store in self._stores]
        self._outputs = [
            [np.zeros(read(i, s)[0].shape, np.float32) for i in self._samples] for s in self._stores
        ]

    def all(self) -> list[list[Floats]]:
        wanted = True
        for expert in range(self._mixture.stacks[0].experts):
            rows = self._rows_of(0, expert)
            made = self._quantised(expert, rows) if wanted else None
            wanted = made is not None
            if made is None or len(self._stores) == 1:
                made = self._float(expert, rows)
            self._add(0, expert, made)
            if len(self._stores) > 1:
                self._add(1, expert, self._float(expert, self._rows_of(1, expert)))
        return self._outputs

    def _route(self, logits: Floats) -> Floats:
        """The weights [rows, E] of experts, 0 where they are not chosen."""
        order = np.argsort(-logits, axis=-1, kind="stable")[:, : self._attributes["k"]]
        p = np.exp(logits - logits.max(axis=-1, keepdims=True, initial=-np.inf))
        p /= p.sum(axis=-1, keepdims=True)
        chosen = np.zeros(p.shape, bool)
        np.put_along_axis(chosen, order, True, axis=-1)
        weights = np.where(chosen, p, 0)
        if self._attributes["normalize_routing_weights"]:
            weights /= weights.sum(axis=-1, keepdims=True)
        return np.asarray(weights, np.float32)

    def _rows_of(self, store: int, expert: int) -> list[Floats]:
        """The rows that are routed to an expert, of each sample."""
        return [self._read(i, store)[0][self._routes[store][i][:, expert] != 0] for i in self._samples]

    def _add(self, store: int, expert: int, results: Sequence[Floats]) -> None:
        for i, y in zip(self._samples, results, strict=True):
            weights = self._routes[store][i][:, expert]
            self._outputs[store][i][weights != 0] += weights[weights != 0, None] * y

    def _quantised(self, expert: int, rows: Sequence[Floats]) -> list[Floats] | None:
        """Quantises both products of an expert -> what they make of its rows."""
        for number, stack in enumerate(self._mixture.stacks):
            weight = self._quantize(stack, expert, self._arrays[number], self._statistics(stack, rows))
            if weight is None:
                return None
            layer = self._kernel(stack, expert, weight)
            rows = [layer(x) for x in rows]
            rows = [self._hidden(p) for p in rows] if number == 0 else rows
        return list(rows)

    def _statistics(self, stack: Site, rows: Sequence[Floats]) -> Statistics:
        operator = self._mixture.operator
        gathered = with_torch("moments").Moments(
            blocks_of(stack.K) * BLOCK_SIZE, operator.rotation, operator.activation_format
        )
        for x in rows:
            gathered.add(x)
        result: Statistics = gathered.statistics()
        return result

    def _kernel(self, stack: Site, expert: int, weight: QuantizedWeight) -> Callable[[Floats], Floats]:
        operator = self._mixture.operator
        node = _native.MatMul(
            weight.codes,
            weight.scales,
            weight.column_scale,
            self._bias(stack, expert),
            stack.K,
            operator.rotation,
            operator.activation_format,
            operator.accuracy_level,
            weight_format=weight.weight_format,
        )
        return lambda a: node(np.ascontiguousarray(a), self._mixture.threads)

    def _float(self, expert: int, rows: Sequence[Floats]) -> list[Floats]:
        """What the float products of an expert make of its rows."""
        for number, stack in enumerate(self._mixture.stacks):
            assert stack.weight is not None
            n = stack.N // stack.experts
            part = padded_rows(stack.weight, self._arrays[number], expert * n, (expert + 1) * n, stack.K)
            layer = with_torch("moments").Linear(part, self._bias(stack, expert))
            rows = [layer(x) for x in rows]
            rows = [self._hidden(p) for p in rows] if number == 0 else rows
        return list(rows)

    def _bias(self, stack: Site, expert: int) -> Floats:
        n = stack.N // stack.experts
        return np.zeros(n, np.float32) if stack.bias is None else stack.bias[expert * n : (expert + 1) * n]

    def _hidden(self, product: Floats) -> Floats:
        """What is between the products."""
        given = self._attributes
        if not (fusion := given["swiglu_fusion"]):
            return _activated(product, given[functions.ACTIVATION], 1.0)
        half = product.shape[1] // 2
        gate, up = (
            (product[:, 0::2], product[:, 1::2]) if fusion == 1 else (product[:, :half], product[:, half:])
        )
        limit = given["swiglu_limit"] or np.inf
        gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
        factor = up + np.float32(given["activation_beta"])
        made = _activated(gate, given[functions.ACTIVATION], given["activation_alpha"])
        return np.ascontiguousarray(made * factor)


def _activated(x: Floats, activation: int, alpha: float) -> Floats:
    y = x
    with np.errstate(over="ignore"):
        if activation == functions.RELU:
            y = np.maximum(x, 0)
        elif activation == functions.GELU_TANH:
            y = x * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        elif activation == functions.SILU:
            y = x / (1 + np.exp(-alpha * x))
    return np.asarray(y, np.float32)
