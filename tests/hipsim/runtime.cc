#include "runtime.h"

#include <sched.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <sstream>

namespace hipsim {

Config& config() {
  static Config c;
  return c;
}

Runtime& runtime() {
  static auto* r = [] {
    auto* fresh = new Runtime;  // never destroyed
    return fresh;
  }();
  static bool configured = (configure(nullptr), true);
  (void)configured;
  return *r;
}

int& current_device() {
  static thread_local int device = 0;
  return device;
}
int& last_error() {
  static thread_local int error = 0;
  return error;
}

namespace {

int processors() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

std::map<std::string, std::map<long, int>>& pending_faults() {
  static std::map<std::string, std::map<long, int>> f;
  return f;
}

void set_option(const std::string& name, const std::string& value) {
  Config& c = config();
  if (name == "devices") {
    c.devices.clear();
    std::stringstream list(value);
    for (std::string item; std::getline(list, item, ',');) {
      size_t colon = item.find(':');
      int n = colon == std::string::npos ? 1 : atoi(item.c_str() + colon + 1);
      std::string arch = item.substr(0, colon);
      if (!known_device(arch)) {
        fprintf(stderr, "hipsim: unknown device '%s'; known: gfx950, gfx942, gfx90a\n", arch.c_str());
        abort();
      }
      for (int k = 0; k < n; k++) c.devices.push_back(arch);
    }
  } else if (name == "memory")
    c.memory = strtoull(value.c_str(), nullptr, 0);
  else if (name == "seed")
    c.seed = strtoull(value.c_str(), nullptr, 0);
  else if (name == "threads")
    c.threads = std::max(1, atoi(value.c_str()));
  else if (name == "max_steps")
    c.max_steps = strtoull(value.c_str(), nullptr, 0);
  else if (name == "on_fault")
    c.abort_on_fault = value == "abort";
  else if (name == "strict_war")
    c.strict_war = value != "0";
  else if (name == "counts")
    c.counts = value != "0";
  else if (name == "lost_after")
    c.lost_after = atol(value.c_str());
  else if (name == "fail") {
    std::stringstream list(value);
    for (std::string item; std::getline(list, item, ',');) {
      size_t colon = item.find(':'), equals = item.find('=');
      if (colon == std::string::npos || equals == std::string::npos) continue;
      pending_faults()[item.substr(0, colon)][atol(item.c_str() + colon + 1)] = atoi(item.c_str() + equals + 1);
    }
  } else {
    fprintf(stderr, "hipsim: unknown option '%s'\n", name.c_str());
    abort();
  }
}

}  // namespace

void configure(const char* text) {
  Config& c = config();
  c = Config();
  c.devices = {"gfx950"};
  c.threads = std::min(4, processors());
  pending_faults().clear();
  for (const char* name : {"devices", "memory", "seed", "threads", "max_steps", "on_fault", "strict_war", "counts",
                           "lost_after", "fail"}) {
    std::string variable = "HIPSIM_";
    for (const char* p = name; *p; p++) variable += static_cast<char>(toupper(*p));
    const char* value = getenv(variable.c_str());
    if (value && *value) set_option(name, value);
  }
  if (text) {
    std::stringstream list(text);
    for (std::string item; std::getline(list, item, ';');) {
      size_t equals = item.find('=');
      if (equals != std::string::npos) set_option(item.substr(0, equals), item.substr(equals + 1));
    }
  }
}

int device_error(int device) {
  auto it = runtime().sticky.find(device);
  return it == runtime().sticky.end() ? 0 : it->second;
}

namespace {

// HIP takes its devices down in a destructor of its library: whoever calls it later uses what is freed.
struct Teardown {
  bool done = false;
  ~Teardown() { done = true; }
} teardown;

}  // namespace

int guarded(const char* name, bool touches_device, const std::function<int()>& body) {
  if (teardown.done) {
    fprintf(stderr, "hipsim: %s is called after the runtime's own destructors\n", name);
    abort();
  }
  Runtime& r = runtime();
  std::lock_guard<std::recursive_mutex> lock(r.mutex);
  if (r.faults.empty() && !pending_faults().empty()) r.faults = pending_faults();
  long call = ++r.calls[name];
  auto f = r.faults.find(name);
  int error = 0;
  if (f != r.faults.end() && f->second.count(call)) {
    error = f->second[call];
  } else if (touches_device && device_error(current_device())) {
    error = device_error(current_device());
  } else {
    try {
      error = body();
    } catch (SimError& e) {
      r.report = e.what();
      error = e.error;
      if (error != kNotReady) fprintf(stderr, "hipsim: %s: %s\n", name, e.what());
    }
  }
  if (error && error != kNotReady) last_error() = error;
  return error;
}

StreamPtr stream_of(void* handle) {
  Runtime& r = runtime();
  u64 value = reinterpret_cast<u64>(handle);
  if (value <= 2) {  // null, hipStreamLegacy, hipStreamPerThread (here: its own blocking stream per device)
    int key = current_device() * 2 + (value == 2);
    StreamPtr& s = r.null_streams[key];
    if (!s) s = std::make_shared<Stream>(), s->device = current_device(), s->null = value != 2;
    return s;
  }
  auto it = r.streams.find(static_cast<Stream*>(handle));
  if (it == r.streams.end()) throw SimError("stream handle is not alive", kInvalidHandle);
  return it->second;
}

void enqueue(const StreamPtr& s, std::function<void()> run) {
  Runtime& r = runtime();
  Task t;
  t.run = std::move(run);
  if (s->capture) {
    if (s->capture->invalidated) throw SimError("the capture of this stream was invalidated", kCaptureInvalidated);
    s->capture->tasks.push_back(std::move(t));
    return;
  }
  // The legacy null stream is ordered with every blocking stream of its device, both ways.
  auto after = [&](const StreamPtr& other) {
    if (other != s && other->device == s->device && other->issued > other->done)
      t.after.emplace_back(other, other->issued);
  };
  if (s->null) {
    for (auto& item : r.streams)
      if (item.second->blocking) after(item.second);
    for (auto& item : r.null_streams) after(item.second);
  } else if (s->blocking) {
    auto it = r.null_streams.find(s->device * 2);
    if (it != r.null_streams.end() && it->second) after(it->second);
  }
  s->queue.push_back(std::move(t));
  s->issued++;
}

void drain(const StreamPtr& s, u64 upto) {
  Runtime& r = runtime();
  while (s->done < upto && !s->queue.empty()) {
    Task t = std::move(s->queue.front());
    s->queue.pop_front();
    for (auto& dependency : t.after) drain(dependency.first, dependency.second);
    if (!device_error(s->device)) {
      try {
        t.run();
      } catch (SimError& e) {
        r.report = e.what();
        r.sticky[s->device] = e.error;
        fprintf(stderr, "hipsim: %s\n", e.what());
        if (config().abort_on_fault) abort();
      }
    }
    s->done++;
  }
}

void drain_all(int device) {
  Runtime& r = runtime();
  std::vector<StreamPtr> all;
  for (auto& item : r.streams) all.push_back(item.second);
  for (auto& item : r.null_streams) all.push_back(item.second);
  for (auto& s : all)
    if (s && s->device == device) drain(s, s->issued);
}

void refuse_in_capture(const StreamPtr& s) {
  if (!s->capture) return;
  s->capture->invalidated = true;
  throw SimError("call is not allowed while the stream is captured", kCaptureUnsupported);
}

void refuse_while_capturing(int device, int error) {
  bool any = false;
  for (auto& item : runtime().streams)
    if (item.second->device == device && item.second->capture) any = item.second->capture->invalidated = true;
  if (any) throw SimError("call is not allowed while a stream of the device is captured; the capture is lost", error);
}

}  // namespace hipsim

