"""Copies between views and gathers, of elements of every size; every instruction of them runs."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest

import device

WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.dtype((np.uint64, 2))}


@pytest.mark.parametrize("arch", device.ARCHITECTURES)
def test_copies_between_views(counting_machines, arch):
    """Transposes, repeats and one element, of 1 to 8 dimensions."""
    machine, rng = counting_machines(arch), np.random.default_rng(3)
    for size in WORDS:
        for dims, repeats in [
            ((5, 7, 31), False),
            ((1300,), False),
            ((2,) * 8, False),
            ((1,), False),
            ((9, 130), True),
        ]:
            x = rng.integers(0, 256, (*(dims[1:] if repeats else dims), size)).astype(np.uint8)
            elements = [int(np.prod(dims[d + 1 :], dtype=int)) for d in range(len(dims))]
            perm = tuple(reversed(range(len(dims)))) if not repeats else (0, 1)
            source = [0, 1] if repeats else [elements[p] for p in perm]
            out_dims = tuple(dims[p] for p in perm)
            to = [int(np.prod(out_dims[d + 1 :], dtype=int)) for d in range(len(dims))]
            sent, out = machine.sim.to_device(x), machine.sim.empty((*out_dims, size), np.uint8)
            count = math.prod(dims)
            args = device.views(out_dims, tuple(source), tuple(to)) + struct.pack(
                "<QQQ", sent.ptr, out.ptr, count
            )
            machine.module("strided").launch(f"copy_{size}", (-(-count // 1024),), (256,), [args])
            want = np.broadcast_to(x, (*dims, size)) if repeats else x.transpose(*perm, len(dims))
            np.testing.assert_array_equal(out.numpy(), want)
            sent.free()
            out.free()
        assert machine.unexecuted("strided", f"copy_{size}") == []


@pytest.mark.parametrize("arch", device.ARCHITECTURES)
def test_gathers(counting_machines, arch):
    """Along one axis and two, indices of either type, from the end, and such as do not exist, which give zeros."""
    machine, rng = counting_machines(arch), np.random.default_rng(4)
    for size in WORDS:
        for kind in (3, 4):
            x = rng.integers(1, 256, (6, 5, 70, size)).astype(np.uint8)
            index = np.array([[0, 4], [5, -1], [-6, 0], [6, 0], [2, -6], [1, 5]]).astype(
                {3: np.int64, 4: np.int32}[kind]
            )
            sent, indices = machine.sim.to_device(x), machine.sim.to_device(index)
            for axes in (2, 1):
                dims = (6, 70) if axes == 2 else (6, 5, 70)
                out = machine.sim.empty((*dims, size), np.uint8)
                strides = ((0, 1), (2, 0), (70, 1)) if axes == 2 else ((0, 70, 1), (2, 0, 0), (350, 70, 1))
                sizes, of_axes = [6, 5] + [0] * 6, [350, 70] + [0] * 6
                args = device.views(dims, *strides) + struct.pack(
                    "<QQQQIi8q8q",
                    sent.ptr,
                    indices.ptr,
                    out.ptr,
                    math.prod(dims),
                    axes,
                    kind,
                    *sizes,
                    *of_axes,
                )
                machine.module("strided").launch(
                    f"gather_{size}", (-(-math.prod(dims) // 1024),), (256,), [args]
                )
                got = out.numpy()
                for row, (i, j) in enumerate(index.astype(int)):
                    exists = -6 <= i < 6 and (axes == 1 or -5 <= j < 5)
                    want = (x[i, j] if axes == 2 else x[i]) if exists else np.zeros_like(got[row])
                    np.testing.assert_array_equal(got[row], want)
                out.free()
            sent.free()
            indices.free()
        assert machine.unexecuted_work("strided", f"gather_{size}") == []
