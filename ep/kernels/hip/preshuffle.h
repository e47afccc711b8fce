// Weights into the records of layout.h, once at load, on the host. Knows neither ONNX Runtime nor HIP.
#ifndef MXORT_KERNELS_HIP_PRESHUFFLE_H_
#define MXORT_KERNELS_HIP_PRESHUFFLE_H_

#include <cstddef>
#include <cstdint>

#include "kernels/hip/layout.h"
#include "kernels/kernel.h"

namespace mxort::hip {

// Panels of 64 output columns, steps of 128 k.
int64_t PanelsOf(int64_t rows);
int64_t StepsOf(int64_t k);

// How weights of a format lie on the device.
WeightCode WeightCodeOf(WeightFormat format);
// Bytes of all weight records of [N, K].
size_t WeightRecordBytes(WeightFormat format, int64_t n, int64_t k);
// Bytes of all activation records of [M, K] in a format, `terms` records a step.
size_t ActivationRecordBytes(int operand, int64_t m, int64_t k, int terms);

// Writes panels [begin, end) one after the other to `records`; different panels may be written by different threads.
// Columns beyond N and blocks beyond K hold zero codes with scale byte 0: products with them are zero.
void PreshuffleWeights(WeightFormat format, const Weights& weights, int64_t n, int64_t k, int64_t begin, int64_t end,
                       uint8_t* records);

}  // namespace mxort::hip

#endif  // MXORT_KERNELS_HIP_PRESHUFFLE_H_
