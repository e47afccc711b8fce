"""Ranks of values: what the file says, else what onnx's shape inference finds, run once and on demand."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property

import onnx_ir as ir
import onnx_ir.passes.common


class Ranks:
    """Looks up the number of axes of a model's values; never changes the model."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model

    def known(self, value: ir.Value | None) -> int | None:
        """The rank that the file states (None: it does not)."""
        return None if value is None or value.shape is None else value.shape.rank()

    def of(self, value: ir.Value | None) -> int | None:
        """The rank that the file states or that inference finds; None where neither does."""
        if (rank := self.known(value)) is not None or value is None:
            return rank
        ranks = self._inferred.get(value.name or "", set())
        return next(iter(ranks)) if len(ranks) == 1 else None

    @cached_property
    def _inferred(self) -> dict[str, set[int]]:
        """Ranks by name: more than one where sibling subgraphs use a name for different values."""
        model = self._model.clone()
        onnx_ir.passes.common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
        ranks: dict[str, set[int]] = defaultdict(set)
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            for value in node.outputs:
                if value.name and value.shape is not None:
                    ranks[value.name].add(value.shape.rank())
        return ranks
