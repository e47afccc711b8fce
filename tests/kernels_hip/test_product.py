"""Products of two tensors: every kernel, type, access and tail, on both architectures, against a product in double."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from gpu_oracle import FLOAT16_TINY, FP32_EPSILON, OUTPUT_EPSILON
from numpy.typing import NDArray

import device

ELEMENTS, ALONG_ROWS, ALONG_K = range(3)
TILES = {"64x64": (64, 64), "128x128": (128, 128), "256x256": (256, 256)}
BATCH_DIMENSIONS = 3


def skinny_columns(kernel: str, dtype: str) -> int:
    return 128 if kernel == "skinny_rows" and dtype != "float" else 64


@dataclass
class Product:
    """C = alpha A B + beta bias with A [batch..., M, K] and B [batch..., K, N] as views of any strides, bias [M, N]."""

    a: NDArray[Any]
    b: NDArray[Any]
    dtype: str
    bias: NDArray[Any] | None = None
    alpha: float = 1.0
    beta: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        batch = np.broadcast_shapes(self.a.shape[:-2], self.b.shape[:-2])
        return (*batch, self.a.shape[-2], self.b.shape[-1])

    def expected(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The result in double, and the error that a sum in float allows: one rounding of at most epsilon times the sum
        of magnitudes for each of K additions, for alpha, beta, the bias and the splits (at most 8); then the result is
        rounded to its type."""
        a, b = (device.from_bytes(x, self.dtype).astype(np.float64) for x in (self.a, self.b))
        with np.errstate(invalid="ignore"):
            y, magnitude = self.alpha * (a @ b), abs(self.alpha) * (np.abs(a) @ np.abs(b))
            if self.bias is not None:
                bias = self.beta * device.from_bytes(self.bias, self.dtype).astype(np.float64)
                y, magnitude = y + bias, magnitude + np.abs(bias)
        tiny = FLOAT16_TINY if self.dtype == "float16" else 0
        sums = (self.a.shape[-1] + 12) * FP32_EPSILON * magnitude
        return y, sums + OUTPUT_EPSILON[self.dtype] * (np.abs(y) + sums) + tiny

    def run(
        self, machine: device.Device, kernel: str, access: tuple[int, int], splits: int = 1
    ) -> NDArray[np.float32]:
        arrays: list[Any] = []

        def upload(view: NDArray[Any] | None) -> tuple[int, list[int]]:
            """Address of a view's first element and its strides in elements; its whole base goes to the device."""
            if view is None:
                return 0, [0, 0]
            base = view
            while isinstance(base.base, np.ndarray):
                base = base.base
            if base.size == 0:
                base = np.zeros(4, base.dtype)
            arrays.append(machine.sim.to_device(base))
            offset = view.__array_interface__["data"][0] - base.__array_interface__["data"][0]
            return arrays[-1].ptr + (offset if view.size else 0), [s // view.itemsize for s in view.strides]

        *batch, m, n = self.shape
        k, batches = self.a.shape[-1], int(np.prod(batch, dtype=int))
        extents = [1] * (BATCH_DIMENSIONS - len(batch)) + list(batch)

        def operand(view: NDArray[Any], how: int) -> bytes:
            full = np.broadcast_to(view, (*extents, *view.shape[-2:]))
            address, strides = upload(view)
            strides = [s // view.itemsize for s in full.strides[:BATCH_DIMENSIONS]] + strides[-2:]
            rows, inner = strides[-2:] if view is self.a else strides[:-3:-1]
            return struct.pack("<Qqqqqqii", address, rows, inner, *strides[:3], how, 0)

        rows, columns = TILES[kernel] if kernel in TILES else (16, skinny_columns(kernel, self.dtype))
        tiles = (-(-m // rows), -(-n // columns))
        step = -(-k // splits // 64) * 64 or 64
        splits = max(1, -(-k // step))
        kind = np.uint16 if self.dtype == "bfloat16" else device.TYPES[self.dtype]
        c = machine.sim.empty((batches, m, n), kind)
        partial = machine.sim.empty((splits, batches, m, n), np.float32)
        bias, (bias_row, bias_column) = upload(self.bias)
        args = operand(self.a, access[0]) + operand(self.b, access[1])
        args += struct.pack(
            "<QQQqq10Iff", bias, c.ptr, partial.ptr, bias_row, bias_column, extents[1], extents[2], batches, m, n, k,
            step if splits > 1 else k, splits, *tiles, self.alpha, self.beta,
        )  # fmt: skip
        grid = (batches * tiles[0] * tiles[1], splits)
        machine.module("product").launch(f"product_{self.dtype}_{kernel}", grid, (256,), [args])
        if splits > 1:
            args = struct.pack(
                "<QQQqqIIIIffi4x", partial.ptr, bias, c.ptr, bias_row, bias_column, batches * m * n, m, n, splits,
                self.alpha, self.beta, list(device.TYPES).index(self.dtype),
            )  # fmt: skip
            machine.module("product").launch("product_reduce", (-(-batches * m * n // 256),), (256,), [args])
        out = device.from_bytes(c.numpy(), self.dtype).reshape(self.shape)
        for array in (*arrays, c, partial):
            array.free()
        return out

    def check(self, machine: device.Device, kernel: str, access: tuple[int, int], splits: int = 1) -> None:
        y, (expected, allowed) = self.run(machine, kernel, access, splits), self.expected()
        error = np.abs(y - expected)
        assert y.shape == expected.shape
        assert (error <= allowed).all(), (
            f"{np.sum(error > allowed)} of {error.size} outputs beyond the tolerance, first at "
            f"{np.argwhere(error > allowed)[0]}"
        )


def numbers(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    return device.to_bytes(rng.standard_normal(shape).astype(np.float32), dtype)


def matrix(rng: np.random.Generator, rows: int, k: int, how: int, dtype: str) -> NDArray[Any]:
    """[rows, k] whose memory suits an access: K last, rows last, or every other element of an odd pitch."""
    if how == ALONG_K:
        return numbers(rng, (rows, k + 8), dtype)[:, 8:]
    if how == ALONG_ROWS:
        return numbers(rng, (k, rows), dtype).T
    return numbers(rng, (rows, 2 * k + 1), dtype)[:, 1::2]


ACCESSES = [
    (ALONG_K, ALONG_ROWS),
    (ALONG_K, ALONG_K),
    (ALONG_ROWS, ALONG_K),
    (ALONG_K, ELEMENTS),
    (ELEMENTS, ELEMENTS),
]
KERNELS = [
    pytest.param(arch, kernel, dtype, id=f"{arch}-{dtype}-{kernel}")
    for arch in device.ARCHITECTURES
    for kernel in TILES
    for dtype in device.TYPES
    if kernel != "256x256" or (arch == "gfx950" and dtype != "float")
]


@pytest.mark.parametrize("arch, kernel, dtype", KERNELS)
def test_tiles_with_tails_and_every_instruction_runs(counting_machines, arch, kernel, dtype):
    """Tiles of which all but the first are a rest; three stages and a rest (of the largest two), and less than one."""
    machine, side = counting_machines(arch), TILES[kernel][0]
    rng = np.random.default_rng(5)
    for access in ACCESSES:
        odd = access == (ELEMENTS, ELEMENTS)
        whole = 72 if kernel == "256x256" else 208
        more, less = (side + 12, side + 12), (side - 4, side - 8)
        for (m, n), k, splits in ((more, whole, 1), ((20, 36), 24, 1), (less, whole, 2)):
            n, k = n - odd, k + 3 * odd  # where no four columns are stored at once
            a, b = matrix(rng, m, k, access[0], dtype), matrix(rng, n, k, access[1], dtype).T
            bias = np.broadcast_to(numbers(rng, (n,), dtype), (m, n)) if m > side else None
            Product(a, b, dtype, bias, alpha=0.75, beta=-2).check(machine, kernel, access, splits)
    a, b, bias = (numbers(rng, shape, dtype) for shape in ((3, 0), (0, 8), (3, 8)))  # no K leaves the bias
    Product(a, b, dtype, bias).check(machine, kernel, (ALONG_K, ALONG_ROWS))
    assert machine.unexecuted_work("product", f"product_{dtype}_{kernel}") == []


@pytest.mark.parametrize("dtype", device.TYPES)
@pytest.mark.parametrize("arch", device.ARCHITECTURES)
def test_skinny_and_every_instruction_runs(counting_machines, arch, dtype):
    machine, rng = counting_machines(arch), np.random.default_rng(6)
    for kernel, how in (("skinny_k", ALONG_K), ("skinny_rows", ALONG_ROWS)):
        for m, of_a, rest in ((16, ALONG_K, 24), (3, ELEMENTS, 24), (5, ALONG_K, 23)):
            n, k = skinny_columns(kernel, dtype) + rest, 600
            if rest == 23 and how == ALONG_ROWS:  # rows that no wide load takes are others' to read
                continue
            a, b = matrix(rng, m, k, of_a, dtype), matrix(rng, n, k, how, dtype).T
            bias = np.broadcast_to(numbers(rng, (m, 1), dtype), (m, n)) if m != 3 else None
            for splits in (1, 3):
                Product(a, b, dtype, bias, alpha=2).check(machine, kernel, (of_a, how), splits)
    for kernel in ("skinny_k", "skinny_rows"):
        assert machine.unexecuted("product", f"product_{dtype}_{kernel}") == []
    for other in device.TYPES:  # the sum of splits is of every type
        a, b = matrix(rng, 3, 600, ALONG_K, other), matrix(rng, 5, 600, ALONG_K, other).T
        Product(a, b, other).check(machine, "skinny_k", (ALONG_K, ALONG_K), 3)
        Product(a, b, other, numbers(rng, (3, 5), other)).check(machine, "skinny_k", (ALONG_K, ALONG_K), 3)
    assert machine.unexecuted("product", "product_reduce") == []


@pytest.mark.parametrize("kernel", ["64x64", "skinny_k"])
@pytest.mark.parametrize("arch", device.ARCHITECTURES)
def test_batches_are_views(machines, arch, kernel):
    """Heads out of [batch, sequence, heads, size], Q K^T, and a dimension that only one side has."""
    rng = np.random.default_rng(7)
    q = numbers(rng, (2, 5, 3, 16), "float16").transpose(0, 2, 1, 3)[:, None]
    k = numbers(rng, (2, 7, 3, 16), "float16").transpose(0, 2, 3, 1)[:, None]
    k = np.broadcast_to(k, (2, 2, 3, 16, 7))
    Product(q, k, "float16").check(machines(arch), kernel, (ALONG_K, ALONG_K))


@pytest.mark.parametrize("dtype", device.TYPES)
def test_split_tiles_add_in_a_fixed_order(machines, dtype):
    rng = np.random.default_rng(8)
    a, b = matrix(rng, 20, 512, ALONG_K, dtype), matrix(rng, 36, 512, ALONG_K, dtype).T
    bias = numbers(rng, (20, 36), dtype)
    product = Product(a, b, dtype, bias, alpha=-1, beta=0.5)
    machine = machines("gfx950")
    product.check(machine, "64x64", (ALONG_K, ALONG_K), splits=4)
    first, second = (product.run(machine, "64x64", (ALONG_K, ALONG_K), splits=4) for _ in range(2))
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("kernel", ["64x64", "skinny_k", "skinny_rows"])
@pytest.mark.parametrize("arch", device.ARCHITECTURES)
def test_no_k_leaves_the_bias(machines, arch, kernel):
    a, b = np.zeros((3, 0), np.float32), np.zeros((0, 8), np.float32)
    bias = np.broadcast_to(np.float32([[1], [2], [3]]), (3, 8))
    y = Product(a, b, "float", bias, beta=3).run(machines(arch), kernel, (ALONG_K, ALONG_ROWS))
    np.testing.assert_array_equal(y, 3 * bias)
    assert not Product(a, b, "float").run(machines(arch), kernel, (ALONG_K, ALONG_ROWS)).any()


@pytest.mark.parametrize("kernel", ["64x64", "128x128", "skinny_k"])
@pytest.mark.parametrize("dtype", device.TYPES)
@pytest.mark.parametrize("arch", device.ARCHITECTURES)
def test_infinities_and_nans_stay_in_their_rows_and_columns(machines, arch, dtype, kernel):
    rng = np.random.default_rng(9)
    a, b = rng.standard_normal((6, 40)).astype(np.float32), rng.standard_normal((40, 9)).astype(np.float32)
    a[1, 39], a[2, 0], a[2, 39], a[3, 5] = np.inf, np.inf, -np.inf, np.nan
    b[7, 4], b[5, 2] = -np.inf, 0
    b[39, 1] = 0  # infinity times zero
    product = Product(device.to_bytes(a, dtype), np.ascontiguousarray(device.to_bytes(b, dtype).T).T, dtype)
    y, (expected, _) = product.run(machines(arch), kernel, (ALONG_K, ALONG_K)), product.expected()
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    special = ~np.isfinite(expected)
    np.testing.assert_array_equal(y[special], expected[special])
    assert np.isnan(expected[1, 1]) and np.isposinf(np.abs(expected[1, 0])) and np.isfinite(y[0, 0])


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("arch", device.ARCHITECTURES)
def test_patches_of_images_and_every_instruction_runs(counting_machines, arch, size):
    """What a window of 2 x 3 sees of images of 6 x 7, strided, dilated and padded."""
    machine, rng = counting_machines(arch), np.random.default_rng(11)
    stride, pad, dilation, output = (2, 1), (1, 1), (1, 2), (4, 5)
    x = rng.integers(1, 2 ** (8 * size), (2, 3, 6, 7)).astype(f"u{size}")
    sent, columns = machine.sim.to_device(x), machine.sim.empty((2, 18, 20), x.dtype)
    args = struct.pack("<QQ14I", sent.ptr, columns.ptr, 3, 6, 7, 2, 3, *output, *stride, *pad, *dilation, 360)
    machine.module("product").launch(f"patches_{size}", (2, 2), (256,), [args])
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows = np.arange(4)[:, None, None, None] * 2 + np.arange(2)[:, None]  # [y, 1, i, 1]
    along = np.arange(5)[:, None, None] + np.arange(3) * 2  # [x, 1, j]
    want = padded[:, :, rows, along].transpose(0, 1, 4, 5, 2, 3).reshape(2, 18, 20)
    np.testing.assert_array_equal(columns.numpy(), want)
    assert machine.unexecuted("product", f"patches_{size}") == []
