// Several threads pack the same weights and multiply with them at the same time, as sessions of one process do. Built
// with ThreadSanitizer by `make sanitize`; the results are compared here.
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "kernels/attention.h"
#include "kernels/content_cache.h"
#include "kernels/experts.h"
#include "kernels/fingerprint.h"
#include "kernels/kernel_table.h"
#include "kernels/matmul.h"
#include "kernels/vector_functions.h"

// Every n-th allocation of a thread that asks for it fails once.
thread_local int allocations_left = -1;

void* operator new(size_t bytes) {
  if (allocations_left == 0) {
    allocations_left = -1;
    throw std::bad_alloc();
  }
  if (allocations_left > 0) --allocations_left;
  void* p = std::malloc(bytes ? bytes : 1);
  if (!p) throw std::bad_alloc();
  return p;
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }

namespace {

using namespace mxort;

int passed = 0, failed = 0;
void Expect(bool ok, const char* what) {
  ++(ok ? passed : failed);
  if (!ok) std::fprintf(stderr, "FAILED %s\n", what);
}

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
    for (int64_t i = 0; i < kN * blocks * BlockBytes(s.weight_format); ++i)
      codes.push_back(static_cast<uint8_t>(random()));
    for (int64_t i = 0; i < kN * blocks; ++i) scales.push_back(static_cast<uint8_t>(120 + random() % 10));
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < kN; ++i) column_scale.push_back(normal(random)), bias.push_back(normal(random));
    for (int64_t i = 0; i < kM * kK; ++i) a.push_back(normal(random));
    a[3] = 1e38f;  // one row goes through the reference
  }

  std::vector<float> Run(const Kernel& kernel, bool gated, const ParallelFor& parallel) const {
    const auto packed = SharedPackedWeights(spec, *kernel.layout, {codes.data(), scales.data()});
    const Kernels kernels = {&kernel};
    std::vector<float> y(kM * kN);
    MatMulCall call;
    call.spec = &spec;
    call.kernels = &kernels;
    call.operand = {packed.get(), {codes.data(), scales.data()}, column_scale.data(), bias.data()};
    call.type = DataType::kFloat;
    call.M = kM;
    call.a = a.data();
    call.y = y.data();
    if (gated) call.epilogue = {SelectFunctions(DetectCpu(), "").activate, Activation::kSilu, &call.operand};
    MatMul(call, parallel);
    return y;
  }
};

int Wrong(const Problem& problem, const Kernel& kernel, bool gated) {
  const std::vector<float> expected = problem.Run(kernel, gated, SerialFor);
  std::vector<std::thread> threads;
  std::vector<int> wrong(kThreads);
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kRuns; ++i) {
        const std::vector<float> y =
            problem.Run(kernel, gated, i % 2 ? ParallelFor(ThreadedLoop) : ParallelFor(SerialFor));
        wrong[static_cast<size_t>(t)] += std::memcmp(y.data(), expected.data(), y.size() * sizeof(float)) != 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  int total = 0;
  for (const int w : wrong) total += w;
  return total;
}

