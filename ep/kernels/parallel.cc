#include "kernels/parallel.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace mxort {

void SerialFor(int64_t tasks, const std::function<void(int64_t)>& body) {
  for (int64_t i = 0; i < tasks; ++i) body(i);
}

ParallelFor ThreadedFor(int threads) {
  if (threads < 0) throw std::invalid_argument("threads: got " + std::to_string(threads) + ", expected 0 or more");
  if (threads == 0) threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  return [threads](int64_t tasks, const std::function<void(int64_t)>& body) {
    const int64_t used = std::min<int64_t>(threads, tasks);
    if (used <= 1) return SerialFor(tasks, body);
    FirstError error;
    const auto run = [&](int64_t t) {
      error.Catch([&] {
        for (int64_t i = tasks * t / used; i < tasks * (t + 1) / used; ++i) body(i);
      });
    };
    std::vector<std::thread> pool;
    pool.reserve(static_cast<size_t>(used - 1));
    for (int64_t t = 1; t < used; ++t) {
      try {
        pool.emplace_back(run, t);
      } catch (const std::exception&) {  // no more threads, or no memory for one: the caller does that share
        run(t);
      }
    }
    run(0);
    for (std::thread& thread : pool) thread.join();
    error.Rethrow();
  };
}

}  // namespace mxort
