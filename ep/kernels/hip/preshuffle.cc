#include "kernels/hip/preshuffle.h"

#include <cstring>

#include "kernels/hip/layout.h"

namespace mxort::hip {

int64_t PanelsOf(int64_t rows) { return (rows + kPanelRows - 1) / kPanelRows; }
int64_t StepsOf(int64_t k) { return (k + kStepK - 1) / kStepK; }

size_t WeightRecordBytes(int64_t n, int64_t k) {
  return static_cast<size_t>(PanelsOf(n) * StepsOf(k)) * static_cast<size_t>(RecordBytes(Operand::kFp4));
}

size_t ActivationRecordBytes(int operand, int64_t m, int64_t k, int terms) {
  const auto record = static_cast<size_t>(RecordBytes(static_cast<Operand>(operand)));
  return static_cast<size_t>(PanelsOf(m) * StepsOf(k) * terms) * record;
}

void PreshuffleWeights(const Weights& weights, int64_t n, int64_t k, int64_t begin, int64_t end, uint8_t* records) {
  const int64_t blocks = BlocksOf(k), steps = StepsOf(k);
  const size_t record_bytes = static_cast<size_t>(RecordBytes(Operand::kFp4));
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
          std::memcpy(record + kScaleRecordBytes + fragment * kSlotBytes + lane * kLaneSlot,
                      weights.codes + index * kPackedBlockBytes, kPackedBlockBytes);
        }
      }
    }
  }
}

}  // namespace mxort::hip
