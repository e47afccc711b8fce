// From accumulators to Y: column_scale, bias, cast, wide stores.
#ifndef MXORT_KERNELS_HIP_EPILOGUE_H_
#define MXORT_KERNELS_HIP_EPILOGUE_H_

#include "kernels/hip/args.h"
#include "kernels/hip/copy.h"
#include "kernels/hip/element.h"
#include "kernels/hip/layout.h"
#include "kernels/hip/lds.h"
#include "kernels/hip/prelude.h"

namespace mxort::hip {

struct TileIndex {
  u32 m, n;
};

// Workgroups are dealt to the 8 compute dies (XCDs, each with its own L2) in turn: give each die a run of consecutive
// tiles, and order tiles in bands of 8 tile rows, so that the tiles that run together on a die share rows and columns.
MXORT_DEVICE TileIndex OrderTiles(u32 group, u32 tiles_m, u32 tiles_n) {
  constexpr u32 kDies = 8, kBand = 8;
  const u32 total = tiles_m * tiles_n, die = group % kDies, extra = total % kDies;
  const u32 tile = die * (total / kDies) + (die < extra ? die : extra) + group / kDies;
  const u32 band = tile / (kBand * tiles_n), inside = tile % (kBand * tiles_n);
  const u32 rows = tiles_m - band * kBand < kBand ? tiles_m - band * kBand : kBand;
  return {Uniform(band * kBand + inside % rows), Uniform(inside / rows)};
}

// Stores kCount consecutive columns, 16 bytes at a time; those of one store are in or out as a whole.
template <Type kType, int kCount>
MXORT_DEVICE void StoreWide(void* y, u64 index, i32 column, i32 columns, const float (&v)[kCount]) {
  if constexpr (kType == Type::kFloat) {
    Unroll<0, kCount / 4>([&](auto i) __attribute__((always_inline)) {
      constexpr int k = i.value * 4;
      if (column + k < columns) {
        *reinterpret_cast<f32x4*>(static_cast<float*>(y) + index + k) = f32x4{v[k], v[k + 1], v[k + 2], v[k + 3]};
      }
    });
  } else {
    Unroll<0, kCount / 8>([&](auto i) __attribute__((always_inline)) {
      constexpr int k = i.value * 8;
      u32x4 packed;
      Unroll<0, 4>([&](auto j) __attribute__((always_inline)) {
        constexpr int e = k + 2 * j.value;
        packed[j.value] = ToHalf(kType, v[e]) | (u32{ToHalf(kType, v[e + 1])} << 16);
      });
      if (column + k < columns) *reinterpret_cast<u32x4*>(static_cast<u16*>(y) + index + k) = packed;
    });
  }
}

// What a wave stores: `rows` x `columns` of its part of Y lie inside the matrix.
struct Output {
  void* y;
  const float* column_scale;  // null: partial sums, stored as they are
  const float* bias;
  u64 begin;  // index of the wave's first element
  u32 stride, column0;
  i32 rows, columns;  // may be negative
  int type;
};

// Register r of lane l of fragment n is column 16 (l / 16) + 4 n + r of its panel (ColumnOfRow), row l % 16 of its
// fragment m: a lane has up to 16 consecutive columns of each row.
template <class T, Type kType>
MXORT_DEVICE void StoreLanes(const Output& out, const f32x4 (&sum)[T::kFragN][T::kFragM]) {
  constexpr int kGroup = T::kFragN < kFragments ? T::kFragN : kFragments, kCount = 4 * kGroup;
  const u32 lane = Lane();
  Unroll<0, T::kFragN / kGroup>([&](auto group) __attribute__((always_inline)) {
    const i32 column = static_cast<i32>(group.value * kPanelRows + lane / 16 * 16);
    float scale[kCount], bias[kCount];
    Unroll<0, kCount>([&](auto i) __attribute__((always_inline)) {
      const u32 c = column + i.value < out.columns ? out.column0 + static_cast<u32>(column + i.value) : 0;
      scale[i.value] = out.column_scale ? out.column_scale[c] : 1.0f;
      bias[i.value] = out.column_scale ? out.bias[c] : 0.0f;
    });
    Unroll<0, T::kFragM>([&](auto m) __attribute__((always_inline)) {
      float v[kCount];
      Unroll<0, kCount>([&](auto i) __attribute__((always_inline)) {
        v[i.value] = sum[group.value * kGroup + i.value / 4][m.value][i.value % 4] * scale[i.value] + bias[i.value];
      });
      const u32 row = lane % 16 + m.value * kFragmentRows;
      if (static_cast<i32>(row) < out.rows) {
        StoreWide<kType>(out.y, out.begin + static_cast<u64>(row) * out.stride + static_cast<u32>(column), column,
                         out.columns, v);
      }
    });
  });
}

// The same for any stride: through LDS, 16 rows at a time, element by element. The wave's own part of LDS.
template <class T>
MXORT_DEVICE void StoreNarrow(const Output& out, LdsBytes lds, const f32x4 (&sum)[T::kFragN][T::kFragM]) {
  constexpr u32 kWidth = T::kFragN * kFragmentRows;
  static_assert(T::kWaves * kFragmentRows * kWidth * 4 <= T::kLdsBytes, "16 rows of every wave fit");
  typedef __attribute__((address_space(3))) float* LdsFloats;
  const LdsFloats rows = reinterpret_cast<LdsFloats>(lds) + WaveIndex() * kFragmentRows * kWidth;
  const u32 lane = Lane();
  Unroll<0, T::kFragM>([&](auto m) __attribute__((always_inline)) {
    Unroll<0, T::kFragN>([&](auto n) __attribute__((always_inline)) {
      // With fewer than four fragments a wave's columns are not consecutive in its panel: `column` below undoes it.
      const u32 at = lane % 16 * kWidth + n.value * kFragmentRows + lane / 16 * 4;
      *reinterpret_cast<__attribute__((address_space(3))) f32x4*>(rows + at) = sum[n.value][m.value];
    });
#pragma clang loop unroll(disable)
    for (u32 i = lane; i < kFragmentRows * kWidth; i += kWave) {
      const u32 row = i / kWidth + m.value * kFragmentRows, n = i % kWidth / 16, r = i % 16;
      const u32 column = n / kFragments * kPanelRows + ColumnOfRow(n % kFragments, r);
      if (static_cast<i32>(row) >= out.rows || static_cast<i32>(column) >= out.columns) continue;
      const float x = rows[i];
      const u32 c = out.column0 + column;
      const float y = out.column_scale ? x * out.column_scale[c] + out.bias[c] : x;
      StoreOne(out.type, out.y, out.begin + static_cast<u64>(row) * out.stride + column, y);
    }
  });
}

// Stores a wave's accumulators.
template <class T>
MXORT_DEVICE void StoreTile(const GemmArgs& args, TileIndex tile, LdsBytes lds,
                            const f32x4 (&sum)[T::kFragN][T::kFragM]) {
  const u32 wave = WaveIndex();
  const u32 m = wave % T::kWavesM * T::kFragM, n = wave / T::kWavesM * T::kFragN;
  const u32 row = tile.m * T::kRows + m * kFragmentRows;
  const u32 column = tile.n * T::kColumns + n / kFragments * kPanelRows + n % kFragments * 4;
  Output out;
  const bool partial = args.splits > 1;
  out.y = partial ? args.partial + static_cast<u64>(GroupY()) * args.m * args.n : args.y;
  out.type = partial ? static_cast<int>(Type::kFloat) : args.type;
  out.column_scale = partial ? nullptr : args.column_scale;
  out.bias = args.bias;
  out.begin = static_cast<u64>(row) * args.n + column;
  out.stride = args.n;
  out.column0 = column;
  out.rows = static_cast<i32>(args.m) - static_cast<i32>(row);
  out.columns = static_cast<i32>(args.n) - static_cast<i32>(column);
  constexpr int kGroup = T::kFragN < kFragments ? T::kFragN : kFragments;
  const bool is_float = out.type == static_cast<int>(Type::kFloat);
  if (args.n % (is_float ? 4 : 8) != 0 || (!is_float && kGroup == 1)) {
    Barrier();  // every wave has read its last fragments
    StoreNarrow<T>(out, lds, sum);
  } else if (is_float) {
    StoreLanes<T, Type::kFloat>(out, sum);
  } else if (out.type == static_cast<int>(Type::kFloat16)) {
    StoreLanes<T, Type::kFloat16>(out, sum);
  } else {
    StoreLanes<T, Type::kBFloat16>(out, sum);
  }
}

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_EPILOGUE_H_