// Attention of `length` new positions behind 700 others, in a cache of its own and in the one that was given: the
// heads, chunks of keys and blocks of queries are computed by different threads.
void TestAttention(int64_t length, CacheFormat format, int64_t window) {
  constexpr int64_t kPast = 700, kHeads = 6, kKvHeads = 2, kSize = 32, kCapacity = 800, kBatch = 2;
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  const auto numbers = [&](int64_t count) {
    std::vector<float> x(static_cast<size_t>(count));
    for (float& value : x) value = normal(random);
    return x;
  };
  const std::vector<float> qkv = numbers(kBatch * length * (kHeads + 2 * kKvHeads) * kSize);
  const VectorFunctions& functions = SelectFunctions(DetectCpu(), "");
  const int64_t row_bytes = CacheRowBytes(format, kSize);
  const auto cache = [&] {
    std::vector<char> rows(static_cast<size_t>(kBatch * kKvHeads * kCapacity * row_bytes));
    for (size_t at = 0; at < rows.size(); at += static_cast<size_t>(row_bytes)) {
      const std::vector<float> x = numbers(kSize);
      auto* codes = reinterpret_cast<uint8_t*>(&rows[at]);
      if (format == CacheFormat::kFloat) {
        std::memcpy(codes, x.data(), static_cast<size_t>(row_bytes));
      } else {
        const bool wide = format == CacheFormat::kMxfp8;
        functions.quantize({x.data(), kSize, wide ? WeightFormat::kMxfp8E4M3 : WeightFormat::kMxfp4, ScaleRule::kEven,
                            codes, codes + (wide ? kSize : kSize / 2)},
                           {0, 1});
      }
    }
    return rows;
  };
  const std::vector<char> keys = cache(), values = cache();
  const std::vector<float> angles = numbers(kCapacity * kSize / 2);
  const std::vector<int64_t> past(kBatch, kPast);
  const std::vector<float> sinks = numbers(kHeads);
  const auto run = [&](bool shared, const ParallelFor& parallel) {
    std::vector<float> y(static_cast<size_t>(kBatch * length * kHeads * kSize));
    std::vector<char> old_keys = keys, old_values = values, new_keys(keys.size()), new_values(values.size());
    AttentionCall call{};
    call.spec = {kHeads, kKvHeads, 0, 0, true, false, window};
    call.sink = window ? sinks.data() : nullptr;
    call.kernel = functions.attend_keys;
    call.quantize = functions.quantize;
    call.format = format;
    call.batch = kBatch;
    call.length = length;
    call.head_size = kSize;
    call.qkv = qkv.data();
    call.past_key = old_keys.data();
    call.past_value = old_values.data();
    call.past_capacity = call.present_capacity = kCapacity;
    call.present_key = shared ? old_keys.data() : new_keys.data();
    call.present_value = shared ? old_values.data() : new_values.data();
    call.past = past.data();
    call.cos = call.sin = angles.data();
    call.rotary_pairs = kSize / 2;
    call.y = y.data();
    Attention(call, parallel);
    return y;
  };
  const std::vector<float> expected = run(false, SerialFor);
  Expect(run(false, ThreadedLoop) == expected, "attention: threads give the same bits");
  Expect(run(true, ThreadedLoop) == expected, "attention: and so does a cache that grows in place");
}

// Experts: rows of one are prepared and multiplied by different threads, and so are the columns of their sums. Then two
// nodes of the same weights, packed when they are used, of which fewer stay than a call needs, used by eight threads.
void TestExperts(int64_t rows, Gating gating) {
  constexpr int64_t kExperts = 5, kWidth = 96, kInner = 160;
  ExpertsSpec spec;
  spec.experts = kExperts;
  spec.chosen = 2;
  spec.hidden = kWidth;
  spec.inner = kInner;
  spec.gating = gating;
  spec.activation = Activation::kSilu;
  spec.shape = {1.702f, 1, 7};
  spec.first.K = kWidth;
  spec.first.N = kExperts * kInner * (gating == Gating::kNone ? 1 : 2);
  spec.second.K = kInner;
  spec.second.N = kExperts * kWidth;
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  const auto numbers = [&](int64_t count) {
    std::vector<float> x(static_cast<size_t>(count));
    for (float& value : x) value = normal(random);
    return x;
  };
  const Kernels kernels = SelectKernels(spec.first, DetectCpu(), "");
  struct Product {
    std::vector<uint8_t> codes, scales;
    std::vector<float> column_scale, bias;
    std::shared_ptr<const PackedWeights> packed;
  } products[2];
  MatMulOperand operands[2];
  for (size_t i = 0; i < 2; ++i) {
    const MatMulSpec& of = i == 0 ? spec.first : spec.second;
    Product& product = products[i];
    const int64_t blocks = of.N * BlocksOf(of.K);
    for (int64_t b = 0; b < blocks * kPackedBlockBytes; ++b) product.codes.push_back(static_cast<uint8_t>(random()));
    for (int64_t b = 0; b < blocks; ++b) product.scales.push_back(static_cast<uint8_t>(120 + random() % 4));
    product.column_scale = numbers(of.N);
    product.bias = numbers(of.N);
    const Weights weights = {product.codes.data(), product.scales.data()};
    product.packed = SharedPackedWeights(of, *kernels[0]->layout, weights);
    operands[i] = {product.packed.get(), weights, product.column_scale.data(), product.bias.data()};
  }
  std::vector<float> x = numbers(rows * kWidth);
  const std::vector<float> router = numbers(rows * kExperts);
  x[7] = 1e38f;  // one row goes through the reference
  const auto run = [&](const ParallelFor& parallel, LazyExperts* lazy = nullptr) {
    std::vector<float> y(x.size());
    MatMulOperand used[2] = {operands[0], operands[1]};
    if (lazy) used[0].packed = used[1].packed = nullptr;
    Experts({&spec, &kernels, SelectFunctions(DetectCpu(), "").activate, used[0], used[1], lazy, DataType::kFloat, rows,
             x.data(), router.data(), y.data()},
            parallel);
    return y;
  };
  const std::vector<float> expected = run(SerialFor);
  for (int i = 0; i < kRuns; ++i) Expect(run(ThreadedLoop) == expected, "experts: threads give the same bits");

  const std::array<LazyExperts::Product, 2> lazy_products = {
      {{spec.first, operands[0].weights}, {spec.second, operands[1].weights}}};
  const size_t limit = (products[0].packed->bytes() + products[1].packed->bytes()) * 3 / 2 / kExperts;
  LazyExperts nodes[2] = {{lazy_products, *kernels[0]->layout, kExperts, limit},
                          {lazy_products, *kernels[0]->layout, kExperts, limit}};
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kRuns / 10; ++i) {
        wrong += run(i % 2 ? ParallelFor(ThreadedLoop) : ParallelFor(SerialFor), &nodes[t % 2]) != expected;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  Expect(wrong == 0, "experts: packed when they are used they give the same bits");
}

