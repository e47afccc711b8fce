// How operands lie in device memory: one layout for every kernel, tile size and architecture. Host and device, no
// headers.
//
// A *fragment* is what one wave feeds to one 16x16x128 instruction: 16 rows x 128 k. Lane l holds row l % 16 and, of
// the four 32-blocks of these 128 k, block l / 16. A *record* is 64 rows x 128 k: 256 bytes of scales, then 4
// fragments.
//
//   operand   [panel of 64 rows][step of 128 k][record]           a step repeats `terms` times for a sum of terms
//   record    | scales: lane 0, lane 1, ... lane 63, 4 bytes each | fragment 0 | fragment 1 | fragment 2 | fragment 3 |
//   scale     byte i of lane l = E8M0 of fragment i, row l % 16, block l / 16: what opsel = i picks
//   fragment  slots of 1 KB: | lane 0, lane 1, ... lane 63: 16 bytes each | the same for the next 16 bytes of each lane
//   | ...
//             FP6: a pair of fragments shares 3 slots: bytes 0-15 of the even one | its bytes 16-23, bytes 0-7 of the
//             odd one | bytes 8-23 of the odd one; a lane's 48 bytes fill 12 consecutive registers
//
// So a wave's load of 16 bytes a lane is one contiguous kilobyte in memory and in LDS, copied linearly by direct-to-LDS
// loads and read back by ds_read_b128 without bank conflicts: no swizzle is needed. Rows are the rows of A, and for
// weights the output columns, permuted inside a panel so that the 4 accumulators x 4 fragments of a lane are 16
// consecutive columns (ColumnOfRow).
//
// What a lane's bytes hold (notes of the instruction: docs/mi355x.md, "Operand layout"):
//   FP4   16 bytes: k 0..31 of its block, low nibble first
//   FP6   24 bytes: k 0..31 of its block, 6 bits each, LSB first
//   FP8   32 bytes: first 16: k 16g .. 16g + 15 of the step (g = l / 16); next 16: k 64 + 16g ..
//   BF16  64 bytes: k 0..31 of its block. No scales: they are folded into the values.
#ifndef MXORT_KERNELS_HIP_LAYOUT_H_
#define MXORT_KERNELS_HIP_LAYOUT_H_

#if defined(__HIP__)
#define MXORT_LAYOUT __attribute__((host, device))
#else
#define MXORT_LAYOUT
#endif

namespace mxort::hip {

inline constexpr int kStepK = 128;
inline constexpr int kFragmentRows = 16;
inline constexpr int kFragments = 4;
inline constexpr int kPanelRows = kFragmentRows * kFragments;
inline constexpr int kStepBlocks = 4;
inline constexpr int kScaleRecordBytes = 256;
inline constexpr int kLaneSlot = 16;               // bytes of a lane in one contiguous load
inline constexpr int kSlotBytes = 64 * kLaneSlot;  // one kilobyte

// Formats an activation operand may have on the device.
enum class Operand : int { kFp4, kFp6E2M3, kFp6E3M2, kFp8E4M3, kBf16 };

MXORT_LAYOUT constexpr int LaneBytes(Operand f) {
  return f == Operand::kFp4 ? 16 : f == Operand::kFp8E4M3 ? 32 : f == Operand::kBf16 ? 64 : 24;
}
MXORT_LAYOUT constexpr bool HasScales(Operand f) { return f != Operand::kBf16; }
MXORT_LAYOUT constexpr int FragmentBytes(Operand f) { return 64 * LaneBytes(f); }
MXORT_LAYOUT constexpr int ScaleBytes(Operand f) { return HasScales(f) ? kScaleRecordBytes : 0; }
MXORT_LAYOUT constexpr int RecordBytes(Operand f) { return ScaleBytes(f) + kFragments * FragmentBytes(f); }

// Codes of a weight: FP4 as above. Every wider format has a byte a code, a fragment two slots: k 0..15 of every lane's
// block, then 16..31. Those of MXFP6 become E4M3, which holds them exactly.
enum class WeightCode : int { kFp4, kInt8, kE4M3 };
MXORT_LAYOUT constexpr int WeightSlots(WeightCode code) { return code == WeightCode::kFp4 ? 1 : 2; }
MXORT_LAYOUT constexpr int WeightRecordBytes(WeightCode code) {
  return kScaleRecordBytes + kFragments * WeightSlots(code) * kSlotBytes;
}

// A kernel that prepares its rows itself (direct.h) keeps them in LDS, a block of 32 of one row at UnitBytes and a byte
// of scale where there are scales.
inline constexpr int kDirectThreads = 512;
inline constexpr int kDirectLds = 63 * 1024;  // the 64th of what a workgroup has on gfx942 is for moments of rows
MXORT_LAYOUT constexpr int UnitBytes(Operand f) { return LaneBytes(f) == 24 ? 32 : LaneBytes(f); }

// Output column, inside its panel, that row r of fragment i computes.
MXORT_LAYOUT constexpr unsigned ColumnOfRow(unsigned fragment, unsigned row) {
  return 16 * (row / 4) + 4 * fragment + row % 4;
}

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_LAYOUT_H_
