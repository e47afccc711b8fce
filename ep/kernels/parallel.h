// Loops over tasks: the caller says who runs them. While a model runs, that is ONNX Runtime's thread pool.
#ifndef MXORT_KERNELS_PARALLEL_H_
#define MXORT_KERNELS_PARALLEL_H_

#include <cstdint>
#include <functional>

namespace mxort {

// Runs body(0) .. body(tasks - 1), in any order, possibly at the same time, and returns when all are done.
using ParallelFor = std::function<void(int64_t tasks, const std::function<void(int64_t)>& body)>;

void SerialFor(int64_t tasks, const std::function<void(int64_t)>& body);

// Threads that end with the loop: for work outside a running model, where no pool exists (loading, conversion,
// benchmarks). 0: as many as this process may use.
ParallelFor ThreadedFor(int threads);

}  // namespace mxort

#endif  // MXORT_KERNELS_PARALLEL_H_
