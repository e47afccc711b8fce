"""Types of the compiled module (ep/python/bindings.cc)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

def describe() -> dict[str, Any]: ...
def code_objects() -> list[tuple[str, str, bytes]]: ...
def quantize_weights(
    weights: NDArray[np.float32], rule: str, format: str = "mxfp4", threads: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]: ...
def quantize_best(
    weights: NDArray[np.float32],
    multipliers: list[float],
    rule: str,
    format: str = "mxfp4",
    threads: int = 0,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]: ...
def sums_of_rows(
    weights: NDArray[np.float32],
    codes: NDArray[np.uint8],
    scales: NDArray[np.uint8],
    column_scale: NDArray[np.float32],
    format: str = "mxfp4",
    threads: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...
def gptq_panel(
    upper: NDArray[np.float32],
    wanted: NDArray[np.float32],
    scale: NDArray[np.float32],
    format: str = "mxfp4",
    threads: int = 0,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...
def descend_panel(
    hessian: NDArray[np.float32],
    gradient: NDArray[np.float32],
    scale: NDArray[np.float32],
    values: NDArray[np.float32],
    format: str = "mxfp4",
    threads: int = 0,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]: ...
def round_to_element(
    x: NDArray[np.float32], format: str
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]: ...
def select_kernel(
    features: list[str],
    first: str,
    activation_format: str,
    accuracy_level: int,
    rows: int = 1,
    weight_format: str = "mxfp4",
) -> str: ...
def float_to_half(x: NDArray[np.float32], bfloat16: bool) -> NDArray[np.uint16]: ...
def half_to_float(x: NDArray[np.uint16], bfloat16: bool) -> NDArray[np.float32]: ...
def read_seconds(data: NDArray[np.uint8], threads: int = 1) -> float: ...
def peak_rate(unit: str, threads: int = 1) -> float: ...

class MatMul:
    def __init__(
        self,
        codes: NDArray[np.uint8],
        scales: NDArray[np.uint8],
        column_scale: NDArray[np.float32],
        bias: NDArray[np.float32],
        K: int,
        rotation: int = 1,
        activation_format: str = "none",
        accuracy_level: int = 0,
        kernel: str = "",
        weight_format: str = "mxfp4",
    ) -> None: ...
    @property
    def kernel(self) -> str: ...
    def kernel_for(self, rows: int) -> str: ...
    @property
    def packed_bytes(self) -> int: ...
    @property
    def packed_address(self) -> int: ...
    def __call__(self, a: NDArray[Any], threads: int = 1) -> NDArray[Any]: ...

class DeviceError(RuntimeError): ...

def hip_runtime() -> dict[str, Any]: ...
def devices() -> list[dict[str, Any]]: ...
def check_gpu_kernels(device: int, activation_format: str, accuracy_level: int, dtype: str) -> None: ...
def check_gpu_tensor_kernels(device: int, dtype: str) -> None: ...
def gpu_kernel_checks() -> list[dict[str, Any]]: ...
def gpu_launches(
    rows: int,
    K: int,
    N: int,
    weight_format: str = "mxfp4",
    activation_format: str = "none",
    accuracy_level: int = 0,
    dtype: str = "float16",
    arch: str = "gfx950",
    compute_units: int = 256,
) -> int: ...

class GpuMatMulMXFP4:
    def __init__(
        self,
        codes: NDArray[np.uint8],
        scales: NDArray[np.uint8],
        column_scale: NDArray[np.float32],
        bias: NDArray[np.float32],
        K: int,
        rotation: int = 1,
        activation_format: str = "none",
        accuracy_level: int = 0,
        dtype: str = "float32",
        device: int = 0,
        kernel: str = "",
        self_check: bool = True,
        memory_limit: int = 0,
        most_rows: int = 0,
    ) -> None: ...
    def kernel_for(self, rows: int) -> str: ...
    @property
    def weights_address(self) -> int: ...
    def memory(self) -> dict[str, int]: ...
    def trim(self) -> None: ...
    def time(self, a: NDArray[Any], runs: int) -> list[float]: ...
    def __call__(self, a: NDArray[Any]) -> NDArray[Any]: ...
