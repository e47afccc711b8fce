// What a self-check of tensor kernels works with: numbers that look random, memory of the device, a stream.
#ifndef MXORT_DEVICE_CHECK_RUN_H_
#define MXORT_DEVICE_CHECK_RUN_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "device/arena.h"
#include "device/check_results.h"
#include "device/device.h"
#include "device/status.h"
#include "kernels/kernel.h"

namespace mxort::device {

// Of one check. The first error is kept and makes the rest do nothing: see Status().
class CheckRun {
 public:
  CheckRun(const std::shared_ptr<Device>& device, DataType type);
  const std::shared_ptr<Device>& device() const { return arena_->device(); }
  const std::shared_ptr<Arena>& arena() const { return arena_; }
  DataType type() const { return type_; }
  int device_type() const { return static_cast<int>(type_); }  // as a hip::Type
  size_t element_bytes() const;

  // Numbers of the type in [-1, 1); `scale` times that plus `offset`, rounded to the type.
  std::vector<float> Numbers(size_t count, float scale = 1, float offset = 0);
  // In 0 .. below - 1.
  uint32_t Whole(uint32_t below) { return static_cast<uint32_t>(random_() >> 8) % below; }
  std::vector<uint8_t> Bytes(size_t count);

  // Memory that is freed with the run. Null after an error.
  void* Allocate(size_t bytes);
  void* Send(const void* data, size_t bytes);
  template <class T>
  void* Send(const std::vector<T>& data) {
    return Send(data.data(), data.size() * sizeof(T));
  }
  void* SendNumbers(const std::vector<float>& x);  // as the type
  void* AllocateNumbers(size_t count) { return Allocate(count * element_bytes()); }

  // Calls launch(stream) unless there was an error.
  void Launch(const std::function<Status(void* stream)>& launch);
  std::vector<uint8_t> Fetch(const void* from, size_t bytes);  // waits
  template <class T>
  std::vector<T> Fetch(const void* from, size_t count) {
    const std::vector<uint8_t> bytes = Fetch(from, count * sizeof(T));
    const T* first = reinterpret_cast<const T*>(bytes.data());
    return std::vector<T>(first, first + count);
  }
  std::vector<float> FetchNumbers(const void* from, size_t count);

  const Status& status() const { return status_; }

 private:
  void Keep(Status status);

  const DataType type_;
  const std::shared_ptr<Arena> arena_;
  std::unique_ptr<Stream> stream_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
  std::minstd_rand random_{1};
  Status status_;
};

// Judges all elements of one result (Comparison). `bound`: of the relative RMS error before the result is rounded to
// its type; 0 where every step is exact.
void Compare(const std::vector<float>& got, const std::vector<double>& right, DataType type, double bound,
             KernelCheck* check);
void CompareBytes(const std::vector<uint8_t>& got, const std::vector<uint8_t>& right, KernelCheck* check);

}  // namespace mxort::device

#endif  // MXORT_DEVICE_CHECK_RUN_H_
