"""Quantisation of A on the device, bit for bit, and the layouts of both operands, written a second time in numpy."""

import numpy as np
import pytest
from gpu_oracle import Problem

import device
from device import Spec
from mxort import formats, scales

LANE_BYTES = {"mxfp4": 16, "mxfp6_e2m3": 24, "mxfp6_e3m2": 24, "mxfp8_e4m3": 32, "none": 64}
RECORD_ROWS, STEP = 64, 128


def lane_codes(fmt: str, fragment: np.ndarray) -> np.ndarray:
    """Bytes of a fragment [64 lanes, bytes] -> codes [16 rows, 128 k], by the instruction's operand tables."""
    out = np.empty((16, STEP), np.uint8)
    bits = np.unpackbits(fragment, axis=1, bitorder="little")
    width = formats.ACTIVATION_FORMATS[fmt].bits
    codes = np.packbits(bits.reshape(64, -1, width), axis=2, bitorder="little")[..., 0]
    for lane in range(64):
        row, group = lane % 16, lane // 16
        if fmt == "mxfp8_e4m3":
            out[row, 16 * group : 16 * group + 16] = codes[lane, :16]
            out[row, 64 + 16 * group : 64 + 16 * group + 16] = codes[lane, 16:]
        else:
            out[row, 32 * group : 32 * group + 32] = codes[lane]
    return out


def fragments(fmt: str, codes: np.ndarray) -> list[np.ndarray]:
    """Code bytes of a record -> four fragments [64 lanes, bytes]."""
    slots = codes.reshape(-1, 64, 16)
    if LANE_BYTES[fmt] != 24:
        each = LANE_BYTES[fmt] // 16
        return [np.concatenate(list(slots[each * f : each * f + each]), axis=1) for f in range(4)]
    out = []
    for pair in (0, 3):
        both = np.concatenate(list(slots[pair : pair + 3]), axis=1)  # 48 bytes a lane
        out += [both[:, :24], both[:, 24:]]
    return out


