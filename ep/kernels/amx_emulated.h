// The tile unit in plain C++, so that cpu_amx.cc runs on CPUs without it (MXORT_EMULATE: `make sanitize`). As the
// unit does, it takes and gives subnormals as zero.
#ifndef MXORT_KERNELS_AMX_EMULATED_H_
#define MXORT_KERNELS_AMX_EMULATED_H_

#include "kernels/float16.h"

namespace mxort {

class AmxTiles {
 public:
  template <int kTile>
  MXORT_MEMBER void Load(const void* p) {
    __builtin_memcpy(tile_[kTile], p, kBytes);
  }
  template <int kTile>
  MXORT_MEMBER void Store(void* p) {
    __builtin_memcpy(p, tile_[kTile], kBytes);
  }
  template <int kTile>
  MXORT_MEMBER void Zero() {
    __builtin_memset(tile_[kTile], 0, kBytes);
  }
  template <int kC, int kA, int kB>
  MXORT_MEMBER void Multiply() {
    for (int m = 0; m < 16; ++m) {
      for (int n = 0; n < 16; ++n) {
        float sum = Get(tile_[kC], m, n);
        for (int p = 0; p < 16; ++p) {
          sum = Flush(sum + Half(tile_[kA], m, 2 * p) * Half(tile_[kB], p, 2 * n));
          sum = Flush(sum + Half(tile_[kA], m, 2 * p + 1) * Half(tile_[kB], p, 2 * n + 1));
        }
        __builtin_memcpy(tile_[kC] + m * 64 + n * 4, &sum, 4);
      }
    }
  }

 private:
  static constexpr int kBytes = 1024;
  static float Flush(float x) { return (FloatBits(x) & kFloatExponent) == 0 ? 0.0f : x; }
  static float Get(const unsigned char* tile, int row, int column) {
    float x;
    __builtin_memcpy(&x, tile + row * 64 + column * 4, 4);
    return x;
  }
  static float Half(const unsigned char* tile, int row, int column) {
    uint16_t bits;
    __builtin_memcpy(&bits, tile + row * 64 + column * 2, 2);
    return Flush(BFloat16ToFloat(bits));
  }
  alignas(64) unsigned char tile_[8][kBytes] = {};
};

}  // namespace mxort

#endif  // MXORT_KERNELS_AMX_EMULATED_H_