// ---- the cache of contents ------------------------------------------------------------------------------------------

std::atomic<int> alive{0};
struct Value {
  explicit Value(int n) : number(n) { ++alive; }
  ~Value() { --alive; }
  int number;
};
using Cache = ContentCache<int, Value>;

void Together(int threads, const std::function<void(int)>& body) {
  std::vector<std::thread> pool;
  for (int t = 0; t < threads; ++t) pool.emplace_back(body, t);
  for (std::thread& thread : pool) thread.join();
}

// Each of two values can be made only while the other is being made too.
void TestDifferentKeysAreMadeTogether() {
  Cache cache;
  std::mutex mutex;
  std::condition_variable changed;
  int making = 0;
  std::atomic<int> met{0};
  Together(2, [&](int t) {
    cache.Get(t, [&] {
      std::unique_lock<std::mutex> lock(mutex);
      ++making;
      changed.notify_all();
      met += changed.wait_for(lock, std::chrono::seconds(30), [&] { return making == 2; });
      return std::make_unique<Value>(t);
    });
  });
  Expect(met == 2, "two keys are made at the same time");
}

void TestOneKeyIsMadeOnce() {
  Cache cache;
  std::atomic<int> made{0};
  std::vector<std::shared_ptr<const Value>> values(8);
  Together(8, [&](int t) {
    values[static_cast<size_t>(t)] = cache.Get(7, [&] {
      ++made;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      return std::make_unique<Value>(7);
    });
  });
  Expect(made == 1 && alive == 1, "one key is made once");
  for (const auto& value : values) Expect(value == values[0] && value->number == 7, "all have the same value");
  values.clear();
  Expect(alive == 0, "the last user deletes the value");
  Expect(cache.Get(7, [] { return std::make_unique<Value>(8); })->number == 8, "a value that is gone is made again");
}

// Of those that want a key, the first two fail, each in its own way; the third one's value serves all others.
void TestFailuresAreNotShared() {
  Cache cache;
  std::atomic<int> attempts{0}, thrown{0}, nothing{0}, served{0};
  std::vector<std::shared_ptr<const Value>> values(6);
  Together(6, [&](int t) {
    try {
      auto& value = values[static_cast<size_t>(t)];
      value = cache.Get(1, [&]() -> std::unique_ptr<Value> {
        const int attempt = attempts++;
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        if (attempt == 0) throw std::runtime_error("no");
        return attempt == 1 ? nullptr : std::make_unique<Value>(attempt);
      });
      ++(value ? served : nothing);
    } catch (const std::runtime_error&) {
      ++thrown;
    }
  });
  Expect(attempts == 3 && thrown == 1 && nothing == 1 && served == 4, "the next one makes what could not be made");
}

void TestFailingAllocations() {
  Cache cache;
  int failures = 0;
  for (bool done = false; !done; ++failures) {
    try {
      allocations_left = failures;
      const auto value = cache.Get(3, [] { return std::make_unique<Value>(3); });
      done = allocations_left >= 0;
      allocations_left = -1;
    } catch (const std::bad_alloc&) {
      Expect(alive == 0, "what was made is deleted where it cannot be kept");
    }
    if (failures > 100) break;
  }
  // The slot, the value and its owner's count.
  Expect(failures >= 4 && failures < 100, "each allocation of the cache fails once, and then it works");
  Expect(alive == 0, "nothing is left");
}

void TestValuesComeAndGo() {
  Cache cache;
  std::atomic<int> wrong{0};
  Together(kThreads, [&](int t) {
    for (int i = 0; i < 2000; ++i) {
      const int key = (i + t) % 3;
      wrong += cache.Get(key, [&] { return std::make_unique<Value>(key); })->number != key;
    }
  });
  Expect(wrong == 0 && alive == 0, "values that come and go are those of their keys");
}

