// Several threads pack the same weights and multiply with them at the same time, as sessions of one process do. Built
// with ThreadSanitizer by `make sanitize`; the results are compared here.
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "kernels/kernel_table.h"
#include "kernels/matmul.h"

namespace {

using namespace mxort;

constexpr int kThreads = 4, kRuns = 50;
constexpr int64_t kM = 9, kK = 320, kN = 72;

void ThreadedLoop(int64_t tasks, const std::function<void(int64_t)>& body) {
  std::thread other([&] {
    for (int64_t i = 1; i < tasks; i += 2) body(i);
  });
  for (int64_t i = 0; i < tasks; i += 2) body(i);
  other.join();
}

struct Problem {
  MatMulSpec spec;
  std::vector<uint8_t> codes, scales;
  std::vector<float> column_scale, bias, a;

  explicit Problem(const MatMulSpec& s) : spec(s) {
    std::mt19937 random(1);
    const int64_t blocks = BlocksOf(kK);
    for (int64_t i = 0; i < kN * blocks * kPackedBlockBytes; ++i) codes.push_back(static_cast<uint8_t>(random()));
    for (int64_t i = 0; i < kN * blocks; ++i) scales.push_back(static_cast<uint8_t>(120 + random() % 10));
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < kN; ++i) column_scale.push_back(normal(random)), bias.push_back(normal(random));
    for (int64_t i = 0; i < kM * kK; ++i) a.push_back(normal(random));
    a[3] = 1e38f;  // one row goes through the reference
  }

  std::vector<float> Run(const Kernel& kernel, const ParallelFor& parallel) const {
    const auto packed = SharedPackedWeights(spec, *kernel.layout, {codes.data(), scales.data()});
    const Kernels kernels = {&kernel};
    std::vector<float> y(kM * kN);
    MatMulCall call;
    call.spec = &spec;
    call.kernels = &kernels;
    call.packed = packed.get();
    call.weights = {codes.data(), scales.data()};
    call.column_scale = column_scale.data();
    call.bias = bias.data();
    call.type = DataType::kFloat;
    call.M = kM;
    call.a = a.data();
    call.y = y.data();
    MatMul(call, parallel);
    return y;
  }
};

int Wrong(const Problem& problem, const Kernel& kernel) {
  const std::vector<float> expected = problem.Run(kernel, SerialFor);
  std::vector<std::thread> threads;
  std::vector<int> wrong(kThreads);
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kRuns; ++i) {
        const std::vector<float> y = problem.Run(kernel, i % 2 ? ParallelFor(ThreadedLoop) : ParallelFor(SerialFor));
        wrong[static_cast<size_t>(t)] += std::memcmp(y.data(), expected.data(), y.size() * sizeof(float)) != 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  int total = 0;
  for (const int w : wrong) total += w;
  return total;
}

}  // namespace

int main() {
  int passed = 0, failed = 0;
  for (const ActivationFormat format : {ActivationFormat::kNone, ActivationFormat::kMxfp6E2M3}) {
    const Problem problem({kK, kN, 32, format, AccuracyLevel::kBf16});
    for (const Kernel* kernel : KernelTable()) {
      if (!kernel->cpu_has(DetectCpu()) || !kernel->supports(problem.spec)) continue;
      const int wrong = Wrong(problem, *kernel);
      ++(wrong ? failed : passed);
      if (wrong) std::fprintf(stderr, "FAILED %s: %d of %d runs differ\n", kernel->name, wrong, kThreads * kRuns);
    }
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}