def unpack(fmt: str, records: np.ndarray, panels: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Records -> codes [panels * 64, steps * 128], scales [panels * 64, steps * 4]."""
    records = records.reshape(panels, steps, 256 + 4 * 64 * LANE_BYTES[fmt])
    codes = np.empty((panels * 64, steps * STEP), np.uint8)
    exponents = np.empty((panels * 64, steps * 4), np.uint8)
    for p in range(panels):
        for s in range(steps):
            scale = records[p, s, :256].reshape(4, 16, 4)  # block, row, fragment
            for f, data in enumerate(fragments(fmt, records[p, s, 256:])):
                rows = slice(p * 64 + 16 * f, p * 64 + 16 * f + 16)
                codes[rows, s * STEP : (s + 1) * STEP] = lane_codes(fmt, data)
                exponents[rows, 4 * s : 4 * s + 4] = scale[:, :, f].T
    return codes, exponents


def unpack_bf16(records: np.ndarray, panels: int, steps: int, terms: int) -> np.ndarray:
    """bf16 records -> bits [terms, panels * 64, steps * 128]."""
    r = records.view(np.uint16).reshape(panels, steps, terms, 4, 4, 4, 16, 8)  # fragment, slot, block, row, k
    return r.transpose(2, 0, 3, 6, 1, 5, 4, 7).reshape(terms, panels * 64, steps * STEP)


def special_rows(k: int) -> np.ndarray:
    """Rows of floats that reach every branch of the scale rule and of rounding."""
    rng = np.random.default_rng(7)
    rows = [rng.standard_normal(k) * 10.0**e for e in (-45, -38, -20, 0, 3, 30, 38)]
    rows += [
        np.zeros(k),
        np.full(k, -0.0),
        np.tile([6.0, -7.0, 0.25, -0.25, 5.0, 2.5, 1.25, 0.75], -(-k // 8))[:k],
    ]
    for bad in (np.nan, np.inf, -np.inf):
        row = rng.standard_normal(k)
        row[rng.integers(k)] = bad
        rows.append(row)
    with np.errstate(over="ignore"):
        return np.array(rows).astype(np.float32)


def expected(fmt: str, x: np.ndarray, panels: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    blocks = np.zeros((panels * 64, steps * STEP), np.float32)
    blocks[: x.shape[0], : x.shape[1]] = x
    codes, exponents = scales.quantize_blocks(
        formats.to_blocks(blocks), formats.ACTIVATION_FORMATS[fmt], "even"
    )
    return codes.reshape(blocks.shape), exponents


def rotate(a: np.ndarray, rotation: int) -> np.ndarray:
    with np.errstate(all="ignore"):
        return formats.hadamard_rotate(a, rotation)


def prepared(machine, spec, a):
    """By a kernel that takes records, whatever the selection has for these rows."""
    others = (row["name"] for row in device.gemm_rows() if not row["direct"])
    plan = next(filter(None, (device.plan(spec, name) for name in others)))
    records = machine.prepare(spec, plan, a).numpy()
    return plan, records, -(-spec.m // RECORD_ROWS), plan["steps"]


@pytest.mark.parametrize("dtype", device.TYPES)
@pytest.mark.parametrize("rotation", [1, 32, 64, 128])
@pytest.mark.parametrize("fmt", [f for f in device.FORMATS if f != "none"])
def test_quantised_operands_bit_for_bit(machines, fmt, rotation, dtype):
    for k in (rotation * 3 if rotation > 1 else 93, 384):
        with np.errstate(over="ignore"):
            a = device.to_bytes(special_rows(k), dtype)
        a = np.tile(a, (6, 1))[:70]  # more than a panel
        spec = Spec(len(a), k, 16, dtype, fmt, rotation)
        _, records, panels, steps = prepared(machines("gfx950"), spec, a)
        codes, exponents = unpack(fmt, records, panels, steps)
        want_codes, want_exponents = expected(
            fmt, rotate(device.from_bytes(a, dtype), rotation), panels, steps
        )
        np.testing.assert_array_equal(exponents, want_exponents)
        np.testing.assert_array_equal(codes, want_codes)


@pytest.mark.parametrize("fmt", [f for f in device.FORMATS if f != "none"])
def test_every_bfloat16_is_quantised_as_numpy_does(machines, fmt):
    a = np.arange(65536, dtype=np.uint16).reshape(64, 1024)
    _, records, panels, steps = prepared(machines("gfx950"), Spec(64, 1024, 16, "bfloat16", fmt), a)
    codes, exponents = unpack(fmt, records, panels, steps)
    want_codes, want_exponents = expected(fmt, device.from_bytes(a, "bfloat16"), panels, steps)
    np.testing.assert_array_equal(exponents, want_exponents)
    np.testing.assert_array_equal(codes, want_codes)


@pytest.mark.parametrize("fmt", [f for f in device.FORMATS if f != "none"])
@pytest.mark.parametrize("rotation", [1, 64])
def test_gfx942_emulates_the_same_numbers(machines, fmt, rotation):
    a = special_rows(192)[2:]  # scales of 1e-38 values are beyond bf16's normal range
    spec = Spec(len(a), 192, 16, "float", fmt, rotation, arch="gfx942")
    _, records, panels, steps = prepared(machines("gfx942"), spec, a)
    values = device.from_bytes(unpack_bf16(records, panels, steps, 1)[0], "bfloat16")
    codes, exponents = expected(fmt, rotate(a, rotation), panels, steps)
    element = formats.ACTIVATION_FORMATS[fmt]
    with np.errstate(invalid="ignore"):
        want = formats.to_blocks(element.decode(codes)) * formats.scale_value(exponents)[..., None]
    np.testing.assert_array_equal(values, want.reshape(values.shape))


@pytest.mark.parametrize("arch", device.ARCHITECTURES)
@pytest.mark.parametrize("dtype", device.TYPES)
def test_bf16_terms_hold_every_value(machines, arch, dtype):
    a = device.to_bytes(special_rows(96)[2:6], dtype)
    plan, records, panels, steps = prepared(
        machines(arch), Spec(len(a), 96, 16, dtype, "none", 1, 1, arch), a
    )
    assert plan["terms"] == {"float": 3, "float16": 2, "bfloat16": 1}[dtype]
    terms = device.from_bytes(unpack_bf16(records, panels, steps, plan["terms"]), "bfloat16").astype(
        np.float64
    )
    np.testing.assert_array_equal(
        terms.sum(axis=0)[: len(a), :96], device.from_bytes(a, dtype).astype(np.float64)
    )


PREPARATIONS: dict[
    tuple[str, str], list[tuple[str, int]]
] = {}  # (architecture, kernel) -> formats and levels
for _arch in device.ARCHITECTURES:
    for _fmt, _level in (("none", 1), ("none", 3), *((f, 3) for f in device.FORMATS if f != "none")):
        _kernel = device.plan(Spec(70, 384, 24, "float", _fmt, 1, _level, _arch))["prepare"]
        PREPARATIONS.setdefault((_arch, _kernel), []).append((_fmt, _level))


@pytest.mark.parametrize("arch, kernel", PREPARATIONS)
def test_every_instruction_of_the_preparation_runs(counting_machines, arch, kernel):
    """As the product shows it: K of every alignment that loads differ by, with each rotation; a panel and a ragged
    one."""
    machine = counting_machines(arch)
    for fmt, level in PREPARATIONS[arch, kernel]:
        for dtype in device.TYPES:
            for rotation, k in ((1, 5), (1, 93), (1, 333), (1, 384), (32, 96), (64, 192), (128, 384)):
                problem = Problem(Spec(70, k, 24, dtype, fmt, rotation, level, arch))
                problem.check(problem.run(machine))
    assert machine.unexecuted("prepare", kernel) == []


@pytest.mark.parametrize("arch", device.ARCHITECTURES)
def test_every_instruction_of_the_sum_of_splits_runs(counting_machines, arch):
    """Each type; less than a workgroup's 256 columns, more, and an odd number of them."""
    machine = counting_machines(arch)
    for dtype in device.TYPES:
        for n in (72, 300, 5):
            problem = Problem(Spec(7, 32 * 41, n, dtype, "none", 1, 1, arch))
            problem.check(problem.run(machine, "gemm_bf16_skinny", 3))
    assert machine.unexecuted("prepare", "reduce") == []


@pytest.mark.parametrize("n, k", [(1, 1), (64, 128), (70, 416), (200, 96)])
def test_preshuffled_weights(n, k):
    rng = np.random.default_rng(3)
    blocks, panels, steps = formats.blocks_of(k), -(-n // 64), -(-k // 128)
    codes = rng.integers(0, 256, (n, blocks * 16)).astype(np.uint8)
    exponents = rng.integers(0, 256, (n, blocks)).astype(np.uint8)
    got_codes, got_exponents = unpack("mxfp4", device.preshuffle(codes, exponents, k), panels, steps)
    # Row r of fragment i computes column 16 (r / 4) + 4 i + r % 4 of its panel.
    fragment, row = np.arange(64) // 16, np.arange(64) % 16
    column = 16 * (row // 4) + 4 * fragment + row % 4
    assert sorted(column) == list(range(64))
    want_codes = np.zeros((panels * 64, steps * STEP), np.uint8)
    want_exponents = np.zeros((panels * 64, steps * 4), np.uint8)
    want_codes[:n, : blocks * 32] = formats.unpack_nibbles(codes)
    want_exponents[:n, :blocks] = exponents
    order = (np.arange(panels)[:, None] * 64 + column).ravel()
    np.testing.assert_array_equal(got_codes, want_codes[order])
    np.testing.assert_array_equal(got_exponents, want_exponents[order])
