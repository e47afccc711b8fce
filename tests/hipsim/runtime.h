// The runtime behind the HIP entry points: devices, lazily executed streams, error state, injected faults.
//
// Work given to a stream runs only when something waits for it (or polls it): a program that forgets to synchronise
// reads stale data here every time, not once in a while.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>

#include "memory.h"
#include "sim.h"

#define HIPSIM_API extern "C" __attribute__((visibility("default")))

namespace hipsim {

enum HipError {  // values of hipError_t
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kInvalidConfiguration = 9,
  kInvalidDevicePointer = 17,
  kNoDevice = 100,
  kInvalidDevice = 101,
  kInvalidImage = 200,
  kNoBinaryForGpu = 209,
  kFileNotFound = 301,
  kInvalidHandle = 400,
  kIllegalState = 401,
  kNotFound = 500,
  kNotReady = 600,
  kIllegalAddress = 700,
  kPeerAlreadyEnabled = 704,
  kPeerNotEnabled = 705,
  kLaunchFailure = 719,
  kNotSupported = 801,
  kCaptureUnsupported = 900,
  kCaptureInvalidated = 901,
  kCaptureUnmatched = 903,
  kCaptureImplicit = 906,
  kUnknown = 999,
};

struct Stream;
using StreamPtr = std::shared_ptr<Stream>;

struct Task {
  std::function<void()> run;
  std::vector<std::pair<StreamPtr, u64>> after;
};

struct Graph {
  std::vector<Task> tasks;  // in an order in which they may run
  int device = 0;
  bool invalidated = false;  // as a capture: its end is an error
};

struct Stream {
  int device = 0;
  bool blocking = true, null = false;
  std::deque<Task> queue;
  u64 issued = 0, done = 0;
  std::shared_ptr<Graph> capture;
};

struct Event {
  StreamPtr stream;
  u64 serial = 0;
  bool recorded = false, timing = true;
  std::shared_ptr<double> when =
      std::make_shared<double>(-1);  // seconds of the simulating host; see hipEventElapsedTime
  std::shared_ptr<Graph> capture;
};

struct Function;

struct Runtime {
  std::recursive_mutex mutex;
  std::map<int, StreamPtr> null_streams;
  std::map<Stream*, StreamPtr> streams;
  std::set<Event*> events;
  std::set<Module*> modules;
  std::set<Graph*> graphs;
  std::map<Graph*, std::shared_ptr<Graph>> graph_owner;
  std::map<int, int> sticky;                          // device -> error that stays
  std::map<std::string, std::map<long, int>> faults;  // function -> call number -> error
  std::map<std::string, long> calls;
  std::map<std::string, long> counts;  // launches, copies ...
  std::string report;                  // of the last stopped kernel
  int lose_captures = 0;
};
Runtime& runtime();
void configure(const char* text);  // "devices=...;seed=..." or null: from the environment

bool known_device(const std::string& arch);
int& current_device();
int& last_error();

// Runs `body` under the lock: injected faults, lost devices and SimErrors become error codes.
int guarded(const char* name, bool touches_device, const std::function<int()>& body);

StreamPtr stream_of(void* handle);  // throws SimError(kInvalidHandle)
void enqueue(const StreamPtr& s, std::function<void()> run);
void drain(const StreamPtr& s, u64 upto);
void drain_all(int device);
int device_error(int device);  // sticky error or 0
// What a capture does not survive, as ROCm 7 has it: a wait for the stream that is captured; and for every capture of a
// device, in any mode and of whichever thread, a call that concerns the whole device. The call fails too, with `error`.
void refuse_in_capture(const StreamPtr& s);
void refuse_while_capturing(int device, int error);

}  // namespace hipsim
