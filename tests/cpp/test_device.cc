// The device layer from many threads at once, and the rules of its memory and copies that Python cannot see. Runs on
// hipsim (MXORT_HIP_LIBRARY), two GPUs; built with ThreadSanitizer by `make sanitize`.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "device/arena.h"
#include "device/device.h"
#include "device/device_weights.h"
#include "device/matmul_plan.h"
#include "device/self_check.h"
#include "kernels/check_problem.h"

namespace {

using namespace mxort;
using namespace mxort::device;

constexpr int kThreads = 8, kRuns = 200;
constexpr int64_t kM = 3, kK = 64, kN = 24;

int passed = 0, failed = 0;

void Expect(bool ok, const char* what) {
  ++(ok ? passed : failed);
  if (!ok) std::fprintf(stderr, "FAILED %s\n", what);
}

// For steps that everything after depends on.
void Need(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "FAILED %s\n", status.message().c_str());
  std::exit(1);
}

std::shared_ptr<Device> OpenDevice(int ordinal) {
  std::shared_ptr<Device> device;
  Need(Device::Open(ordinal, &device));
  return device;
}

std::unique_ptr<Stream> NewStream(const std::shared_ptr<Device>& device) {
  std::unique_ptr<Stream> stream;
  Need(Stream::Create(device, &stream));
  return stream;
}

std::unique_ptr<MatMulPlan> NewPlan(const std::shared_ptr<Arena>& arena, const CheckProblem& problem) {
  const HostWeights host = {problem.weights(), problem.column_scale.data(), problem.bias.data()};
  std::unique_ptr<MatMulPlan> plan;
  PlanOptions options;
  options.self_check = false;
  Need(MatMulPlan::Create(arena, problem.spec, DataType::kFloat, host, options, &plan));
  return plan;
}

std::vector<float> Run(const MatMulPlan& plan, const CheckProblem& problem, const Stream& stream,
                       const std::shared_ptr<Arena>& arena) {
  const int gpu = plan.device()->ordinal();
  std::vector<float> y(static_cast<size_t>(kM * kN));
  const size_t a_bytes = problem.a.size() * sizeof(float), y_bytes = y.size() * sizeof(float);
  Buffer a_device, y_device;
  Need(a_device.Allocate(arena, a_bytes, stream.handle()));
  Need(y_device.Allocate(arena, y_bytes, stream.handle()));
  Need(Copy(gpu, a_device.data(), kHost, problem.a.data(), a_bytes, stream.handle()));
  Need(plan.Launch(stream.handle(), a_device.data(), kM, y_device.data(), arena));
  Need(Copy(kHost, y.data(), gpu, y_device.data(), y_bytes, stream.handle()));
  Need(stream.Synchronize());
  return y;
}

// One plan, and four plans of the same weights, used by all threads with a stream each.
void TestThreads(const CheckProblem& problem) {
  const auto arena = Arena::Create(OpenDevice(0));
  std::vector<float> expected;
  {
    const auto plan = NewPlan(arena, problem);
    expected = Run(*plan, problem, *NewStream(arena->device()), arena);
  }
  for (const int plans : {1, 4}) {
    std::vector<std::unique_ptr<MatMulPlan>> all;
    for (int i = 0; i < plans; ++i) all.push_back(NewPlan(arena, problem));
    std::vector<int> wrong(kThreads);
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        const auto stream = NewStream(arena->device());
        for (int i = 0; i < kRuns; ++i) {
          const auto& plan = *all[static_cast<size_t>((t + i) % plans)];
          wrong[static_cast<size_t>(t)] += Run(plan, problem, *stream, arena) != expected;
        }
        arena->ReleaseStream(stream->handle());
      });
    }
    for (std::thread& thread : threads) thread.join();
    int total = 0;
    for (const int w : wrong) total += w;
    Expect(total == 0, "a run among threads differs");
  }
  // All plans are gone, and so are their weights; what threads used is cached.
  const Arena::Statistics before = arena->statistics();
  Expect(before.in_use == 0, "memory is in use after the last run");
  Expect(before.reserved <= 16 * kThreads, "threads do not reuse memory");
  Need(arena->Trim());
  Expect(arena->statistics().cached == 0, "trimming leaves memory");
}

