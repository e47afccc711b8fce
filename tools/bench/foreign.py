"""Other libraries' matrix products as candidates of ``mxort bench ops``; each is imported when it is asked for."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxort.errors import MxortError
from mxort.formats import BLOCK_SIZE, blocks_of
from tools.bench.ggml import GgmlMatMul


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MxortError(f"{name} is not installed") from error


def torch_bf16(weights: NDArray[np.float32], threads: int) -> Any:
    """torch.nn.functional.linear in bfloat16, activations and result too; W float32 [N, K]."""
    torch = _library("torch")
    torch.set_num_threads(threads)
    stored = torch.from_numpy(weights).to(torch.bfloat16)
    linear = torch.nn.functional.linear

    def bind(a: NDArray[np.float32]) -> tuple[Any, Any]:
        rows = torch.from_numpy(a).to(torch.bfloat16)
        y: Any = None

        def run() -> None:
            nonlocal y
            with torch.inference_mode():
                y = linear(rows, stored)

        return run, lambda: y.float().numpy()

    return bind


def openvino_f4e2m1(codes: NDArray[np.uint8], scales: NDArray[np.uint8], k: int, threads: int) -> Any:
    """OpenVINO's MatMul with compressed weights, as its model format says: f4e2m1 [N, blocks, 32] -> Convert ->
    Multiply by f8e8m0 [N, blocks, 1] -> Reshape -> MatMul. Its precision is OpenVINO's own choice for the CPU."""
    ov = _library("openvino")
    op = _library("openvino.opset13")
    if k % BLOCK_SIZE:
        raise MxortError(f"whole blocks of {BLOCK_SIZE} only, got K {k}")
    n, blocks = len(codes), blocks_of(k)

    exponents = scales.reshape(n, blocks, 1)
    kept = codes, exponents  # OpenVINO's tensors refer to their memory

    def constant(data: NDArray[np.uint8], width: int, element: Any) -> Any:
        return op.convert(ov.op.Constant(ov.Tensor(data, ov.Shape([n, blocks, width]), element)), "f32")

    a = op.parameter([-1, k], np.float32)
    scaled = op.multiply(
        constant(codes, BLOCK_SIZE, ov.Type.f4e2m1),
        constant(exponents, 1, ov.Type.f8e8m0),
    )
    y = op.matmul(a, op.reshape(scaled, np.array([n, k]), False), False, True)
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    compiled = ov.Core().compile_model(ov.Model([y], [a]), "CPU", settings)

    def bind(rows: NDArray[np.float32]) -> tuple[Any, Any, Any]:
        request = compiled.create_infer_request()
        request.set_input_tensor(ov.Tensor(rows, shared_memory=True))
        return request.infer, lambda: request.get_output_tensor().data, (kept, rows)

    return bind


def ggml_mxfp4(codes: NDArray[np.uint8], scales: NDArray[np.uint8], k: int, threads: int) -> Any:
    """llama.cpp's ggml_mul_mat with MXFP4 weights, repacked where ggml has a kernel for that."""
    matmul = GgmlMatMul(codes, scales, k, threads)

    def bind(a: NDArray[np.float32]) -> tuple[Any, Any]:
        run, y = matmul.bind(a)
        return run, lambda: y

    return bind
