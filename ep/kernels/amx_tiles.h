// The tile unit, for cpu_amx.cc: 8 tiles of 16 rows of 64 bytes.
#ifndef MXORT_KERNELS_AMX_TILES_H_
#define MXORT_KERNELS_AMX_TILES_H_

#include <immintrin.h>

#include "kernels/kernel.h"
#include "mx_formats.h"

namespace mxort {

// The configuration is a register of the thread, which ONNX Runtime's own kernels use too on the same threads: what was
// there is put back. Leaving ours made its int8 kernel die of an illegal instruction.
class AmxTiles {
  struct alignas(64) Config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };

 public:
  AmxTiles() {
    _tile_storeconfig(&before_);
    Config config = {};
    config.palette = 1;
    for (int i = 0; i < 8; ++i) {
      config.row_bytes[i] = 64;
      config.rows[i] = 16;
    }
    asm volatile("" ::: "memory");  // GCC 12 drops the stores to `config` otherwise
    _tile_loadconfig(&config);
  }
  ~AmxTiles() {
    if (before_.palette) {
      _tile_loadconfig(&before_);
    } else {
      _tile_release();
    }
  }
  AmxTiles(const AmxTiles&) = delete;
  AmxTiles& operator=(const AmxTiles&) = delete;

  // A tile's 1024 bytes are contiguous. In assembly because GCC's intrinsics paste the tile's number as text and so
  // take literals only.
  template <int kTile>
  MXORT_MEMBER void Load(const void* p) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(kRowBytes), "i"(kTile) : "memory");
  }
  template <int kTile>
  MXORT_MEMBER void Store(void* p) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(kRowBytes), "i"(kTile) : "memory");
  }
  template <int kTile>
  MXORT_MEMBER void Zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
  }
  // Tile kC += A . B in bf16 pairs: sum over p of A[m][p].(two) * B[p][n].(two).
  template <int kC, int kA, int kB>
  MXORT_MEMBER void Multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
  }

 private:
  static constexpr int64_t kRowBytes = 64;
  Config before_ = {};
};

}  // namespace mxort

#endif  // MXORT_KERNELS_AMX_TILES_H_
