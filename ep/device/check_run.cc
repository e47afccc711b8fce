#include "device/check_run.h"

#include <algorithm>
#include <utility>

#include "kernels/float16.h"

namespace mxort::device {

CheckRun::CheckRun(const std::shared_ptr<Device>& device, DataType type) : type_(type), arena_(Arena::Create(device)) {
  Keep(Stream::Create(device, &stream_));
}

size_t CheckRun::element_bytes() const { return DataTypeBytes(type_); }

void CheckRun::Keep(Status status) {
  if (status_.ok()) status_ = std::move(status);
}

std::vector<float> CheckRun::Numbers(size_t count, float scale, float offset) {
  std::vector<float> x(count);
  for (float& value : x) value = (static_cast<float>(random_() >> 8) / 4194304.0f - 1.0f) * scale + offset;
  return FromType(type_, InType(type_, x));
}

std::vector<uint8_t> CheckRun::Bytes(size_t count) {
  std::vector<uint8_t> bytes(count);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(Whole(256));
  return bytes;
}

void* CheckRun::Allocate(size_t bytes) {
  if (!status_.ok()) return nullptr;
  Keep(buffers_.emplace_back(std::make_unique<Buffer>())->Allocate(arena_, bytes, stream_->handle()));
  return status_.ok() ? buffers_.back()->data() : nullptr;
}

void* CheckRun::Send(const void* data, size_t bytes) {
  void* to = Allocate(bytes);
  if (to && bytes) Keep(Copy(device()->ordinal(), to, kHost, data, bytes, stream_->handle()));
  return to;
}

void* CheckRun::SendNumbers(const std::vector<float>& x) { return Send(InType(type_, x)); }

void CheckRun::Launch(const std::function<Status(void* stream)>& launch) {
  if (status_.ok()) Keep(launch(stream_->handle()));
}

std::vector<uint8_t> CheckRun::Fetch(const void* from, size_t bytes) {
  std::vector<uint8_t> to(bytes);
  if (status_.ok()) Keep(Copy(kHost, to.data(), device()->ordinal(), from, bytes, stream_->handle()));
  if (status_.ok()) Keep(stream_->Synchronize());
  return to;
}

std::vector<float> CheckRun::FetchNumbers(const void* from, size_t count) {
  return FromType(type_, Fetch(from, count * element_bytes()));
}

void Compare(const std::vector<float>& got, const std::vector<double>& right, DataType type, double bound,
             KernelCheck* check) {
  check->bound = std::max(check->bound, bound);
  Comparison comparison(type);
  for (size_t i = 0; i < right.size(); ++i) comparison.Add(got[i], right[i]);
  KernelCheck judged = *check;
  judged.bound = bound;
  comparison.Judge(&judged);
  check->passed = judged.passed;
  check->error = judged.error;
}

void CompareBytes(const std::vector<uint8_t>& got, const std::vector<uint8_t>& right, KernelCheck* check) {
  const std::vector<float> bytes(got.begin(), got.end());
  Compare(bytes, std::vector<double>(right.begin(), right.end()), DataType::kFloat, 0, check);
}

}  // namespace mxort::device