// ---- for tests: hipsim_* --------------------------------------------------------------------------------------------
using namespace hipsim;

// Forgets everything (allocations, modules, streams, faults) and reads the configuration again.
HIPSIM_API void hipsim_reset(const char* options) {
  Runtime& r = runtime();
  std::lock_guard<std::recursive_mutex> lock(r.mutex);
  r.streams.clear(), r.null_streams.clear(), r.graphs.clear(), r.graph_owner.clear();
  for (Module* m : r.modules) {
    m->code->counts.clear();  // decoded text outlives its modules
    delete m;
  }
  r.modules.clear();
  for (Event* e : r.events) delete e;
  r.events.clear();
  free_all();
  r.sticky.clear(), r.faults.clear(), r.calls.clear(), r.counts.clear(), r.report.clear();
  configure(options);
  current_device() = 0, last_error() = 0;
}

// The n-th call of `function` from now on returns `error`.
HIPSIM_API void hipsim_fail(const char* function, long n, int error) {
  Runtime& r = runtime();
  std::lock_guard<std::recursive_mutex> lock(r.mutex);
  r.faults[function][r.calls[function] + n] = error;
}

// JSON: how often each function was called since the start or reset; failed calls count.
HIPSIM_API const char* hipsim_calls() {
  static thread_local std::string text;
  Runtime& r = runtime();
  std::lock_guard<std::recursive_mutex> lock(r.mutex);
  std::stringstream out;
  for (auto& item : r.calls) out << (out.tellp() ? ", " : "{") << '"' << item.first << "\": " << item.second;
  text = r.calls.empty() ? "{}" : out.str() + "}";
  return text.c_str();
}

// The next `n` captures are as if another thread had ended them right after their begin.
HIPSIM_API void hipsim_lose_captures(int n) {
  std::lock_guard<std::recursive_mutex> lock(runtime().mutex);
  runtime().lose_captures = n;
}

HIPSIM_API void hipsim_lose_device(int device) {
  std::lock_guard<std::recursive_mutex> lock(runtime().mutex);
  runtime().sticky[device] = kNoDevice;
}

HIPSIM_API const char* hipsim_report() {
  static thread_local std::string text;
  std::lock_guard<std::recursive_mutex> lock(runtime().mutex);
  text = runtime().report;
  return text.c_str();
}

// JSON: objects that are alive now, and what happened since the start or reset.
HIPSIM_API const char* hipsim_counters() {
  static thread_local std::string text;
  Runtime& r = runtime();
  std::lock_guard<std::recursive_mutex> lock(r.mutex);
  std::stringstream out;
  out << "{\"allocations\": " << live_allocations() << ", \"modules\": " << r.modules.size()
      << ", \"streams\": " << r.streams.size() << ", \"events\": " << r.events.size()
      << ", \"graphs\": " << r.graphs.size();
  for (const char* name : {"launches", "copies_to_device", "copies_to_host", "copies_on_device", "bytes_to_device",
                           "bytes_to_host", "memsets"})
    out << ", \"" << name << "\": " << r.counts[name];
  out << "}";
  text = out.str();
  return text.c_str();
}

// Bytes of [address, address + size) that neither host nor kernel wrote.
HIPSIM_API unsigned long long hipsim_unwritten(const void* address, unsigned long long size) {
  const u8* s = shadow(reinterpret_cast<u64>(address));
  return static_cast<u64>(std::count(s, s + size, 0));
}

HIPSIM_API int hipsim_op_count() { return op_count(); }
HIPSIM_API int hipsim_has_op(const char* name) { return find_op(name) != nullptr; }
