"""llama.cpp's MXFP4 matrix product as a candidate: its ggml libraries, as llama-cpp-python carries them, by ctypes."""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxort.errors import MxortError
from mxort.formats import BLOCK_SIZE, unpack_nibbles

_F32, _MXFP4 = 0, 39  # enum ggml_type
_CONTEXT_BYTES = 1 << 20  # a few tensors and a graph, without their data


class _InitParams(ctypes.Structure):
    """struct ggml_init_params."""

    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


_LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_silent = _LOG_CALLBACK(lambda level, text, data: None)  # it says on stderr what it repacks

_POINTER, _SIZE, _INT64, _INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64, ctypes.c_int
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "ggml_log_set": (None, _POINTER, _POINTER),
    "ggml_init": (_POINTER, _InitParams),
    "ggml_free": (None, _POINTER),
    "ggml_new_tensor_2d": (_POINTER, _POINTER, _INT, _INT64, _INT64),
    "ggml_mul_mat": (_POINTER, _POINTER, _POINTER, _POINTER),
    "ggml_new_graph": (_POINTER, _POINTER),
    "ggml_build_forward_expand": (None, _POINTER, _POINTER),
    "ggml_backend_cpu_init": (_POINTER,),
    "ggml_backend_cpu_reg": (_POINTER,),
    "ggml_backend_cpu_set_n_threads": (None, _POINTER, _INT),
    "ggml_backend_reg_dev_get": (_POINTER, _POINTER, _SIZE),
    "ggml_backend_reg_get_proc_address": (_POINTER, _POINTER, ctypes.c_char_p),
    "ggml_backend_dev_supports_op": (ctypes.c_bool, _POINTER, _POINTER),
    "ggml_backend_dev_buffer_type": (_POINTER, _POINTER),
    "ggml_backend_alloc_ctx_tensors_from_buft": (_POINTER, _POINTER, _POINTER),
    "ggml_backend_buft_alloc_buffer": (_POINTER, _POINTER, _SIZE),
    "ggml_backend_buffer_free": (None, _POINTER),
    "ggml_backend_free": (None, _POINTER),
    "ggml_backend_tensor_set": (None, _POINTER, _POINTER, _SIZE, _SIZE),
    "ggml_backend_graph_compute": (_INT, _POINTER, _POINTER),
    "ggml_get_data": (_POINTER, _POINTER),
    "ggml_nbytes": (_SIZE, _POINTER),
}


