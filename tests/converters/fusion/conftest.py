from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx_ir as ir
import pytest

from mxort.converters import fusion


class Fusing:
    """Fuses a ModelProto and compares what stock onnxruntime computes of both."""

    def __init__(self, run: Callable[..., list[np.ndarray]]) -> None:
        self._run = run
        self.before: list[np.ndarray] = []
        self.after: list[np.ndarray] = []
        self.report: dict[str, dict[str, int]] = {}

    def __call__(self, proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray] | None = None) -> list[str]:
        """Operators of the fused model, sorted; ``before`` and ``after`` are the outputs for the feeds."""
        model = ir.from_proto(proto)
        done = fusion.fuse(model)
        self.report = {name: counts for name, result in done.items() if (counts := result.counts())}
        fused = ir.to_proto(model)
        onnx.checker.check_model(fused)
        if feeds is not None:
            self.before, self.after = self._run(proto, feeds), self._run(fused, feeds)
        self.model = fused
        return sorted(node.op_type for node in fused.graph.node)

    def assert_near(self, bound: Any) -> None:
        for y, want in zip(self.after, self.before, strict=True):
            assert y.shape == want.shape
            assert y.dtype == want.dtype
            difference = np.abs(y.astype(np.float64) - want.astype(np.float64))
            assert (difference <= bound).all(), difference.max()


@pytest.fixture
def fusing(tools: Any) -> Fusing:
    return Fusing(tools.run_onnxruntime)
