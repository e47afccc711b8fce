// Loops over tasks: the caller says who runs them. While a model runs, that is ONNX Runtime's thread pool.
#ifndef MXORT_KERNELS_PARALLEL_H_
#define MXORT_KERNELS_PARALLEL_H_

#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>

namespace mxort {

// Runs body(0) .. body(tasks - 1), in any order, possibly at the same time, and returns when all are done. Throws the
// first exception of a body; others may then not have run.
using ParallelFor = std::function<void(int64_t tasks, const std::function<void(int64_t)>& body)>;

void SerialFor(int64_t tasks, const std::function<void(int64_t)>& body);

// Threads that end with the loop: for work outside a running model, where no pool exists (loading, conversion,
// benchmarks). 0: as many as this process may use. Throws std::invalid_argument for fewer.
ParallelFor ThreadedFor(int threads);

// Carries the first exception of several threads to the one that waits for them.
class FirstError {
 public:
  template <class Body>
  void Catch(const Body& body) noexcept {
    try {
      body();
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }
  // To be called when all threads are done.
  void Rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::mutex mutex_;
  std::exception_ptr error_;
};

}  // namespace mxort

#endif  // MXORT_KERNELS_PARALLEL_H_
