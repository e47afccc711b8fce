// A content's name, short and safe to compare instead of the content.
#ifndef MXORT_KERNELS_FINGERPRINT_H_
#define MXORT_KERNELS_FINGERPRINT_H_

#include <array>
#include <cstddef>
#include <cstdint>

namespace mxort {

// Two numbers below 2^61 - 1.
using Fingerprint = std::array<uint64_t, 2>;

// The content as a polynomial at two points modulo the prime p = 2^61 - 1: with w[0..n) the content in pieces of 7
// bytes from its start (little endian, zeros added to a multiple of 28 bytes),
//
//   w[0] x^n + w[1] x^(n-1) + ... + w[n-1] x + bytes   (mod p)
//
// Two different contents of up to n pieces have the same value at no more than n of the p points, so that for points
// which nobody knows they are taken for each other with a chance of (n / p)^2: 2^-64 for 2 GiB. No choice of contents
// makes that more likely, which a hash of a known function cannot promise.
Fingerprint FingerprintAt(const Fingerprint& points, const void* data, size_t bytes);

Fingerprint RandomPoints();  // of the system

// At points drawn when the process first asks.
Fingerprint FingerprintOf(const void* data, size_t bytes);

}  // namespace mxort

#endif  // MXORT_KERNELS_FINGERPRINT_H_