@cache
def _library() -> Any:
    """The functions above by name. Raises MxortError where llama-cpp-python is not installed."""
    spec = importlib.util.find_spec("llama_cpp")  # without importing it, which would load a good deal more
    if spec is None or spec.origin is None:
        raise MxortError("llama-cpp-python is not installed")
    folder = Path(spec.origin).parent / "lib"
    try:
        base = ctypes.CDLL(str(folder / "libggml-base.so"), ctypes.RTLD_GLOBAL)
        cpu = ctypes.CDLL(str(folder / "libggml-cpu.so"), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise MxortError(f"llama-cpp-python's ggml cannot be loaded: {error}") from error
    functions = {}
    for name, (result, *arguments) in _SIGNATURES.items():
        function = getattr(base if hasattr(base, name) else cpu, name)
        function.restype, function.argtypes = result, arguments
        functions[name.removeprefix("ggml_")] = function
    functions["log_set"](_silent, None)
    return SimpleNamespace(**functions)


def ggml_blocks(codes: NDArray[np.uint8], scales: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [N, blocks * 17]: each block its scale, then byte i with element i low and element i + 16 high."""
    half = BLOCK_SIZE // 2
    nibbles = unpack_nibbles(codes).reshape(*scales.shape, BLOCK_SIZE)
    packed = nibbles[..., :half] | nibbles[..., half:] << 4
    return np.concatenate([scales[..., None], packed], axis=-1).reshape(len(scales), -1).astype(np.uint8)


class GgmlMatMul:
    """Y [M, N] = A [M, K] . W^T on ggml's CPU backend, W in the buffer type that llama.cpp would choose for it."""

    def __init__(self, codes: NDArray[np.uint8], scales: NDArray[np.uint8], k: int, threads: int) -> None:
        if k % BLOCK_SIZE:
            raise MxortError(f"ggml's MXFP4 takes whole blocks of {BLOCK_SIZE}, got K {k}")
        self._ggml = _library()
        self._k, self._n = k, len(codes)
        self._backend = self._ggml.backend_cpu_init()
        self._ggml.backend_cpu_set_n_threads(self._backend, threads)
        self._context = self._new_context()
        self._weight = self._ggml.new_tensor_2d(self._context, _MXFP4, k, self._n)
        for buffer_type in self._buffer_types():
            if self._multiplies(buffer_type):
                self._ggml.backend_alloc_ctx_tensors_from_buft(self._context, buffer_type)
                break
        blocks = ggml_blocks(codes, scales)
        self._ggml.backend_tensor_set(self._weight, blocks.ctypes.data, 0, blocks.nbytes)

    def _new_context(self) -> Any:
        return self._ggml.init(_InitParams(_CONTEXT_BYTES, None, True))

    def _buffer_types(self) -> list[Any]:
        """Repacking ones first, the plain one last."""
        registry = self._ggml.backend_cpu_reg()
        self._device = self._ggml.backend_reg_dev_get(registry, 0)
        address = self._ggml.backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
        types: list[Any] = []
        if address:
            listed = ctypes.CFUNCTYPE(ctypes.POINTER(_POINTER), _POINTER)(address)(self._device)
            while listed and listed[len(types)]:
                types.append(listed[len(types)])
        return [*types, self._ggml.backend_dev_buffer_type(self._device)]

    def _multiplies(self, buffer_type: Any) -> bool:
        """Whether ggml can multiply by an MXFP4 weight of this size in a buffer of this type: asked as llama.cpp
        asks, with a weight in an empty buffer."""
        context = self._new_context()
        buffer = self._ggml.backend_buft_alloc_buffer(buffer_type, 0)
        weight = self._ggml.new_tensor_2d(context, _MXFP4, self._k, self._n)
        ctypes.cast(weight, ctypes.POINTER(_TensorHead)).contents.buffer = buffer
        product = self._ggml.mul_mat(context, weight, self._ggml.new_tensor_2d(context, _F32, self._k, 1))
        supported = bool(self._ggml.backend_dev_supports_op(self._device, product))
        self._ggml.backend_buffer_free(buffer)
        self._ggml.free(context)
        return supported

    def bind(self, a: NDArray[np.float32]) -> tuple[Any, NDArray[np.float32]]:
        """(function that computes, float32 [M, N] that it fills) for A [M, K]."""
        context = self._new_context()
        rows = self._ggml.new_tensor_2d(context, _F32, self._k, len(a))
        product = self._ggml.mul_mat(context, self._weight, rows)
        graph = self._ggml.new_graph(context)
        self._ggml.build_forward_expand(graph, product)
        self._ggml.backend_alloc_ctx_tensors_from_buft(
            context, self._ggml.backend_dev_buffer_type(self._device)
        )
        a = np.ascontiguousarray(a)
        self._ggml.backend_tensor_set(rows, a.ctypes.data, 0, a.nbytes)
        size = len(a) * self._n
        data = (ctypes.c_float * size).from_address(self._ggml.get_data(product))
        compute, backend = self._ggml.backend_graph_compute, self._backend

        def run() -> None:
            if status := compute(backend, graph):
                raise MxortError(f"ggml's computation ended with status {status}")

        return run, np.ctypeslib.as_array(data).reshape(len(a), self._n)


class _TensorHead(ctypes.Structure):
    """The beginning of struct ggml_tensor."""

    _fields_ = (("type", ctypes.c_int), ("buffer", ctypes.c_void_p))
