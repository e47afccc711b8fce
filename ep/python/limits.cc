// What this CPU can do at most, for the benchmarks: how fast it reads memory and how fast its multipliers turn over
// registers. Each measurement runs in threads of its own, which start together; their creation is not timed.
#include "python/limits.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "kernels/kernel.h"

namespace py = pybind11;

namespace mxort {
namespace {

using Clock = std::chrono::steady_clock;

// Seconds from the common start of `threads` threads to the end of the last.
double TimeTogether(int threads, const std::function<void(int)>& work) {
  std::atomic<int> missing{threads};
  const auto count = static_cast<size_t>(threads);
  std::vector<Clock::time_point> begin(count), end(count);
  std::vector<std::thread> pool;
  for (size_t t = 0; t < count; ++t) {
    pool.emplace_back([&, t] {
      for (missing.fetch_sub(1); missing.load() > 0;) std::this_thread::yield();
      begin[t] = Clock::now();
      work(static_cast<int>(t));
      end[t] = Clock::now();
    });
  }
  for (std::thread& thread : pool) thread.join();
  const auto first = *std::min_element(begin.begin(), begin.end());
  return std::chrono::duration<double>(*std::max_element(end.begin(), end.end()) - first).count();
}

constexpr int64_t kLineBytes = 64;
constexpr int64_t kLinesPerStep = 8;

// Loads all of [p, p + lines * 64), up to a whole number of steps.
[[gnu::always_inline]] inline void ReadLines(const uint8_t* p, int64_t lines) {
  typedef int64_t Line __attribute__((vector_size(kLineBytes), aligned(1), may_alias));
  Line sum[kLinesPerStep] = {};
  for (int64_t i = 0; i + kLinesPerStep <= lines; i += kLinesPerStep) {
    for (Line& s : sum) {
      s |= *reinterpret_cast<const Line*>(p);
      p += kLineBytes;
    }
  }
  Line all = {};
  for (const Line& s : sum) all |= s;
  const int64_t used = all[0];
  asm volatile("" : : "r"(used));  // so that the loads are needed
}

void ReadPortable(const uint8_t* p, int64_t lines) { ReadLines(p, lines); }
#if defined(__x86_64__)
__attribute__((target("avx512f"))) void ReadAvx512(const uint8_t* p, int64_t lines) { ReadLines(p, lines); }

// Steps of 14 independent products of registers: more than latency times units of any CPU so far. Operands are zero,
// which costs power, not time.
#define MXORT_PEAK(name, isa, instruction, r)                                                                        \
  __attribute__((target(isa))) void name(int64_t steps) {                                                            \
    asm volatile(                                                                                                    \
        "vxorps %%xmm14,%%xmm14,%%xmm14\n\tvxorps %%xmm15,%%xmm15,%%xmm15\n"                                         \
        "1:\n\t.irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13\n\t" instruction " %%" r "14,%%" r "15,%%" r                   \
        "\\i\n"                                                                                                      \
        "\t.endr\n\tdec %0\n\tjnz 1b"                                                                                \
        : "+r"(steps)                                                                                                \
        :                                                                                                            \
        : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", \
          "xmm13", "xmm14", "xmm15", "cc");                                                                          \
  }
constexpr int kProductsPerStep = 14;
MXORT_PEAK(PeakFma256, "avx2,fma", "vfmadd231ps", "ymm")
MXORT_PEAK(PeakVnni256, "avx2", "%{vex%} vpdpbusd", "ymm")  // AVX-VNNI, not AVX-512
MXORT_PEAK(PeakFma512, "avx512f", "vfmadd231ps", "zmm")
MXORT_PEAK(PeakVnni512, "avx512f,avx512vnni", "vpdpbusd", "zmm")
MXORT_PEAK(PeakBf16, "avx512f,avx512bf16", "vdpbf16ps", "zmm")
#undef MXORT_PEAK

// Four accumulator tiles, two of A and two of B, as a GEMM would hold them. The thread ends with the measurement, and
// its tile configuration with it.
void PeakAmxBf16(int64_t steps) {
  struct alignas(64) {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } config = {};
  config.palette = 1;
  for (int i = 0; i < 8; ++i) config.row_bytes[i] = 64, config.rows[i] = 16;
  asm volatile(
      "ldtilecfg %1\n\t.irp i,0,1,2,3,4,5,6,7\n\ttilezero %%tmm\\i\n\t.endr\n"
      "1:\n\ttdpbf16ps %%tmm6,%%tmm4,%%tmm0\n\ttdpbf16ps %%tmm7,%%tmm4,%%tmm1\n\t"
      "tdpbf16ps %%tmm6,%%tmm5,%%tmm2\n\ttdpbf16ps %%tmm7,%%tmm5,%%tmm3\n\tdec %0\n\tjnz 1b\n\ttilerelease"
      : "+r"(steps)
      : "m"(config)
      : "cc", "memory");
}
#endif

// A unit that multiplies: what one step of `run` computes, counting a multiplication and an addition as two. Of one
// name the first that is available counts.
struct Unit {
  std::string name;
  bool available;
  void (*run)(int64_t steps);
  double operations_per_step;
};

std::vector<Unit> Units() {
#if defined(__x86_64__)
  const CpuFeatures cpu = DetectCpu();
  constexpr double kLanes = 16, kHalf = kLanes / 2;  // of 32 bits
  return {
      {"fma", cpu.avx512, PeakFma512, kProductsPerStep * kLanes * 2},
      {"fma", cpu.avx2_fma, PeakFma256, kProductsPerStep * kHalf * 2},
      {"vnni", cpu.avx512_vnni, PeakVnni512, kProductsPerStep * kLanes * 8},
      {"vnni", cpu.avx_vnni, PeakVnni256, kProductsPerStep * kHalf * 8},
      {"bf16", cpu.avx512 && __builtin_cpu_supports("avx512bf16"), PeakBf16, kProductsPerStep * kLanes * 4},
      {"amx", cpu.amx_bf16, PeakAmxBf16, 4 * kLanes * kLanes * 32 * 2},
  };
#else
  return {};
#endif
}

double ReadSeconds(const py::array_t<uint8_t, py::array::c_style>& data, int threads) {
  if (threads < 1) throw std::invalid_argument("threads: got " + std::to_string(threads) + ", expected 1 or more");
  auto read = ReadPortable;
#if defined(__x86_64__)
  if (DetectCpu().avx512) read = ReadAvx512;
#endif
  const uint8_t* p = data.data();
  const int64_t lines = data.size() / kLineBytes;
  const py::gil_scoped_release release;
  return TimeTogether(threads, [&](int t) {
    const int64_t begin = lines * t / threads, end = lines * (t + 1) / threads;
    read(p + begin * kLineBytes, end - begin);
  });
}

double PeakRate(const std::string& name, int threads) {
  if (threads < 1) throw std::invalid_argument("threads: got " + std::to_string(threads) + ", expected 1 or more");
  bool known = false;
  for (const Unit& unit : Units()) {
    known = known || unit.name == name;
    if (unit.name != name || !unit.available) continue;
    constexpr double kOperations = 5e8;  // one to several milliseconds
    const auto steps = static_cast<int64_t>(kOperations / unit.operations_per_step);
    const py::gil_scoped_release release;
    const double seconds = TimeTogether(threads, [&](int) { unit.run(steps); });
    return static_cast<double>(steps) * unit.operations_per_step * threads / seconds;
  }
  if (known) throw std::invalid_argument("this CPU has no " + name + " unit");
  throw std::invalid_argument("unit: got '" + name + "', expected fma, vnni, bf16 or amx");
}

}  // namespace

void BindLimits(py::module_& m) {
  m.def("read_seconds", &ReadSeconds, py::arg("data").noconvert(), py::arg("threads") = 1,
        "Seconds in which `threads` threads read the uint8 array once.");
  m.def("peak_rate", &PeakRate, py::arg("unit"), py::arg("threads") = 1,
        "Operations (multiplications and additions) per second of fma, vnni, bf16 or amx on registers alone.");
}

}  // namespace mxort