// Devices, weights and checks that come and go in several threads.
void TestComingAndGoing(const CheckProblem& problem) {
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 2; ++i) {
        const auto arena = Arena::Create(OpenDevice(t % 2));
        const auto plan = NewPlan(arena, problem);
        uint64_t disabled = 1;
        Need(CheckKernels(plan->device(), problem.spec, DataType::kFloat, false, &disabled));
        if (disabled != 0 || KernelChecks().size() > 100) std::exit(1);
        Run(*plan, problem, *NewStream(plan->device()), arena);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

void TestArena() {
  const auto device = OpenDevice(0);
  const auto arena = Arena::Create(device);
  const auto one = NewStream(device), two = NewStream(device);
  const auto allocate = [&](const Stream* stream) {
    void* p = nullptr;
    Need(arena->Allocate(1000, stream ? stream->handle() : nullptr, &p));
    return p;
  };
  void* a = allocate(one.get());
  Expect(reinterpret_cast<uintptr_t>(a) % 256 == 0, "alignment");
  Expect(arena->Free(a) && !arena->Free(a) && arena->Free(nullptr), "freeing twice is noticed");
  void* b = allocate(two.get());
  Expect(b != a, "a stream gets what another one may still use");
  Expect(allocate(one.get()) == a, "a stream gets its own memory again");
  arena->Free(a);
  arena->ReleaseStream(one->handle());
  arena->Free(b);
  Expect(allocate(nullptr) == a, "what a finished stream used serves everyone");
  arena->ReleaseStream(two->handle());
  Expect(allocate(one.get()) == b, "what a finished stream used serves other streams");
  arena->ReleaseStream(one->handle());
  arena->Free(b);
  Expect(allocate(two.get()) == b, "a block in use when its stream finished serves everyone once it is freed");
  void* none = nullptr;
  Need(arena->Allocate(0, nullptr, &none));
  Expect(none != nullptr, "no bytes are an allocation too");
  const Status huge = arena->Allocate(~size_t{0}, nullptr, &none);
  Expect(huge.code() == ErrorCode::kOutOfMemory && none == nullptr, "a size that overflows");
  const auto pinned = Arena::Create(device, 4096, Arena::Kind::kPinned);
  void* host = nullptr;
  Need(pinned->Allocate(4096, nullptr, &host));
  std::memset(host, 1, 4096);
  Expect(pinned->Allocate(1, nullptr, &none).code() == ErrorCode::kOutOfMemory, "the limit of pinned memory");
}

void TestCopies() {
  const auto first = OpenDevice(0), second = OpenDevice(1);
  const auto memory = Arena::Create(first), other = Arena::Create(second);
  const auto stream = NewStream(first), waiting = NewStream(second);
  std::vector<char> from(5000), to(5000);
  for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<char>(i * 7);
  Buffer a, b, c;
  Need(a.Allocate(memory, from.size(), nullptr));
  Need(b.Allocate(memory, from.size(), nullptr));
  Need(c.Allocate(other, from.size(), nullptr));
  for (void* s : {stream->handle(), static_cast<void*>(nullptr)}) {
    std::fill(to.begin(), to.end(), 0);
    Need(Copy(0, a.data(), kHost, from.data(), from.size(), s));
    Need(Copy(0, b.data(), 0, a.data(), from.size(), s));
    Need(Copy(1, c.data(), 0, b.data(), from.size(), s));
    // The other device's stream waits for this one by an event; the thread does not.
    void* reader = nullptr;
    std::unique_ptr<Event> event;
    if (s) {
      reader = waiting->handle();
      Need(Event::Create(first, false, &event));
      Need(event->Record(s));
      Need(event->WaitOn(reader));
    }
    Need(Copy(kHost, to.data(), 1, c.data(), from.size(), reader));
    Need(waiting->Synchronize());
    Expect(to == from, "host to device to other device to host");
  }
  Need(Copy(kHost, to.data(), kHost, from.data(), 0, nullptr));
  int where = -2;
  Need(DeviceOfPointer(a.data(), &where));
  Expect(where == 0, "memory of the first device");
  Need(DeviceOfPointer(c.data(), &where));
  Expect(where == 1, "memory of the second device");
  Need(DeviceOfPointer(from.data(), &where));
  Expect(where == kHost, "memory of the host");
  std::unique_ptr<Event> start, stop;
  Need(Event::Create(first, true, &start));
  Need(Event::Create(first, true, &stop));
  Need(start->Record(stream->handle()));
  Need(stop->Record(stream->handle()));
  Need(stop->Synchronize());
  float milliseconds = -1;
  Need(stop->MillisecondsSince(*start, &milliseconds));
  Expect(milliseconds >= 0, "elapsed time");
  void* const handle = stop->handle();
  stop.reset();
  Need(Event::Create(first, true, &stop));
  Expect(stop->handle() == handle, "an event that is gone is used again");
  std::unique_ptr<Event> untimed;
  Need(Event::Create(first, false, &untimed));
  Expect(untimed->handle() != handle, "but for its own kind only");
  size_t free_bytes = 0, total_bytes = 0;
  Need(first->Memory(&free_bytes, &total_bytes));
  Expect(free_bytes < total_bytes && total_bytes == first->info().memory_bytes, "memory of the device");
}

void TestLaunch(const CheckProblem& problem) {
  const auto arena = Arena::Create(OpenDevice(1));
  const auto plan = NewPlan(arena, problem);
  const auto stream = NewStream(arena->device());
  Buffer memory;
  Need(memory.Allocate(arena, 65536, nullptr));
  char* p = static_cast<char*>(memory.data());
  const auto code = [&](const void* a, int64_t m, void* y) {
    return plan->Launch(stream->handle(), a, m, y, p).code();
  };
  Expect(code(p + 4, kM, p + 4096) == ErrorCode::kInvalidArgument, "A is not aligned");
  Expect(code(p, kM, p + 4098) == ErrorCode::kInvalidArgument, "Y is not aligned");
  Expect(code(p, -1, p) == ErrorCode::kInvalidArgument, "a negative number of rows");
  Expect(code(nullptr, 0, nullptr) == ErrorCode::kOk && plan->WorkspaceBytes(0) == 0, "no rows, no tensors");
  // Four GiB elements and more: several launches, each within what a kernel indexes, with one workspace.
  const int64_t many = (int64_t{1} << 32) / kN + 5;
  Expect(plan->WorkspaceBytes(many) < (size_t{1} << 30) && !plan->KernelFor(many).empty(), "more than 2^32 outputs");
  // The default stream: the result is there when Launch returns.
  std::vector<float> y(static_cast<size_t>(kM * kN)), expected(y);
  Need(Copy(1, p, kHost, problem.a.data(), problem.a.size() * sizeof(float), nullptr));
  Need(plan->Launch(nullptr, p, kM, p + 4096, arena));
  Need(Copy(kHost, y.data(), 1, p + 4096, y.size() * sizeof(float), stream->handle()));
  problem.Expected({0, kM}, expected.data());
  double worst = 0;
  for (size_t i = 0; i < y.size(); ++i) worst = std::max(worst, static_cast<double>(std::abs(y[i] - expected[i])));
  Expect(worst < 1e-3, "the default stream's result");
}

void TestSupports() {
  DeviceInfo info;
  info.arch = "gfx950";
  info.compute_units = 256;
  MatMulSpec spec{64, int64_t{1} << 28, 1, ActivationFormat::kMxfp4, AccuracyLevel::kBf16};
  Expect(Supports(info, spec, DataType::kFloat).code() == ErrorCode::kUnsupported, "more columns than a grid has");
  spec.N = 64;
  Expect(Supports(info, spec, DataType::kFloat).ok(), "a small problem");
  info.unsupported = "no kernels";
  Expect(Supports(info, spec, DataType::kFloat).message() == "no kernels", "an unsupported device");
}

// Static objects go after HIP's own destructors have run, because they were there before HIP was loaded. The simulated
// runtime aborts when it is called then.
struct Kept {
  std::shared_ptr<Arena> arena;
  Buffer block;
  std::unique_ptr<Stream> stream;
  std::unique_ptr<Event> event;
  void* function = nullptr;
  ~Kept() {
    const std::string error = arena ? arena->device()->Synchronize().message() : "not opened";
    if (error.find("hipErrorDeinitialized") != std::string::npos) return;
    std::fprintf(stderr, "FAILED a call after the end of HIP: got '%s'\n", error.c_str());
    std::_Exit(1);
  }
} kept;

void TestEndOfTheProcess() {
  kept.arena = Arena::Create(OpenDevice(0));
  Need(kept.block.Allocate(kept.arena, 4096, nullptr));
  kept.stream = NewStream(kept.arena->device());
  Need(Event::Create(kept.arena->device(), false, &kept.event));
  Need(kept.arena->device()->Kernel("prepare", "reduce", &kept.function));
}

}  // namespace

int main() {
  setenv("HIPSIM_DEVICES", "gfx950:2", 1);
  const CheckProblem problem({kK, kN, 1, ActivationFormat::kMxfp4, AccuracyLevel::kBf16}, kM);
  TestSupports();
  TestArena();
  TestCopies();
  TestLaunch(problem);
  TestComingAndGoing(problem);
  TestThreads(problem);
  TestEndOfTheProcess();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}
