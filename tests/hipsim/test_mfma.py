"""Matrix instructions against a numpy model of the operand layout tables (docs/mi355x.md)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from hipsim import harness
from hipsim.snippet import as_f32, run_lanes
from mxort import formats

# Index = cbsz / blgp code.
FORMATS = [formats.E4M3, formats.E5M2, formats.E2M3, formats.E3M2, formats.E2M1]
REGISTERS = [8, 8, 6, 6, 4]
SHAPES = {16: 128, 32: 64}


def place_operand(codes: NDArray[np.uint8], code_format: int, m: int) -> NDArray[np.uint32]:
    """Codes [m, k] -> registers [8, 6 or 4, 64]: FP8 in two runs of 16, FP6 and FP4 contiguous."""
    k = SHAPES[m]
    bits = FORMATS[code_format].bits
    lanes = np.zeros((64, REGISTERS[code_format] * 32), np.uint8)  # single bits
    for lane in range(64):
        row, group = lane % m, lane // m
        for e in range(32):
            if bits == 8:
                register, byte = divmod(e, 4)
                column = 16 * group + e if register < 4 else k // 2 + 16 * group + e - 16
                assert e == 4 * register + byte
            else:
                column = 32 * group + e
            for b in range(bits):
                lanes[lane, bits * e + b] = codes[row, column] >> b & 1
    return np.packbits(lanes, axis=1, bitorder="little").view("<u4").T.copy()


def place_scales(scales: NDArray[np.uint8], m: int) -> NDArray[np.uint8]:
    """Scale bytes [m, blocks] -> one byte per lane: lane m * block + row."""
    return scales.T.reshape(64).copy()


def result_matrix(registers: NDArray[np.uint32], m: int) -> NDArray[np.float32]:
    out = np.empty((m, m), np.float32)
    values = as_f32(registers)
    for i, lane in itertools.product(range(len(registers)), range(64)):
        row = 4 * (lane // 16) + i if m == 16 else 8 * (i // 4) + 4 * (lane // 32) + i % 4
        out[row, lane % m] = values[i, lane]
    return out


def place_result(c: NDArray[np.float32], m: int) -> NDArray[np.uint32]:
    out = np.empty((m * m // 64, 64), np.float32)
    for i, lane in itertools.product(range(len(out)), range(64)):
        row = 4 * (lane // 16) + i if m == 16 else 8 * (i // 4) + 4 * (lane // 32) + i % 4
        out[i, lane] = c[row, lane % m]
    return out.view(np.uint32)


def random_codes(rng: np.random.Generator, code_format: int, m: int) -> NDArray[np.uint8]:
    fmt = FORMATS[code_format]
    codes = rng.integers(0, 1 << fmt.bits, (m, SHAPES[m]), dtype=np.uint8)
    return np.where(np.isfinite(fmt.values[codes]), codes, 0).astype(np.uint8)


def expected(
    a: NDArray, fa: int, sa: NDArray, b: NDArray, fb: int, sb: NDArray, c: NDArray
) -> NDArray[np.float64]:
    def values(codes: NDArray, code_format: int, scales: NDArray) -> NDArray[np.float64]:
        v = FORMATS[code_format].values.astype(np.float64)[codes]
        return v * np.repeat(np.ldexp(1.0, scales.astype(np.int64) - 127), 32, axis=1)

    return c.astype(np.float64) + values(a, fa, sa) @ values(b, fb, sb).T


def run_scaled(
    sim: harness.Sim, m: int, fa: int, fb: int, opsel: tuple[int, int], seed: int, accumulator: str = "v"
) -> None:
    rng = np.random.default_rng(seed)
    a, b = random_codes(rng, fa, m), random_codes(rng, fb, m)
    blocks = SHAPES[m] // 32
    words = rng.integers(100, 150, (2, 4, m, blocks), dtype=np.uint8)  # 4 bytes per operand, one is used
    c = rng.standard_normal((m, m)).astype(np.float32)
    scale_registers = [
        sum(place_scales(words[o, byte], m).astype(np.uint32) << (8 * byte) for byte in range(4))
        for o in range(2)
    ]
    ra, rb, rc = place_operand(a, fa, m), place_operand(b, fb, m), place_result(c, m)
    na, nb, nc = len(ra), len(rb), len(rc)
    va, vb = 10, 10 + na
    vc, vs = vb + nb + (vb + nb) % 2, vb + nb + (vb + nb) % 2 + nc
    pad = [np.zeros(64, np.uint32)] * ((vb + nb) % 2)
    inputs = [*ra, *rb, *pad, *rc, *scale_registers]
    # PR 140183: byte of A = op_sel[0] + 2 op_sel_hi[0], byte of B = op_sel[1] + 2 op_sel_hi[1]
    low, high = [s & 1 for s in opsel], [s >> 1 for s in opsel]
    shape = f"{m}x{m}x{SHAPES[m]}"
    d = f"{accumulator}[100:{99 + nc}]"
    body = (
        f"v_mfma_scale_f32_{shape}_f8f6f4 {d}, v[{va}:{va + na - 1}], "
        f"v[{vb}:{vb + nb - 1}], v[{vc}:{vc + nc - 1}], "
        f"v{vs}, v{vs + 1} op_sel:[{low[0]},{low[1]},0] op_sel_hi:[{high[0]},{high[1]},0] cbsz:{fa} blgp:{fb}"
    )
    outputs = [f"v{100 + i}" for i in range(nc)]
    if accumulator == "a":
        body = body.replace(f"v[{vc}:{vc + nc - 1}]", d)
        moves = [f"v_accvgpr_write_b32 a{100 + i}, v{vc + i}" for i in range(nc)]
        body = "\n".join([*moves, body, *(f"v_accvgpr_read_b32 v{100 + i}, a{100 + i}" for i in range(nc))])
    got = result_matrix(run_lanes(sim, body, inputs, outputs), m)
    want = expected(a, fa, words[0, opsel[0]], b, fb, words[1, opsel[1]], c)
    np.testing.assert_allclose(got, want, rtol=2e-7, atol=0)


@pytest.mark.parametrize("m", [16, 32])
@pytest.mark.parametrize("fa", range(5))
@pytest.mark.parametrize("fb", range(5))
def test_formats(sim: harness.Sim, m: int, fa: int, fb: int) -> None:
    run_scaled(sim, m, fa, fb, (fa % 4, fb % 4), seed=fa * 5 + fb)


@pytest.mark.parametrize("m", [16, 32])
@pytest.mark.parametrize("opsel", list(itertools.product(range(4), range(4))))
def test_opsel(sim: harness.Sim, m: int, opsel: tuple[int, int]) -> None:
    run_scaled(sim, m, 4, 4, opsel, seed=opsel[0] * 4 + opsel[1])


@pytest.mark.parametrize("m", [16, 32])
def test_accumulation_registers(sim: harness.Sim, m: int) -> None:
    run_scaled(sim, m, 4, 2, (1, 2), seed=77, accumulator="a")


@pytest.mark.parametrize("m", [16, 32])
@pytest.mark.parametrize("code_format", range(5))
def test_every_code(sim: harness.Sim, m: int, code_format: int) -> None:
    """Each code of a format, alone in its product: specials too."""
    fmt = FORMATS[code_format]
    k = SHAPES[m]
    for first in range(0, 1 << fmt.bits, m):
        codes = np.zeros((m, k), np.uint8)
        codes[:, 3] = np.arange(first, first + m) % (1 << fmt.bits)
        ones = np.zeros((m, k), np.uint8)
        ones[:, 3] = FORMATS[4].encode(1.0)
        inputs = [
            *place_operand(codes, code_format, m),
            *place_operand(ones, 4, m),
            np.full(64, 0x7F7F7F7F, np.uint32),
        ]
        n = REGISTERS[code_format]
        nc = m * m // 64
        body = (
            f"v_mfma_scale_f32_{m}x{m}x{k}_f8f6f4 v[100:{99 + nc}], v[10:{9 + n}], v[{10 + n}:{13 + n}], 0, "
            f"v{14 + n}, v{14 + n} op_sel_hi:[0,0,0] cbsz:{code_format} blgp:4"
        )
        got = result_matrix(run_lanes(sim, body, inputs, [f"v{100 + i}" for i in range(nc)]), m)
        want = fmt.values[codes[:, 3]]
        np.testing.assert_array_equal(got, np.repeat(want[:, None], m, axis=1))


def test_scale_extremes(sim: harness.Sim) -> None:
    """Byte 0 is 2^-127, 254 is 2^127, 255 is NaN for its block's row only."""
    m, k = 16, 128
    a = np.full((m, k), FORMATS[4].encode(1.0), np.uint8)
    sa = np.full((m, 4), 127, np.uint8)
    sa[2], sa[3], sa[5, 1] = 0, 254, 255
    sb = np.full((m, 4), 127, np.uint8)
    sb[:, :] = 120
    inputs = [
        *place_operand(a, 4, m),
        place_scales(sa, m).astype(np.uint32),
        place_scales(sb, m).astype(np.uint32),
    ]
    body = (
        "v_mfma_scale_f32_16x16x128_f8f6f4 v[100:103], v[10:13], v[10:13], 0, v14, "
        "v15 op_sel_hi:[0,0,0] cbsz:4 blgp:4"
    )
    got = result_matrix(run_lanes(sim, body, inputs, [f"v{100 + i}" for i in range(4)]), m)
    assert np.isnan(got[5]).all()
    assert not np.isnan(np.delete(got, 5, axis=0)).any()
    np.testing.assert_array_equal(got[2], np.float32(np.ldexp(128.0, -127 - 7)))
    np.testing.assert_array_equal(got[3], np.ldexp(np.float32(128), 127 - 7))
    np.testing.assert_array_equal(got[0], np.float32(1))


