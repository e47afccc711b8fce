"""llama.cpp's MXFP4 matrix product as a candidate: its ggml libraries, as llama-cpp-python carries them, by ctypes."""

from __future__ import annotations

import ctypes
import importlib.util
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mxort.errors import MxortError
from mxort.formats import BLOCK_SIZE, unpack_nibbles

_F32, _I32, _MXFP4 = 0, 26, 39  # enum ggml_type
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
    "ggml_new_tensor_3d": (_POINTER, _POINTER, _INT, _INT64, _INT64, _INT64),
    "ggml_mul_mat": (_POINTER, _POINTER, _POINTER, _POINTER),
    "ggml_mul_mat_id": (_POINTER, _POINTER, _POINTER, _POINTER, _POINTER),
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


class _GgmlWeight:
    """A weight on ggml's CPU backend, in the buffer type that llama.cpp would choose for it, and products with it.

    ``codes`` uint8 [N, K / 2], of experts [E, N, K / 2]; their ``scales``.
    """

    def __init__(self, codes: NDArray[np.uint8], scales: NDArray[np.uint8], threads: int) -> None:
        self._ggml = _library()
        self._shape = (2 * codes.shape[-1], *codes.shape[-2::-1])  # as ggml has it: K, N and the experts
        self._backend = self._ggml.backend_cpu_init()
        self._ggml.backend_cpu_set_n_threads(self._backend, threads)
        self._context = self._new_context()
        self._weight = self._new_weight(self._context)
        for buffer_type in self._buffer_types():
            if self._multiplies(buffer_type):
                self._ggml.backend_alloc_ctx_tensors_from_buft(self._context, buffer_type)
                break
        rows = (-1, codes.shape[-1]), (-1, scales.shape[-1])
        blocks = ggml_blocks(codes.reshape(rows[0]), scales.reshape(rows[1]))
        self._ggml.backend_tensor_set(self._weight, blocks.ctypes.data, 0, blocks.nbytes)

    def _new_context(self) -> Any:
        return self._ggml.init(_InitParams(_CONTEXT_BYTES, None, True))

    def _new_weight(self, context: Any) -> Any:
        if len(self._shape) == 2:
            return self._ggml.new_tensor_2d(context, _MXFP4, *self._shape)
        return self._ggml.new_tensor_3d(context, _MXFP4, *self._shape)

    def _product(self, context: Any, weight: Any, rows: int) -> tuple[Any, Any]:
        """(the product of ``rows`` of A, A) as tensors without memory."""
        raise NotImplementedError

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
        weight = self._new_weight(context)
        ctypes.cast(weight, ctypes.POINTER(_TensorHead)).contents.buffer = buffer
        product, _ = self._product(context, weight, 1)
        supported = bool(self._ggml.backend_dev_supports_op(self._device, product))
        self._ggml.backend_buffer_free(buffer)
        self._ggml.free(context)
        return supported

    def _runner(self, context: Any, product: Any) -> Callable[[], None]:
        """What computes a product whose tensors are in ``context``; allocates them."""
        graph = self._ggml.new_graph(context)
        self._ggml.build_forward_expand(graph, product)
        self._ggml.backend_alloc_ctx_tensors_from_buft(
            context, self._ggml.backend_dev_buffer_type(self._device)
        )
        compute, backend = self._ggml.backend_graph_compute, self._backend

        def run() -> None:
            if status := compute(backend, graph):
                raise MxortError(f"ggml's computation ended with status {status}")

        return run

    def _set(self, tensor: Any, values: NDArray[Any]) -> None:
        values = np.ascontiguousarray(values)
        self._ggml.backend_tensor_set(tensor, values.ctypes.data, 0, values.nbytes)

    def _result(self, tensor: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The float32 that a product fills."""
        data = (ctypes.c_float * int(np.prod(shape))).from_address(self._ggml.get_data(tensor))
        return np.ctypeslib.as_array(data).reshape(shape)


class GgmlMatMul(_GgmlWeight):
    """Y [M, N] = A [M, K] . W^T."""

    def __init__(self, codes: NDArray[np.uint8], scales: NDArray[np.uint8], k: int, threads: int) -> None:
        if k % BLOCK_SIZE:
            raise MxortError(f"ggml's MXFP4 takes whole blocks of {BLOCK_SIZE}, got K {k}")
        super().__init__(codes, scales, threads)

    def _product(self, context: Any, weight: Any, rows: int) -> tuple[Any, Any]:
        a = self._ggml.new_tensor_2d(context, _F32, self._shape[0], rows)
        return self._ggml.mul_mat(context, weight, a), a

    def bind(self, a: NDArray[np.float32]) -> tuple[Callable[[], None], NDArray[np.float32]]:
        """(function that computes, float32 [M, N] that it fills) for A [M, K]."""
        context = self._new_context()
        product, rows = self._product(context, self._weight, len(a))
        run = self._runner(context, product)
        self._set(rows, a)
        return run, self._result(product, (len(a), self._shape[1]))


class GgmlExperts(_GgmlWeight):
    """Y [M, chosen, N] = A [M, 1 or chosen, K] . W[ids]^T, the experts of each row chosen anew for each call."""

    def _product(self, context: Any, weight: Any, rows: int) -> tuple[Any, Any]:
        product, a, _ = self._experts(context, weight, (rows, 1), 1)
        return product, a

    def _experts(self, context: Any, weight: Any, rows: tuple[int, int], chosen: int) -> tuple[Any, Any, Any]:
        a = self._ggml.new_tensor_3d(context, _F32, self._shape[0], rows[1], rows[0])
        ids = self._ggml.new_tensor_2d(context, _I32, chosen, rows[0])
        return self._ggml.mul_mat_id(context, weight, a, ids), a, ids

    def bind(
        self, a: NDArray[np.float32], ids: Callable[[], NDArray[np.int32]]
    ) -> tuple[Callable[[], float], NDArray[np.float32]]:
        """(function that computes with the ids [M, chosen] of that moment and returns its seconds, what it fills)."""
        context, chosen = self._new_context(), ids().shape[1]
        product, rows, which = self._experts(context, self._weight, a.shape[:2], chosen)
        run = self._runner(context, product)
        self._set(rows, a)

        def seconds() -> float:
            self._set(which, ids())
            start = time.perf_counter()
            run()
            return time.perf_counter() - start

        return seconds, self._result(product, (len(a), chosen, self._shape[1]))


class _TensorHead(ctypes.Structure):
    """The beginning of struct ggml_tensor."""

    _fields_ = (("type", ctypes.c_int), ("buffer", ctypes.c_void_p))
