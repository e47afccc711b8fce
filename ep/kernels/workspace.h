// Scratch of one thread.
#ifndef MXORT_KERNELS_WORKSPACE_H_
#define MXORT_KERNELS_WORKSPACE_H_

#include <cstddef>
#include <cstdint>
#include <new>

namespace mxort {

// Memory that a thread keeps between calls, 64-byte aligned: an allocation of megabytes a call would cost page faults
// each time. What is asked of it must be bounded.
class Workspace {
 public:
  uint8_t* Get(size_t bytes) {
    if (bytes > size_) {
      Release();
      data_ = static_cast<uint8_t*>(::operator new(bytes, kAlignment));
      size_ = bytes;
    }
    return data_;
  }
  ~Workspace() { Release(); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  void Release() {
    if (data_) ::operator delete(data_, kAlignment);
    data_ = nullptr;
    size_ = 0;
  }
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace mxort

#endif  // MXORT_KERNELS_WORKSPACE_H_
