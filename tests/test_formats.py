"""The element formats and E8M0 against golden vectors, ml_dtypes and the specification's table, exhaustively."""

from __future__ import annotations

import csv
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from mxort import _native, formats
from mxort.converters import functions
from mxort.formats import ELEMENT_FORMATS

VECTORS = Path(__file__).parent / "vectors"
FORMATS = list(ELEMENT_FORMATS.values())
ML_DTYPES = {
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
}


def peer_decode(codes: np.ndarray, fmt: formats.ElementFormat) -> np.ndarray:
    """ml_dtypes' values of codes; of integers, which it has not, numpy's over 64."""
    if fmt is formats.INT8:
        return codes.view(np.int8) / np.float32(64)
    return codes.view(ML_DTYPES[fmt.name]).astype(np.float32)


def peer_encode(values: np.ndarray, fmt: formats.ElementFormat) -> np.ndarray:
    """Codes of values in range."""
    if fmt is formats.INT8:
        return np.rint(values.astype(np.float64) * 64).astype(np.int8).view(np.uint8)  # ties to even
    return values.astype(ML_DTYPES[fmt.name]).view(np.uint8)


# Every bfloat16 is a float, and every element format has far fewer bits: these inputs hit each rounding case.
ALL_BFLOAT16 = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
FINITE = ALL_BFLOAT16[np.isfinite(ALL_BFLOAT16)]

by_name = pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)


def read_vectors(name: str) -> list[dict[str, str]]:
    with (VECTORS / name).open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("row", read_vectors("elements.csv"), ids=lambda r: f"{r['format']}:{r['value']}")
def test_golden_elements(row: dict[str, str]) -> None:
    fmt, value = ELEMENT_FORMATS[row["format"]], np.float32(row["value"])
    assert fmt.encode(value) == int(row["code"]), row["reason"]
    decoded = fmt.decode(np.array([int(row["code"])], np.uint8))[0]
    assert decoded == np.float32(row["decoded"]), row["reason"]
    assert np.signbit(decoded) == np.signbit(np.float32(row["decoded"])), row["reason"]


@by_name
def test_specification_table(fmt: formats.ElementFormat) -> None:
    """MX specification, tables 1 and 4 to 8: largest and smallest numbers."""
    largest, smallest_normal, smallest = {
        "e2m1": (6.0, 1.0, 0.5),
        "e2m3": (7.5, 1.0, 0.125),
        "e3m2": (28.0, 0.25, 0.0625),
        "e4m3": (448.0, 2.0**-6, 2.0**-9),
        "e5m2": (57344.0, 2.0**-14, 2.0**-16),
        "int8": (127 / 64, 1.0, 2.0**-6),
    }[fmt.name]
    assert fmt.max == largest
    assert fmt.magnitudes[1] == smallest
    assert fmt.magnitudes[1 << fmt.mantissa_bits] == smallest_normal


@by_name
def test_every_code_agrees_with_ml_dtypes(fmt: formats.ElementFormat) -> None:
    codes = np.arange(1 << fmt.bits, dtype=np.uint8)
    np.testing.assert_array_equal(fmt.decode(codes), peer_decode(codes, fmt))


@by_name
def test_every_finite_code_encodes_to_itself(fmt: formats.ElementFormat) -> None:
    codes = np.arange(1 << fmt.bits, dtype=np.uint8)
    codes = codes[np.isfinite(fmt.decode(codes))]
    again = fmt.encode(fmt.decode(codes))
    if fmt.twos_complement:  # the lowest, -2, is beyond what is ever encoded
        assert again[0x80] == 0x81
        codes, again = np.delete(codes, 0x80), np.delete(again, 0x80)
    np.testing.assert_array_equal(again, codes)


@by_name
def test_every_bfloat16_agrees_with_ml_dtypes_in_range(fmt: formats.ElementFormat) -> None:
    """Beyond the largest number ml_dtypes may give NaN or infinity; MX conversion saturates."""
    inside = FINITE[np.abs(FINITE) <= fmt.max]
    np.testing.assert_array_equal(fmt.encode(inside), peer_encode(inside, fmt))
    outside = FINITE[np.abs(FINITE) > fmt.max]
    np.testing.assert_array_equal(fmt.decode(fmt.encode(outside)), np.copysign(np.float32(fmt.max), outside))


@by_name
def test_native_rounding_of_every_bfloat16(fmt: formats.ElementFormat) -> None:
    codes, values = _native.round_to_element(FINITE, fmt.name)
    np.testing.assert_array_equal(codes, fmt.encode(FINITE))
    np.testing.assert_array_equal(values, fmt.decode(codes))
    np.testing.assert_array_equal(
        np.signbit(values), np.signbit(FINITE)
    )  # of integers' zero too, before the code


@by_name
def test_native_rounding_around_every_midpoint(fmt: formats.ElementFormat) -> None:
    middle = ((fmt.magnitudes[1:] + fmt.magnitudes[:-1]) / 2).astype(np.float32)
    x = np.concatenate(
        [middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(np.inf))]
    )
    x = np.concatenate([x, -x])
    codes, _ = _native.round_to_element(x, fmt.name)
    np.testing.assert_array_equal(codes, fmt.encode(x))