def test_unscaled_form(sim: harness.Sim) -> None:
    rng = np.random.default_rng(5)
    a, b = random_codes(rng, 4, 16), random_codes(rng, 0, 16)
    inputs = [*place_operand(a, 4, 16), *place_operand(b, 0, 16)]
    body = "v_mfma_f32_16x16x128_f8f6f4 v[100:103], v[10:13], v[14:21], 1.0 cbsz:4 blgp:0"
    got = result_matrix(run_lanes(sim, body, inputs, [f"v{100 + i}" for i in range(4)]), 16)
    want = 1 + FORMATS[4].values[a].astype(float) @ FORMATS[0].values[b].astype(float).T
    np.testing.assert_allclose(got, want, rtol=1e-7)


@pytest.mark.parametrize("d", [20, 16, 18, 10, 14, 12], ids=["C+2", "C-2 over B", "C", "A", "B", "A and B"])
def test_result_over_operands(sim: harness.Sim, d: int) -> None:
    """All operands are read before the result is written: compilers emit such overlaps for four result registers."""
    rng = np.random.default_rng(d)
    a, b = random_codes(rng, 4, 16), random_codes(rng, 4, 16)
    c = rng.standard_normal((16, 16)).astype(np.float32)
    inputs = [*place_operand(a, 4, 16), *place_operand(b, 4, 16), *place_result(c, 16)]
    body = f"v_mfma_f32_16x16x128_f8f6f4 v[{d}:{d + 3}], v[10:13], v[14:17], v[18:21] cbsz:4 blgp:4"
    got = result_matrix(run_lanes(sim, body, inputs, [f"v{d + i}" for i in range(4)]), 16)
    want = c + FORMATS[4].values[a].astype(float) @ FORMATS[4].values[b].astype(float).T
    np.testing.assert_allclose(got, want, rtol=2e-7)


