"""OCP microscaling (MX) element formats, E8M0 scales and packing, in numpy: the readable truth.

Every constant of the formats stands here once for Python (``ep/mx_formats.h`` is its C++ counterpart; a contract
test compares the two). Sources: OCP Microscaling Formats (MX) Specification v1.0, sections 5.3 (element formats),
5.4 (E8M0) and 6.3 (conversion); OCP 8-bit Floating Point Specification v1.0 for E4M3 and E5M2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

BLOCK_SIZE = 32
"""Elements that share one scale (MX specification, section 5.2)."""

SCALE_BIAS = 127
"""An E8M0 byte b means 2**(b - SCALE_BIAS)."""

SCALE_NAN = 0xFF
"""The E8M0 byte that means NaN: every element of its block is NaN."""


@dataclass(frozen=True)
class ElementFormat:
    """A signed minifloat: 1 sign bit, ``exponent_bits``, ``mantissa_bits``, subnormals, no signed-zero magic.

    ``first_special`` is the lowest non-negative code that is not a number (None where every code is a number).
    Codes are sign-magnitude, bit ``bits - 1`` the sign, or ``twos_complement``.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    first_special: int | None = None
    twos_complement: bool = False

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def block_bytes(self) -> int:
        """Bytes of a packed block (:func:`pack_codes`)."""
        return BLOCK_SIZE * self.bits // 8

    @property
    def sign_bit(self) -> int:
        return 1 << (self.bits - 1)

    @cached_property
    def magnitudes(self) -> NDArray[np.float64]:
        """float64 [n]: value of each non-negative finite code, ascending (the code is the index)."""
        count = self.sign_bit if self.first_special is None else self.first_special
        code = np.arange(count)
        exponent, mantissa = code >> self.mantissa_bits, code & ((1 << self.mantissa_bits) - 1)
        subnormal = exponent == 0
        significand = mantissa + np.where(subnormal, 0, 1 << self.mantissa_bits)
        power = np.where(subnormal, 1, exponent) - self.bias - self.mantissa_bits
        return np.asarray(np.ldexp(significand.astype(np.float64), power), np.float64)

    @property
    def max(self) -> float:
        """Largest finite magnitude."""
        return float(self.magnitudes[-1])

    @property
    def emax(self) -> int:
        """Exponent of the largest normal number (MX specification, table 1): floor(log2(max))."""
        return int(np.frexp(self.max)[1]) - 1

    @cached_property
    def values(self) -> NDArray[np.float32]:
        """float32 [2**bits]: value of each code; NaN and infinities where the format has them (E4M3, E5M2)."""
        positive = np.full(self.sign_bit, np.nan)
        positive[: len(self.magnitudes)] = self.magnitudes
        if self is E5M2:
            positive[0x7C] = np.inf
        if self.twos_complement:  # the lowest code has no positive counterpart
            negative = -np.append(positive[1:], 2 * positive[-1] - positive[-2])[::-1]
        else:
            negative = -positive
        return np.concatenate([positive, negative]).astype(np.float32)

    def signed(self, codes: NDArray[np.integer], negative: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """uint8 codes of magnitude codes and signs, same shape."""
        opposite = -codes if self.twos_complement else codes + self.sign_bit
        return np.asarray(np.where(negative, opposite, codes) & ((1 << self.bits) - 1), np.uint8)

    def encode(self, x: ArrayLike) -> NDArray[np.uint8]:
        """Codes (uint8, same shape) of finite ``x``: round to nearest, ties to the even code, saturating.

        Raises ValueError for NaN or infinity: in an MX block those are said by the scale, not by the element.

        >>> from mxort.formats import E2M1
        >>> codes = E2M1.encode([0.24, 0.25, 0.75, -2.5, 5.0, 100.0])
        >>> [float(value) for value in E2M1.decode(codes)]
        [0.0, 0.0, 1.0, -2.0, 4.0, 6.0]
        """
        value = np.asarray(x, dtype=np.float64)
        if not np.isfinite(value).all():
            raise ValueError(f"{self.name}: cannot encode a non-finite value")
        magnitude = np.abs(value)
        midpoints = (self.magnitudes[1:] + self.magnitudes[:-1]) / 2
        code = np.searchsorted(midpoints, magnitude, side="left")  # a tie lands on the lower code
        tie = (code < len(midpoints)) & (magnitude == midpoints[np.minimum(code, len(midpoints) - 1)])
        code = code + (tie & (code % 2 == 1))
        return self.signed(code, np.signbit(value))

    def decode(self, codes: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 values of uint8 ``codes``, same shape. Raises ValueError for a code beyond the format's bits."""
        if codes.size and int(codes.max()) >= 1 << self.bits:
            raise ValueError(f"{self.name}: code {int(codes.max())} needs more than {self.bits} bits")
        return self.values[codes]


E2M1 = ElementFormat("e2m1", 2, 1, bias=1)
E2M3 = ElementFormat("e2m3", 2, 3, bias=1)
E3M2 = ElementFormat("e3m2", 3, 2, bias=3)
E4M3 = ElementFormat("e4m3", 4, 3, bias=7, first_special=0x7F)
E5M2 = ElementFormat("e5m2", 5, 2, bias=15, first_special=0x7C)
INT8 = ElementFormat("int8", 1, 6, bias=1, twos_complement=True)
"""Units of 2**-6. With one bit of exponent the normal numbers continue the subnormal ones: code c is c / 64.

Encoding keeps to -127..127, as the specification allows (section 5.3.4); -128 is decoded as the -2 that it is.
"""

ELEMENT_FORMATS = {f.name: f for f in (E2M1, E2M3, E3M2, E4M3, E5M2, INT8)}

ACTIVATION_FORMATS: dict[str, ElementFormat | None] = {
    "none": None,
    "mxfp8_e4m3": E4M3,
    "mxfp6_e2m3": E2M3,
    "mxfp6_e3m2": E3M2,
    "mxfp4": E2M1,
}
"""Values of the operator's ``activation_format`` attribute (None: activations are not quantised)."""

WEIGHT_FORMATS: dict[str, ElementFormat] = {
    "mxfp4": E2M1,
    "mxfp6_e2m3": E2M3,
    "mxfp6_e3m2": E3M2,
    "mxfp8_e4m3": E4M3,
    "mxint8": INT8,
}
"""Formats of stored weights, smallest first. Each kind and width of element is an operator of its own."""


def scale_value(scale: ArrayLike) -> NDArray[np.float32]:
    """float32 values of E8M0 bytes, same shape; 0xFF is NaN, byte 0 is the subnormal 2**-127."""
    byte = np.asarray(scale, dtype=np.uint8)
    value = np.ldexp(1.0, byte.astype(np.int32) - SCALE_BIAS)
    return np.where(byte == SCALE_NAN, np.nan, value).astype(np.float32)


def blocks_of(k: int) -> int:
    """Number of blocks that hold ``k`` elements."""
    return -(-k // BLOCK_SIZE)


def packed_bytes(n: int, k: int, weight_format: str = "mxfp4") -> int:
    """Bytes of the codes and scales of a weight with ``n`` output columns of ``k`` elements."""
    return n * blocks_of(k) * (WEIGHT_FORMATS[weight_format].block_bytes + 1)


def to_blocks(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 [..., K] -> [..., ceil(K/32), 32], the tail padded with zeros."""
    k = x.shape[-1]
    pad = blocks_of(k) * BLOCK_SIZE - k
    if pad:
        x = np.concatenate([x, np.zeros((*x.shape[:-1], pad), x.dtype)], axis=-1)
    return x.reshape(*x.shape[:-1], blocks_of(k), BLOCK_SIZE)


def word(fmt: ElementFormat) -> tuple[int, int]:
    """(codes, bytes) of the smallest run of whole codes in whole bytes: (2, 1), (4, 3) or (1, 1)."""
    codes = {4: 2, 6: 4, 8: 1}[fmt.bits]
    return codes, codes * fmt.bits // 8


def pack_codes(codes: NDArray[np.uint8], fmt: ElementFormat) -> NDArray[np.uint8]:
    """uint8 codes [..., n] -> bytes [..., n * bits / 8]: each code follows the one before, lowest bit first."""
    per_word, nbytes = word(fmt)
    return _repack(codes, fmt.bits, per_word, 8, nbytes)


def unpack_codes(packed: NDArray[np.uint8], fmt: ElementFormat) -> NDArray[np.uint8]:
    """Inverse of :func:`pack_codes`."""
    per_word, nbytes = word(fmt)
    return _repack(packed, 8, nbytes, fmt.bits, per_word)


def _repack(
    pieces: NDArray[np.uint8], bits: int, count: int, new_bits: int, new_count: int
) -> NDArray[np.uint8]:
    """[..., n] in words of ``count`` pieces of ``bits`` -> the same words in ``new_count`` pieces of ``new_bits``."""
    if bits == new_bits:
        return pieces
    *outer, n = pieces.shape
    shifts = bits * np.arange(count, dtype=np.uint32)
    words = (pieces.reshape(*outer, n // count, count).astype(np.uint32) << shifts).sum(
        axis=-1, keepdims=True, dtype=np.uint32
    )
    new = (words >> (new_bits * np.arange(new_count, dtype=np.uint32))) & ((1 << new_bits) - 1)
    result: NDArray[np.uint8] = new.astype(np.uint8).reshape(*outer, n // count * new_count)
    return result


def pack_nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 4-bit codes [..., 2n] -> bytes [..., n]; the even index goes to the low nibble."""
    return pack_codes(codes, E2M1)


def unpack_nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Inverse of :func:`pack_nibbles`: bytes [..., n] -> codes [..., 2n]."""
    return unpack_codes(packed, E2M1)


def dequantize(
    codes: NDArray[np.uint8], scales: NDArray[np.uint8], k: int, fmt: ElementFormat
) -> NDArray[np.float32]:
    """Packed rows (codes uint8 [N, ceil(K/32)*block_bytes], scales uint8 [N, ceil(K/32)]) -> float32 [N, k]."""
    values = fmt.decode(unpack_codes(codes, fmt)).reshape(*scales.shape, BLOCK_SIZE)
    weights = values * scale_value(scales)[..., None]
    return weights.reshape(len(scales), scales.shape[1] * BLOCK_SIZE)[:, :k]


def dequantize_mxfp4(codes: NDArray[np.uint8], scales: NDArray[np.uint8], k: int) -> NDArray[np.float32]:
    """:func:`dequantize` of MXFP4 rows (codes uint8 [N, ceil(K/32)*16])."""
    return dequantize(codes, scales, k, E2M1)


def hadamard_rotate(x: NDArray[np.float32], rotation: int) -> NDArray[np.float32]:
    """Rotates float32 [..., K] along K by blocks of the normalised Sylvester Hadamard matrix of size ``rotation``.

    The arithmetic is part of the operator: float32 butterflies with strides 1, 2, 4, ..., then one multiplication by
    float32(1/sqrt(rotation)), so that every backend feeds the same numbers to the quantiser. K must be a multiple.
    """
    if rotation == 1:
        return x
    y = np.ascontiguousarray(x, dtype=np.float32)
    stride = 1
    while stride < rotation:
        pairs = y.reshape(*x.shape[:-1], x.shape[-1] // (2 * stride), 2, stride)
        low, high = pairs[..., 0, :], pairs[..., 1, :]
        y = np.stack([low + high, low - high], axis=-2).reshape(x.shape)
        stride *= 2
    return y * np.float32(1 / np.sqrt(rotation))