def test_encode_refuses_what_only_a_scale_can_say() -> None:
    with pytest.raises(ValueError, match="non-finite"):
        formats.E2M1.encode([1.0, np.nan])


def test_decode_refuses_codes_of_too_many_bits() -> None:
    with pytest.raises(ValueError, match="e2m1: code 16"):
        formats.E2M1.decode(np.array([16], np.uint8))


def test_every_scale() -> None:
    """All 256 against ml_dtypes; byte 0 is a float subnormal, 0xFF is NaN."""
    scales = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(
        formats.scale_value(scales), scales.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    )
    assert formats.scale_value(0) == 2.0**-127
    assert np.isnan(formats.scale_value(0xFF))


@pytest.mark.parametrize("row", read_vectors("packing.csv"), ids=lambda row: row["reason"])
def test_packing_vectors(row: dict[str, str]) -> None:
    fmt, times = formats.ELEMENT_FORMATS[row["format"]], int(row["times"])
    codes = np.array(row["codes"].split() * times, np.uint8)
    packed = np.frombuffer(bytes.fromhex(row["bytes"]) * times, np.uint8)
    assert (codes.size, packed.size) == (formats.BLOCK_SIZE, fmt.block_bytes)
    np.testing.assert_array_equal(formats.pack_codes(codes, fmt), packed)
    np.testing.assert_array_equal(formats.unpack_codes(packed, fmt), codes)
    np.testing.assert_array_equal(formats.unpack_codes(packed.reshape(1, 1, -1), fmt), codes[None, None])


def test_nibbles() -> None:
    codes = np.array([1, 2, 3, 4], np.uint8)
    np.testing.assert_array_equal(formats.pack_nibbles(codes), [0x21, 0x43])
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(formats.pack_nibbles(formats.unpack_nibbles(every)), every)


def test_contract_between_python_and_the_built_library() -> None:
    built = _native.describe()
    assert built["operators"] == {
        name: [fmt.exponent_bits for fmt in functions.formats_of(name).values()]
        for name in functions.WITH_WEIGHTS
    }
    assert built["block_size"] == formats.BLOCK_SIZE
    assert built["scale_bias"] == formats.SCALE_BIAS
    assert built["scale_nan"] == formats.SCALE_NAN
    assert set(built["element_formats"]) == set(ELEMENT_FORMATS)
    for name, fmt in ELEMENT_FORMATS.items():
        native = built["element_formats"][name]
        for key in ("exponent_bits", "mantissa_bits", "bias", "emax", "max"):
            assert native[key] == getattr(fmt, key), (name, key)
        np.testing.assert_array_equal(np.array(native["values"], np.float32), fmt.values)
    np.testing.assert_array_equal(
        np.array(built["scale_values"], np.float32), formats.scale_value(np.arange(256, dtype=np.uint8))
    )


def test_half_conversions_exhaustively() -> None:
    """Every float16 and bfloat16 to float; back from each of them and from around each midpoint, against numpy."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    for bfloat16, dtype in ((False, np.dtype(np.float16)), (True, np.dtype(ml_dtypes.bfloat16))):
        wide = bits.view(dtype).astype(np.float32)
        np.testing.assert_array_equal(_native.half_to_float(bits, bfloat16), wide)
        finite = np.sort(wide[np.isfinite(wide)])
        middle = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
        lower, upper = np.nextafter(middle, np.float32(-np.inf)), np.nextafter(middle, np.float32(np.inf))
        x = np.concatenate(
            [finite, middle, lower, upper, np.float32([np.inf, -np.inf, 65519, 65520, 1e38, -3.4e38])]
        )
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(_native.float_to_half(x, bfloat16), x.astype(dtype).view(np.uint16))
        nan = _native.half_to_float(_native.float_to_half(np.float32([np.nan]), bfloat16), bfloat16)
        assert np.isnan(nan).all()


@pytest.mark.parametrize("rotation", [32, 64, 128])
def test_hadamard_rotation(rotation: int) -> None:
    """Against the matrix in double; it is its own inverse; the order of the butterflies is pinned bit for bit."""
    x = np.random.default_rng(rotation).standard_normal((3, 2 * rotation)).astype(np.float32)
    i = np.arange(rotation)
    signs = 1 - 2.0 * (np.array([[bin(a & b).count("1") for b in i] for a in i]) % 2)
    expected = (x.reshape(3, 2, rotation).astype(np.float64) @ signs / np.sqrt(rotation)).reshape(x.shape)
    rotated = formats.hadamard_rotate(x, rotation)
    # log2(rotation) additions, each within half an ulp of values of the block's norm
    bound = np.log2(rotation) * 2.0**-24 * np.abs(x).max() * np.sqrt(rotation)
    assert np.abs(rotated - expected).max() <= bound
    one_block = x[0, :rotation].copy()
    stride = 1
    while stride < rotation:
        for base in range(0, rotation, 2 * stride):
            for k in range(base, base + stride):
                low, high = one_block[k], one_block[k + stride]
                one_block[k], one_block[k + stride] = low + high, low - high
        stride *= 2
    np.testing.assert_array_equal(rotated[0, :rotation], one_block * np.float32(1 / np.sqrt(rotation)))
