#include "kernels/hip/preshuffle.h"

#include <cstring>

#include "kernels/hip/layout.h"

namespace mxort::hip {

int64_t PanelsOf(int64_t rows) { return (rows + kPanelRows - 1) / kPanelRows; }
int64_t StepsOf(int64_t k) { return (k + kStepK - 1) / kStepK; }

WeightCode WeightCodeOf(WeightFormat format) {
  if (format == WeightFormat::kMxfp4) return WeightCode::kFp4;
  return format == WeightFormat::kMxint8 ? WeightCode::kInt8 : WeightCode::kE4M3;
}

size_t WeightRecordBytes(WeightFormat format, int64_t n, int64_t k) {
  return static_cast<size_t>(PanelsOf(n) * StepsOf(k)) * static_cast<size_t>(WeightRecordBytes(WeightCodeOf(format)));
}

size_t ActivationRecordBytes(int operand, int64_t m, int64_t k, int terms) {
  const auto record = static_cast<size_t>(RecordBytes(static_cast<Operand>(operand)));
  return static_cast<size_t>(PanelsOf(m) * StepsOf(k) * terms) * record;
}

namespace {

// The codes of a packed block, a byte each as the device has them.
template <class F>
void UnpackCodes(const uint8_t* packed, uint8_t* codes) {
  UnpackBlock<F>(packed, codes);
  if constexpr (CodeBits<F>() == 6) {
    for (int i = 0; i < kBlockSize; ++i) codes[i] = RoundToElement<E4M3>(DecodeElement<F>(codes[i])).code;
  }
}

// One block of 32 k of a row to its place in a fragment.
void PlaceBlock(WeightFormat format, const uint8_t* packed, uint8_t* fragment, unsigned lane) {
  if (format == WeightFormat::kMxfp4) {
    std::memcpy(fragment + lane * kLaneSlot, packed, kPackedBlockBytes);
    return;
  }
  uint8_t codes[kBlockSize];
  WithElement(format, [&](auto element) { UnpackCodes<decltype(element)>(packed, codes); });
  std::memcpy(fragment + lane * kLaneSlot, codes, kLaneSlot);
  std::memcpy(fragment + kSlotBytes + lane * kLaneSlot, codes + kLaneSlot, kLaneSlot);
}

}  // namespace

void PreshuffleWeights(WeightFormat format, const Weights& weights, int64_t n, int64_t k, int64_t begin, int64_t end,
                       uint8_t* records) {
  const int64_t blocks = BlocksOf(k), steps = StepsOf(k);
  const WeightCode code = WeightCodeOf(format);
  const auto record_bytes = static_cast<size_t>(WeightRecordBytes(code));
  const auto fragment_bytes = static_cast<unsigned>(WeightSlots(code) * kSlotBytes);
  uint8_t* record = records;
  for (int64_t panel = begin; panel < end; ++panel) {
    for (int64_t step = 0; step < steps; ++step, record += record_bytes) {
      std::memset(record, 0, record_bytes);
      for (unsigned fragment = 0; fragment < kFragments; ++fragment) {
        for (unsigned lane = 0; lane < 64; ++lane) {
          const unsigned row = lane % kFragmentRows, group = lane / kFragmentRows;
          const int64_t column = panel * kPanelRows + static_cast<int64_t>(ColumnOfRow(fragment, row));
          const int64_t block = step * kStepBlocks + group;
          if (column >= n || block >= blocks) continue;
          const int64_t index = column * blocks + block;
          record[lane * 4 + fragment] = weights.scales[index];
          PlaceBlock(format, weights.codes + index * BlockBytes(format),
                     record + kScaleRecordBytes + fragment * fragment_bytes, lane);
        }
      }
    }
  }
}

}  // namespace mxort::hip
