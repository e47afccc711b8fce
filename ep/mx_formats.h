// OCP microscaling (MX) formats: the one place of their constants and bit-level rules for C++, on host and device.
// Specification: OCP Microscaling Formats (MX) v1.0, sections 5.2 to 5.4 and 6.3. Counterpart: mxort/formats.py.
//
// No header is included and every function is `static` and always inlined, because this file is compiled by
// freestanding device compilers and by translation units with different instruction sets: an ordinary inline function
// would be merged by the linker, and a machine without AVX-512 might then execute the AVX-512 copy.
#ifndef MXORT_MX_FORMATS_H_
#define MXORT_MX_FORMATS_H_

#if defined(__HIP__)
#define MXORT_INLINE static inline __attribute__((host, device, always_inline))
#else
#define MXORT_INLINE static inline __attribute__((always_inline))
#endif

#define MXORT_MEMBER inline __attribute__((always_inline))  // the same for member functions

namespace mxort {

inline constexpr int kBlockSize = 32;                     // elements that share one scale
inline constexpr int kPackedBlockBytes = kBlockSize / 2;  // PackedBytes<E2M1>: the even k in the low nibble
inline constexpr int kScaleBias = 127;                    // E8M0 byte b means 2^(b - 127)
inline constexpr unsigned char kScaleNaN = 0xFF;          // the whole block is NaN
inline constexpr int kFloatMantissaBits = 23;
inline constexpr unsigned kFloatMagnitude = 0x7FFFFFFFu;
inline constexpr unsigned kFloatExponent = 0x7F800000u;
inline constexpr unsigned kFloatNaN = 0x7FC00000u;
inline constexpr unsigned kFloatTwoToMinus127 = 0x00400000u;  // a subnormal

// Element formats: sign, exponent, mantissa; subnormals; kEmax = floor(log2(kMax)). Only E4M3 and E5M2 have codes that
// are no numbers: E4M3 0x7F is NaN, E5M2 0x7C infinity and above NaN.
struct E2M1 {
  static constexpr const char* kName = "e2m1";
  static constexpr int kExponentBits = 2, kMantissaBits = 1, kBias = 1, kEmax = 2, kFirstSpecial = 8;
  static constexpr float kMax = 6.0f;
};
struct E2M3 {
  static constexpr const char* kName = "e2m3";
  static constexpr int kExponentBits = 2, kMantissaBits = 3, kBias = 1, kEmax = 2, kFirstSpecial = 32;
  static constexpr float kMax = 7.5f;
};
struct E3M2 {
  static constexpr const char* kName = "e3m2";
  static constexpr int kExponentBits = 3, kMantissaBits = 2, kBias = 3, kEmax = 4, kFirstSpecial = 32;
  static constexpr float kMax = 28.0f;
};
struct E4M3 {
  static constexpr const char* kName = "e4m3";
  static constexpr int kExponentBits = 4, kMantissaBits = 3, kBias = 7, kEmax = 8, kFirstSpecial = 0x7F;
  static constexpr float kMax = 448.0f;
};
struct E5M2 {
  static constexpr const char* kName = "e5m2";
  static constexpr int kExponentBits = 5, kMantissaBits = 2, kBias = 15, kEmax = 15, kFirstSpecial = 0x7C;
  static constexpr float kMax = 57344.0f;
};

// Two's complement in units of 2^-6. With one bit of exponent the normal numbers continue the subnormal ones, so that
// the magnitudes 0 to 127 are the codes of this minifloat. Code 128 is -2; none is encoded as it.
struct INT8 {
  static constexpr const char* kName = "int8";
  static constexpr int kExponentBits = 1, kMantissaBits = 6, kBias = 1, kEmax = 0, kFirstSpecial = 128;
  static constexpr float kMax = 1.984375f;
};
template <class F>
inline constexpr bool kTwosComplement = false;
template <>
inline constexpr bool kTwosComplement<INT8> = true;

MXORT_INLINE unsigned FloatBits(float x) { return __builtin_bit_cast(unsigned, x); }
MXORT_INLINE float BitsFloat(unsigned bits) { return __builtin_bit_cast(float, bits); }

// Sign bit of a code of format F; one more than its largest magnitude code.
template <class F>
MXORT_INLINE constexpr unsigned SignBit() {
  return 1u << (F::kExponentBits + F::kMantissaBits);
}

// Bits of a code of F, and bytes of a packed block: codes follow each other from the lowest bit of the first byte on.
template <class F>
MXORT_INLINE constexpr int CodeBits() {
  return 1 + F::kExponentBits + F::kMantissaBits;
}
template <class F>
MXORT_INLINE constexpr int PackedBytes() {
  return kBlockSize * CodeBits<F>() / 8;
}

// Whole codes in whole bytes: 2 of 4 bits in 1, 4 of 6 bits in 3, 1 of 8 bits in 1.
template <class F>
MXORT_INLINE constexpr int CodesPerWord() {
  return CodeBits<F>() == 4 ? 2 : CodeBits<F>() == 6 ? 4 : 1;
}
template <class F>
MXORT_INLINE void PackBlock(const unsigned char* codes, unsigned char* packed) {
  constexpr int kCodes = CodesPerWord<F>(), kBytes = kCodes * CodeBits<F>() / 8;
  for (int word = 0; word < kBlockSize / kCodes; ++word) {
    unsigned bits = 0;
    for (int i = 0; i < kCodes; ++i) bits |= static_cast<unsigned>(codes[word * kCodes + i]) << (i * CodeBits<F>());
    for (int i = 0; i < kBytes; ++i) packed[word * kBytes + i] = static_cast<unsigned char>(bits >> (8 * i));
  }
}
template <class F>
MXORT_INLINE void UnpackBlock(const unsigned char* packed, unsigned char* codes) {
  constexpr int kCodes = CodesPerWord<F>(), kBytes = kCodes * CodeBits<F>() / 8;
  for (int word = 0; word < kBlockSize / kCodes; ++word) {
    unsigned bits = 0;
    for (int i = 0; i < kBytes; ++i) bits |= static_cast<unsigned>(packed[word * kBytes + i]) << (8 * i);
    for (int i = 0; i < kCodes; ++i) {
      codes[word * kCodes + i] =
          static_cast<unsigned char>((bits >> (i * CodeBits<F>())) & ((1u << CodeBits<F>()) - 1));
    }
  }
}

// Exponent of the smallest normal number of F.
template <class F>
MXORT_INLINE constexpr int MinExponent() {
  return 1 - F::kBias;
}

// A finite value rounded to F as (value, code): nearest, ties to the even code, saturating.
//
// Adding 2^(e + 23 - mantissa bits), where e is the exponent of |x| (at least that of the smallest normal), leaves in
// the low mantissa bits of the sum |x| in units of F's spacing at |x|, rounded to nearest even by the adder itself.
//   E2M1: |x|  0.2  0.25  0.75  1.25  2.5  3.5  5   5.1  9
//         e    0    0     0     0     1    1    2   2    2 (saturated to 6)
//         n    0    0     2     2     2    4    2   3    3    n = units of 2^(e-1)
//         code 0    0     2     2     4    6    6   7    7    n + 2 * (e - MinExponent)
struct Element {
  float value;
  unsigned char code;
};
template <class F>
MXORT_INLINE Element RoundToElement(float x) {
  const unsigned bits = FloatBits(x);
  const float absolute = BitsFloat(bits & kFloatMagnitude);
  const float magnitude = absolute < F::kMax ? absolute : F::kMax;
  constexpr unsigned kMinNormal = static_cast<unsigned>(MinExponent<F>() + kScaleBias) << kFloatMantissaBits;
  unsigned exponent = FloatBits(magnitude) & kFloatExponent;
  exponent = exponent > kMinNormal ? exponent : kMinNormal;
  const float magic =
      BitsFloat(exponent + (static_cast<unsigned>(kFloatMantissaBits - F::kMantissaBits) << kFloatMantissaBits));
  const float sum = magnitude + magic;
  const unsigned units = FloatBits(sum) & ((2u << F::kMantissaBits) * 2 - 1);
  const unsigned code = units + ((exponent - kMinNormal) >> (kFloatMantissaBits - F::kMantissaBits));
  const unsigned sign = bits & ~kFloatMagnitude;
  const unsigned negative = kTwosComplement<F> ? 0 - code : code | SignBit<F>();
  return {BitsFloat(FloatBits(sum - magic) | sign), static_cast<unsigned char>(sign ? negative : code)};
}

// The value of a code of F; NaN and infinity where F has them.
template <class F>
MXORT_INLINE float DecodeElement(unsigned char code) {
  if constexpr (kTwosComplement<F>) {
    return static_cast<float>(static_cast<signed char>(code)) / static_cast<float>(1 << F::kMantissaBits);
  }
  const unsigned magnitude = code & (SignBit<F>() - 1);
  const unsigned sign = (code & SignBit<F>()) ? ~kFloatMagnitude : 0u;
  const unsigned exponent = magnitude >> F::kMantissaBits;
  unsigned bits;
  if (magnitude >= static_cast<unsigned>(F::kFirstSpecial)) {
    bits = F::kMantissaBits == 2 && magnitude == static_cast<unsigned>(F::kFirstSpecial) ? kFloatExponent : kFloatNaN;
  } else if (exponent == 0) {
    constexpr unsigned kUnit = static_cast<unsigned>(MinExponent<F>() - F::kMantissaBits + kScaleBias)
                               << kFloatMantissaBits;
    bits = FloatBits(static_cast<float>(magnitude) * BitsFloat(kUnit));
  } else {
    bits = (magnitude << (kFloatMantissaBits - F::kMantissaBits)) +
           (static_cast<unsigned>(kScaleBias - F::kBias) << kFloatMantissaBits);
  }
  return BitsFloat(bits | sign);
}

// The value of an E8M0 byte. Byte 0 is the float subnormal 2^-127, which the shift alone would lose.
MXORT_INLINE float DecodeScale(unsigned char scale) {
  const unsigned bits = static_cast<unsigned>(scale) << kFloatMantissaBits;
  return BitsFloat(scale == kScaleNaN ? kFloatNaN : scale == 0 ? kFloatTwoToMinus127 : bits);
}

// 1 / DecodeScale(scale) for scale < 0xFF, exact: 2^(127 - scale).
MXORT_INLINE float InverseScale(unsigned char scale) {
  const unsigned bits = static_cast<unsigned>(2 * kScaleBias - scale) << kFloatMantissaBits;
  return BitsFloat(bits == 0 ? kFloatTwoToMinus127 : bits);
}

// Scale rules. `absmax` is the bit pattern of the block's largest magnitude (finite); E8M0 and float share their bias,
// so the float's exponent field minus kEmax is the scale byte of rule "floor". mxort/scales.py says what each means.
enum class ScaleRule { kFloor, kEven, kRceil, kMse };

MXORT_INLINE unsigned char ClampScale(int byte) {
  return static_cast<unsigned char>(byte < 0 ? 0 : byte > kScaleNaN - 1 ? kScaleNaN - 1 : byte);
}
template <class F>
MXORT_INLINE unsigned char ScaleFloor(unsigned absmax) {
  return ClampScale(static_cast<int>(absmax >> kFloatMantissaBits) - F::kEmax);
}
template <class F>
MXORT_INLINE unsigned char ScaleEven(unsigned absmax) {
  return ScaleFloor<F>(absmax + (1u << (kFloatMantissaBits - F::kMantissaBits - 1)));
}
template <class F>
MXORT_INLINE unsigned char ScaleRceil(unsigned absmax) {
  constexpr unsigned kMantissa = (1u << kFloatMantissaBits) - 1;
  const int above = (absmax & kMantissa) > (FloatBits(F::kMax) & kMantissa);
  return ClampScale(static_cast<int>(absmax >> kFloatMantissaBits) - F::kEmax + above);
}

}  // namespace mxort

#endif  // MXORT_MX_FORMATS_H_