def test_part_of_a_large_addend_as_result_is_refused(sim: harness.Sim) -> None:
    """The assembler refuses it too, so the addend's field (the third of nine bits) is set in the bytes."""
    body = "v_mfma_f32_32x32x16_bf16 v[20:35], v[10:13], v[14:17], v[40:55]"
    image = harness.assemble(harness.kernel_asm(body)).read_bytes()
    fields = [(256 + 10 | 256 + 14 << 9 | 256 + c << 18).to_bytes(4, "little") for c in (40, 22)]
    assert image.count(fields[0]) == 1
    module = sim.load(image.replace(*fields))
    with pytest.raises(harness.SimFault, match="overlap in part"):
        module.launch("k", (1,), (64,), [None, None])


def test_scale_in_scalar_register_is_refused(sim: harness.Sim) -> None:
    inputs = np.zeros((8, 64), np.uint32)
    body = (
        "s_mov_b32 s20, 0x7f7f7f7f\n"
        "v_mfma_scale_f32_16x16x128_f8f6f4 v[100:103], v[10:13], v[14:17], 0, s20, v14 "
        "op_sel_hi:[0,0,0] cbsz:4 blgp:4"
    )
    try:
        with pytest.raises(harness.SimFault, match="outside of a VGPR"):
            run_lanes(sim, body, inputs, ["v100"])
    except RuntimeError as e:  # assemblers that know of the defect refuse it themselves
        assert "invalid operand" in str(e)


