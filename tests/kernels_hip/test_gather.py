"""Gathers of quantised rows: every format, type and index type, bit for bit the formats' own decoding."""

from __future__ import annotations

import struct

import numpy as np
import pytest

import device
from mxort import formats

FORMATS = {
    "mxfp4": formats.E2M1,
    "mxfp6_e2m3": formats.E2M3,
    "mxfp6_e3m2": formats.E3M2,
    "mxfp8_e4m3": formats.E4M3,
    "mxint8": formats.INT8,
}


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes [rows, k] one after the other from the lowest bit on."""
    stream = (codes[..., None] >> np.arange(bits)) & 1
    return np.packbits(stream.reshape(len(codes), -1).astype(np.uint8), axis=1, bitorder="little")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("arch", device.ARCHITECTURES)
def test_rows_are_bit_equal_and_every_instruction_runs(counting_machines, arch, name):
    machine = counting_machines(arch)
    for dtype in device.TYPES:
        check(machine, dtype, name)
    assert machine.unexecuted("gather_mx", f"gather_{name}") == []


def check(machine: device.Device, dtype: str, name: str) -> None:
    rng = np.random.default_rng(3)
    bits = {"mxfp4": 4, "mxfp6_e2m3": 6, "mxfp6_e3m2": 6}.get(name, 8)
    rows, blocks, k, wide = 7, 33, 33 * 32 - 5, dtype != "float16"
    codes = rng.integers(0, 2**bits, (rows, blocks * 32)).astype(np.uint8)
    codes[0, :256] = np.arange(256) % 2**bits  # all of them
    scales = rng.integers(110, 140, (rows, blocks)).astype(np.uint8)
    scales[1, :3] = 0, 254, 255
    multiplier = device.to_bytes(rng.uniform(0.5, 2, rows).astype(np.float32), dtype)
    indices = np.array(
        [0, 6, -1, 1, -7, 0, 7, -8], np.int64 if wide else np.int32
    )  # the last two do not exist
    arrays = [machine.sim.to_device(x) for x in (indices, packed(codes, bits), scales, multiplier)]
    kind = np.uint16 if dtype == "bfloat16" else device.TYPES[dtype]
    y = machine.sim.empty((len(indices), k), kind)
    args = struct.pack(
        "<QQQQQQqIIii", *(a.ptr for a in arrays), y.ptr, len(indices), rows, k, 3, wide, list(device.TYPES).index(dtype)
    )  # fmt: skip
    machine.module("gather_mx").launch(f"gather_{name}", (-(-k // 1024), 3), (256,), [args])

    with np.errstate(over="ignore", invalid="ignore"):
        scale = np.where(scales == 255, np.nan, np.exp2(scales.astype(np.float64) - 127)).astype(np.float32)
        values = FORMATS[name].decode(codes).astype(np.float32) * np.repeat(scale, 32, axis=1)
        table = device.to_bytes(values * device.from_bytes(multiplier, dtype)[:, None], dtype)[:, :k]
    expected = device.from_bytes(table[[0, 6, 6, 1, 0, 0]], dtype)
    got = device.from_bytes(y.numpy(), dtype)
    np.testing.assert_array_equal(got[:-2], expected)
    assert np.isnan(got[-2:]).all()
    for array in (*arrays, y):
        array.free()
