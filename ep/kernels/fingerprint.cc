#include "kernels/fingerprint.h"

#include <cstring>
#include <random>

namespace mxort {
namespace {

using Wide = unsigned __int128;

constexpr int kBits = 61;
constexpr uint64_t kPrime = (uint64_t{1} << kBits) - 1;
constexpr size_t kPieceBytes = 7;  // a piece is below the prime, so that different pieces are different numbers
constexpr uint64_t kPieceMask = (uint64_t{1} << 8 * kPieceBytes) - 1;
constexpr size_t kLanes = 4;  // sums that do not wait for each other: lane i has the pieces i, i + 4, ...
constexpr size_t kStepBytes = kLanes * kPieceBytes;

// a * x + b, not quite reduced: below 2^61 + 4 for a, x and b below that.
uint64_t MultiplyAdd(uint64_t a, uint64_t x, uint64_t b) {
  const Wide product = static_cast<Wide>(a) * x;
  const uint64_t sum = (static_cast<uint64_t>(product) & kPrime) + static_cast<uint64_t>(product >> kBits) + b;
  return (sum & kPrime) + (sum >> kBits);
}
uint64_t Reduced(uint64_t x) { return x >= kPrime ? x - kPrime : x; }

// The sums of one point.
struct Sums {
  explicit Sums(uint64_t point) : x(point) {
    const uint64_t square = MultiplyAdd(x, x, 0);
    step = MultiplyAdd(square, square, 0);
  }
  void Add(size_t lane, uint64_t piece) { lanes[lane] = MultiplyAdd(lanes[lane], step, piece); }
  uint64_t Total(uint64_t bytes) const {
    uint64_t total = 0;
    for (const uint64_t lane : lanes) total = MultiplyAdd(total, x, lane);
    return Reduced(MultiplyAdd(total, x, bytes));
  }
  uint64_t x, step;
  uint64_t lanes[kLanes] = {};
};

// Reads 8 bytes, one more than the last piece has.
void AddStep(const uint8_t* p, Sums& first, Sums& second) {
  for (size_t lane = 0; lane < kLanes; ++lane) {
    uint64_t piece;
    std::memcpy(&piece, p + lane * kPieceBytes, sizeof piece);
    first.Add(lane, piece & kPieceMask);
    second.Add(lane, piece & kPieceMask);
  }
}

}  // namespace

Fingerprint FingerprintAt(const Fingerprint& points, const void* data, size_t bytes) {
  Sums first(points[0]), second(points[1]);
  const auto* p = static_cast<const uint8_t*>(data);
  size_t left = bytes;
  for (; left > kStepBytes; left -= kStepBytes, p += kStepBytes) AddStep(p, first, second);
  if (left > 0) {
    uint8_t rest[kStepBytes + 1] = {};
    std::memcpy(rest, p, left);
    AddStep(rest, first, second);
  }
  return {first.Total(bytes), second.Total(bytes)};
}

Fingerprint RandomPoints() {
  std::random_device random;  // the system's
  std::uniform_int_distribution<uint64_t> below(0, kPrime - 1);
  const uint64_t first = below(random);
  return {first, below(random)};
}

Fingerprint FingerprintOf(const void* data, size_t bytes) {
  static const Fingerprint points = RandomPoints();
  return FingerprintAt(points, data, bytes);
}

}  // namespace mxort
