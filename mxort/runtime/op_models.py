"""Models of one operator, in memory, for the self-check of doctor and for benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mxort.converters.functions import DOMAIN, VERSION, operator_of
from mxort.formats import (
    ACTIVATION_FORMATS,
    BLOCK_SIZE,
    E2M1,
    SCALE_BIAS,
    WEIGHT_FORMATS,
    ElementFormat,
    blocks_of,
    dequantize,
    hadamard_rotate,
    pack_codes,
    to_blocks,
)
from mxort.scales import quantize_blocks

IR_VERSION = 10  # the newest that onnxruntime 1.22 opens
OPSET = 21

ERROR_BOUND = {0: 3e-3, 1: 1e-6, 3: 3e-3, 4: 1e-2}
"""Relative RMS error that each accuracy level allows where activations are not rounded (docs/format.md)."""

ROUNDED_ERROR_BOUND = 1e-6
"""The same where they are rounded: all kernels multiply the same numbers, only float32 sums differ."""


@dataclass(frozen=True)
class MatMulMXFP4:
    """A node: codes uint8 [N, ceil(K/32)*block_bytes], scales uint8 [N, ceil(K/32)] and the attributes.

    With another ``weight_format`` it is that format's operator.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.uint8]
    K: int
    rotation: int = 1
    activation_format: str = "none"
    accuracy_level: int = 0
    weight_format: str = "mxfp4"

    @property
    def N(self) -> int:  # noqa: N802 (the operator's name for it)
        return len(self.codes)

    @property
    def column_scale(self) -> NDArray[np.float32]:
        return np.ones(self.N, np.float32)

    @property
    def bias(self) -> NDArray[np.float32]:
        return np.zeros(self.N, np.float32)

    @property
    def error_bound(self) -> float:
        """Relative RMS error that a kernel may have against :meth:`expected`."""
        return ERROR_BOUND[self.accuracy_level] if self.activation_format == "none" else ROUNDED_ERROR_BOUND

    def weights(self) -> NDArray[np.float32]:
        """float32 [N, K]: what the codes and scales say."""
        return dequantize(self.codes, self.scales, self.K, WEIGHT_FORMATS[self.weight_format])

    def expected(self, a: NDArray[np.float32]) -> NDArray[np.float64]:
        """float64 [M, N]: the operator on float32 A [M, K] in numpy, straight from its definition."""
        rotated = hadamard_rotate(a, self.rotation)
        element = ACTIVATION_FORMATS[self.activation_format]
        operand = rotated.astype(np.float64)
        if element is not None:
            codes, scales = quantize_blocks(to_blocks(rotated), element, "even")
            scale = np.ldexp(1.0, scales.astype(np.int32) - SCALE_BIAS)
            values = element.decode(codes).astype(np.float64) * scale[..., None]
            operand = values.reshape(len(a), -1)[:, : self.K]
        return operand @ self.weights().astype(np.float64).T

    def native(self, kernel: str = "") -> Any:
        """The node on the library's kernels without onnxruntime: ``node(a, threads=1)``, ``node.kernel``.

        ``kernel`` names the row of the kernel table to begin at; "" leaves the choice to the library.
        """
        from mxort import _native

        return _native.MatMul(
            *self._inputs, **self._attributes, kernel=kernel, weight_format=self.weight_format
        )

    def on_gpu(self, ordinal: int, dtype: str) -> Any:
        """The node on a GPU without onnxruntime: ``node(a)``, ``node.time(a, runs)``, ``node.kernel_for(rows)``;
        A and Y are of ``dtype``. Raises ``_native.DeviceError`` where the GPU cannot be used."""
        from mxort import _native

        return _native.GpuMatMulMXFP4(*self._inputs, **self._attributes, dtype=dtype, device=ordinal)

    @property
    def _inputs(self) -> tuple[Any, Any, Any, Any]:
        return self.codes, self.scales, self.column_scale, self.bias

    @property
    def _attributes(self) -> dict[str, Any]:
        return {
            "K": self.K,
            "rotation": self.rotation,
            "activation_format": self.activation_format,
            "accuracy_level": self.accuracy_level,
        }

    def model(self) -> bytes:
        """The serialised model: input A float [M, K], output Y float [M, N]; needs the library to run."""
        operator, own = operator_of(self.weight_format)
        node = helper.make_node(
            operator,
            ["A", "B", "B_scale", "column_scale", "bias"],
            ["Y"],
            domain=DOMAIN,
            K=self.K,
            N=self.N,
            rotation=self.rotation,
            activation_format=self.activation_format,
            accuracy_level=self.accuracy_level,
            **own,
        )
        constants: dict[str, NDArray[Any]] = {
            "B": self.codes,
            "B_scale": self.scales,
            "column_scale": self.column_scale,
            "bias": self.bias,
        }
        return one_node_model(node, constants, self.K, self.N)


def random_mxfp4(
    k: int, n: int, rng: np.random.Generator, fmt: ElementFormat = E2M1
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(codes, scales) of N rows: all numbers' codes equally likely, scales 2**-6 to 2**-3, padding zero."""
    blocks = blocks_of(k)
    codes = np.zeros((n, blocks * BLOCK_SIZE), np.uint8)
    numbers = np.flatnonzero(np.isfinite(fmt.values)).astype(np.uint8)
    codes[:, :k] = rng.choice(numbers, (n, k))
    scales = rng.integers(SCALE_BIAS - 6, SCALE_BIAS - 2, (n, blocks), dtype=np.uint8)
    return pack_codes(codes, fmt), scales


def one_node_model(node: onnx.NodeProto, constants: dict[str, NDArray[Any]], k: int, n: int) -> bytes:
    """A serialised model of ``node`` with A float [M, k] in, Y float [M, n] out and these initializers."""
    graph = helper.make_graph(
        [node],
        "one_node",
        [helper.make_tensor_value_info("A", TensorProto.FLOAT, ["M", k])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["M", n])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    if node.domain:
        opsets.append(helper.make_opsetid(node.domain, VERSION))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    return bytes(model.SerializeToString())


def relative_rms(got: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """||got - expected|| / ||expected|| in float64; 0 where both are zero."""
    difference = np.linalg.norm(got.astype(np.float64) - expected)
    norm = np.linalg.norm(expected)
    return float(difference / norm) if norm else float(difference)