// ---- fingerprints ---------------------------------------------------------------------------------------------------

// The definition in fingerprint.h, a piece at a time.
uint64_t Polynomial(uint64_t x, const std::vector<uint8_t>& content) {
  constexpr uint64_t kPrime = 2305843009213693951u;
  const size_t pieces = (content.size() + 27) / 28 * 4;
  unsigned __int128 sum = 0;
  for (size_t piece = 0; piece < pieces; ++piece) {
    uint64_t w = 0;
    for (size_t i = 0; i < 7; ++i) {
      const size_t at = piece * 7 + i;
      w |= static_cast<uint64_t>(at < content.size() ? content[at] : 0) << (8 * i);
    }
    sum = (sum * x + w) % kPrime;
  }
  return static_cast<uint64_t>((sum * x + content.size()) % kPrime);
}

void TestFingerprints() {
  constexpr Fingerprint kPoints = {2305843009213693950u, 1234567890123456789u};
  std::mt19937 random(2);
  for (size_t bytes = 0; bytes < 200; ++bytes) {
    std::vector<uint8_t> content(bytes, 0xFF);
    if (bytes % 2) {
      for (uint8_t& byte : content) byte = static_cast<uint8_t>(random());
    }
    const Fingerprint expected = {Polynomial(kPoints[0], content), Polynomial(kPoints[1], content)};
    Expect(FingerprintAt(kPoints, content.data(), bytes) == expected, "a fingerprint is the polynomial's value");
    for (size_t i = 0; i < bytes; ++i) {
      std::vector<uint8_t> other = content;
      other[i] ^= 1;
      Expect(FingerprintOf(other.data(), bytes) != FingerprintOf(content.data(), bytes), "a bit matters");
    }
    content.push_back(0);
    Expect(FingerprintOf(content.data(), bytes) != FingerprintOf(content.data(), bytes + 1),
           "a zero at the end matters");
  }
}

// ---- loops ----------------------------------------------------------------------------------------------------------

void TestErrorsOfThreadsReachTheCaller() {
  for (int64_t bad = 0; bad < 8; ++bad) {
    std::atomic<int> started{0};
    std::string caught;
    try {
      ThreadedFor(4)(8, [&](int64_t i) {
        ++started;
        if (i == bad) throw std::runtime_error("task " + std::to_string(i));
      });
    } catch (const std::runtime_error& error) {
      caught = error.what();
    }
    Expect(caught == "task " + std::to_string(bad) && started >= 4, "an exception reaches the caller");
  }
  std::string refused;
  try {
    ThreadedFor(-1);
  } catch (const std::invalid_argument& error) {
    refused = error.what();
  }
  Expect(refused == "threads: got -1, expected 0 or more", "fewer than no threads are refused");
}

}  // namespace

int main() {
  TestDifferentKeysAreMadeTogether();
  TestOneKeyIsMadeOnce();
  TestFailuresAreNotShared();
  TestFailingAllocations();
  TestValuesComeAndGo();
  TestFingerprints();
  TestErrorsOfThreadsReachTheCaller();
  for (const ActivationFormat format : {ActivationFormat::kNone, ActivationFormat::kMxfp6E2M3}) {
    for (const WeightFormat weights : {WeightFormat::kMxfp4, WeightFormat::kMxfp8E4M3, WeightFormat::kMxint8}) {
      const Problem problem({kK, kN, 32, format, AccuracyLevel::kBf16, weights});
      for (const Kernel* kernel : KernelTable()) {
        const bool takes = kernel->layout->holds(weights) && kernel->supports(problem.spec);
        if (!kernel->cpu_has(DetectCpu()) || !takes) continue;
        for (const bool gated : {false, true}) {
          const int wrong = Wrong(problem, *kernel, gated);
          ++(wrong ? failed : passed);
          if (wrong) std::fprintf(stderr, "FAILED %s: %d of %d runs differ\n", kernel->name, wrong, kThreads * kRuns);
        }
      }
    }
  }
  for (const CacheFormat format : {CacheFormat::kFloat, CacheFormat::kMxfp8, CacheFormat::kMxfp4}) {
    for (const int64_t length : {1, 40}) {
      for (const int64_t window : {0, 300}) TestAttention(length, format, window);
    }
  }
  for (const Gating gating : {Gating::kNone, Gating::kInterleaved, Gating::kHalves}) {
    for (const int64_t rows : {1, 70}) TestExperts(rows, gating);
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}
