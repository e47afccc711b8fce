#include "kernels/parallel.h"

#include <algorithm>
#include <system_error>
#include <thread>
#include <vector>

namespace mxort {

void SerialFor(int64_t tasks, const std::function<void(int64_t)>& body) {
  for (int64_t i = 0; i < tasks; ++i) body(i);
}

ParallelFor ThreadedFor(int threads) {
  if (threads == 0) threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  return [threads](int64_t tasks, const std::function<void(int64_t)>& body) {
    const int64_t used = std::min<int64_t>(threads, tasks);
    std::vector<std::thread> pool;
    const auto run = [&](int64_t t) {
      for (int64_t i = tasks * t / used; i < tasks * (t + 1) / used; ++i) body(i);
    };
    for (int64_t t = 1; t < used; ++t) {
      try {
        pool.emplace_back(run, t);
      } catch (const std::system_error&) {  // no more threads to be had: the caller does that share
        run(t);
      }
    }
    if (used > 0) run(0);
    for (std::thread& thread : pool) thread.join();
  };
}

}  // namespace mxort