PLAIN = [
    ("gfx950", "f32_16x16x32_bf16", 16, 32, "bf16"),
    ("gfx950", "f32_32x32x16_bf16", 32, 16, "bf16"),
    ("gfx942", "f32_16x16x16_bf16", 16, 16, "bf16"),
    ("gfx942", "f32_32x32x8_bf16", 32, 8, "bf16"),
    ("gfx950", "f32_16x16x32_f16", 16, 32, "f16"),
    ("gfx950", "f32_32x32x16_f16", 32, 16, "f16"),
    ("gfx942", "f32_16x16x16_f16", 16, 16, "f16"),
    ("gfx942", "f32_32x32x8_f16", 32, 8, "f16"),
]


@pytest.mark.parametrize(("arch", "name", "m", "k", "kind"), PLAIN)
def test_half_precision(arch: str, name: str, m: int, k: int, kind: str) -> None:
    """A lane holds row lane % m, k = per_lane * (lane / m) + slot, two to a register, low half first."""
    sim = harness.Sim(devices=arch)
    rng = np.random.default_rng(3)
    per_lane = m * k // 64

    def operand() -> tuple[NDArray[np.float64], list[NDArray[np.uint32]]]:
        x = rng.standard_normal((m, k)).astype(np.float32)
        pattern = (
            (x.view(np.uint32) >> 16).astype(np.uint32)
            if kind == "bf16"
            else x.astype(np.float16).view(np.uint16).astype(np.uint32)
        )
        value = (
            (pattern << 16).view(np.float32) if kind == "bf16" else pattern.astype(np.uint16).view(np.float16)
        )
        registers = np.zeros((per_lane // 2, 64), np.uint32)
        for lane, slot in itertools.product(range(64), range(per_lane)):
            registers[slot // 2, lane] |= pattern[lane % m, per_lane * (lane // m) + slot] << (
                16 * (slot % 2)
            )
        return value.astype(np.float64), list(registers)

    (a, ra), (b, rb) = operand(), operand()
    c = rng.standard_normal((m, m)).astype(np.float32)
    n, nc = per_lane // 2, m * m // 64
    body = (
        f"v_mfma_{name} v[100:{99 + nc}], v[10:{9 + n}], v[{10 + n}:{9 + 2 * n}], "
        f"v[{10 + 2 * n}:{9 + 2 * n + nc}]"
    )
    got = result_matrix(
        run_lanes(sim, body, [*ra, *rb, *place_result(c, m)], [f"v{100 + i}" for i in range(nc)], arch=arch),
        m,
    )
    np.testing.assert_allclose(got, c + a @ b.T, rtol=1e-6, atol=1e-7)
