// HIP: streams, events, graphs by capture.
#include <chrono>

#include "runtime.h"

using namespace hipsim;

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

int create_stream(void** out, unsigned flags) {
  if (!out) return kInvalidValue;
  auto s = std::make_shared<Stream>();
  s->device = current_device();
  s->blocking = !(flags & 1);  // hipStreamNonBlocking
  runtime().streams[s.get()] = s;
  *out = s.get();
  return kSuccess;
}

Event* event_of(void* handle) {
  auto* e = static_cast<Event*>(handle);
  if (!runtime().events.count(e)) throw SimError("event handle is not alive", kInvalidHandle);
  return e;
}

int create_event(void** out, unsigned flags) {
  if (!out) return kInvalidValue;
  auto* e = new Event;
  e->timing = !(flags & 2);  // hipEventDisableTiming
  runtime().events.insert(e);
  *out = e;
  return kSuccess;
}

Graph* graph_of(void* handle) {
  auto* g = static_cast<Graph*>(handle);
  if (!runtime().graphs.count(g)) throw SimError("graph handle is not alive", kInvalidHandle);
  return g;
}

int new_graph(void** out, const std::shared_ptr<Graph>& g) {
  auto* handle = new Graph(*g);
  runtime().graphs.insert(handle);
  *out = handle;
  return kSuccess;
}

}  // namespace

HIPSIM_API int hipStreamCreate(void** s) {
  return guarded("hipStreamCreate", true, [&] { return create_stream(s, 0); });
}
HIPSIM_API int hipStreamCreateWithFlags(void** s, unsigned flags) {
  return guarded("hipStreamCreateWithFlags", true, [&] { return create_stream(s, flags); });
}
HIPSIM_API int hipStreamCreateWithPriority(void** s, unsigned flags, int) {
  return guarded("hipStreamCreateWithPriority", true, [&] { return create_stream(s, flags); });
}
HIPSIM_API int hipDeviceGetStreamPriorityRange(int* least, int* greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = 0;
  return kSuccess;
}
HIPSIM_API int hipStreamDestroy(void* stream) {
  return guarded("hipStreamDestroy", false, [&]() -> int {
    if (reinterpret_cast<u64>(stream) <= 2) return kInvalidHandle;
    StreamPtr s = stream_of(stream);
    drain(s, s->issued);
    runtime().streams.erase(s.get());
    return device_error(s->device);
  });
}
HIPSIM_API int hipStreamSynchronize(void* stream) {
  return guarded("hipStreamSynchronize", true, [&] {
    StreamPtr s = stream_of(stream);
    refuse_in_capture(s);
    if (s->null)
      drain_all(s->device);
    else
      drain(s, s->issued);
    return device_error(s->device);
  });
}
// A poll makes progress of one task, so that polling loops end and code that polls once too few is seen.
HIPSIM_API int hipStreamQuery(void* stream) {
  return guarded("hipStreamQuery", true, [&]() -> int {
    StreamPtr s = stream_of(stream);
    refuse_in_capture(s);
    if (s->done == s->issued) return device_error(s->device);
    drain(s, s->done + 1);
    return kNotReady;
  });
}
HIPSIM_API int hipStreamGetDevice(void* stream, int* device) {
  return guarded("hipStreamGetDevice", false, [&]() -> int {
    *device = stream_of(stream)->device;
    return kSuccess;
  });
}
HIPSIM_API int hipStreamGetFlags(void* stream, unsigned* flags) {
  return guarded("hipStreamGetFlags", false, [&]() -> int {
    *flags = stream_of(stream)->blocking ? 0 : 1;
    return kSuccess;
  });
}
HIPSIM_API int hipStreamWaitEvent(void* stream, void* event, unsigned) {
  return guarded("hipStreamWaitEvent", true, [&]() -> int {
    StreamPtr s = stream_of(stream);
    Event* e = event_of(event);
    if (!e->recorded) return kSuccess;
    if (e->capture) {  // the stream joins the capture
      s->capture = e->capture;
      return kSuccess;
    }
    StreamPtr other = e->stream;
    u64 serial = e->serial;
    enqueue(s, [other, serial] { drain(other, serial); });
    return device_error(s->device);
  });
}
HIPSIM_API int hipLaunchHostFunc(void* stream, void (*f)(void*), void* data) {
  return guarded("hipLaunchHostFunc", true, [&]() -> int {
    StreamPtr s = stream_of(stream);
    enqueue(s, [f, data] { f(data); });
    return kSuccess;
  });
}

HIPSIM_API int hipEventCreate(void** e) {
  return guarded("hipEventCreate", true, [&] { return create_event(e, 0); });
}
HIPSIM_API int hipEventCreateWithFlags(void** e, unsigned flags) {
  return guarded("hipEventCreateWithFlags", true, [&] { return create_event(e, flags); });
}
HIPSIM_API int hipEventDestroy(void* event) {
  return guarded("hipEventDestroy", false, [&]() -> int {
    Event* e = event_of(event);
    runtime().events.erase(e);
    delete e;
    return kSuccess;
  });
}
HIPSIM_API int hipEventRecord(void* event, void* stream) {
  return guarded("hipEventRecord", true, [&]() -> int {
    StreamPtr s = stream_of(stream);
    Event* e = event_of(event);
    e->capture = s->capture;
    e->when = std::make_shared<double>(-1);
    auto when = e->when;
    enqueue(s, [when] { *when = now(); });
    e->stream = s, e->serial = s->issued, e->recorded = true;
    return device_error(s->device);
  });
}
HIPSIM_API int hipEventSynchronize(void* event) {
  return guarded("hipEventSynchronize", true, [&]() -> int {
    Event* e = event_of(event);
    if (!e->recorded) return kSuccess;
    if (e->capture && e->stream->capture) return kCaptureUnsupported;
    drain(e->stream, e->serial);
    return device_error(e->stream->device);
  });
}
HIPSIM_API int hipEventQuery(void* event) {
  return guarded("hipEventQuery", true, [&]() -> int {
    Event* e = event_of(event);
    if (!e->recorded || e->stream->done >= e->serial) return e->stream ? device_error(e->stream->device) : 0;
    drain(e->stream, e->stream->done + 1);
    return kNotReady;
  });
}
// Milliseconds that the simulating CPU spent: the only time there is, and no statement about a GPU.
HIPSIM_API int hipEventElapsedTime(float* ms, void* start, void* stop) {
  return guarded("hipEventElapsedTime", true, [&]() -> int {
    Event *a = event_of(start), *b = event_of(stop);
    if (!a->recorded || !b->recorded || !a->timing || !b->timing) return kInvalidHandle;
    if (*a->when < 0 || *b->when < 0) return kNotReady;
    *ms = static_cast<float>((*b->when - *a->when) * 1e3);
    return kSuccess;
  });
}

HIPSIM_API int hipStreamBeginCapture(void* stream, int) {
  return guarded("hipStreamBeginCapture", true, [&]() -> int {
    StreamPtr s = stream_of(stream);
    if (s->null) return kCaptureUnsupported;
    if (s->capture) return kIllegalState;
    s->capture = std::make_shared<Graph>();
    s->capture->device = s->device;
    if (runtime().lose_captures > 0) runtime().lose_captures--, s->capture->invalidated = true;
    return kSuccess;
  });
}
HIPSIM_API int hipStreamIsCapturing(void* stream, int* status) {
  return guarded("hipStreamIsCapturing", true, [&]() -> int {
    const auto& capture = stream_of(stream)->capture;
    *status = !capture ? 0 : capture->invalidated ? 2 : 1;  // hipStreamCaptureStatus
    return kSuccess;
  });
}
HIPSIM_API int hipStreamEndCapture(void* stream, void** graph) {
  return guarded("hipStreamEndCapture", true, [&]() -> int {
    StreamPtr s = stream_of(stream);
    if (!s->capture) return kIllegalState;
    std::shared_ptr<Graph> g = s->capture;
    for (auto& item : runtime().streams)
      if (item.second->capture == g) item.second->capture.reset();
    *graph = nullptr;
    return g->invalidated ? kCaptureInvalidated : new_graph(graph, g);
  });
}
static int instantiate(const char* name, void** exec, void* graph) {
  return guarded(name, true, [&]() -> int { return new_graph(exec, std::make_shared<Graph>(*graph_of(graph))); });
}
HIPSIM_API int hipGraphInstantiate(void** exec, void* graph, void*, char*, size_t) {
  return instantiate("hipGraphInstantiate", exec, graph);
}
HIPSIM_API int hipGraphInstantiateWithFlags(void** exec, void* graph, unsigned long long) {
  return instantiate("hipGraphInstantiateWithFlags", exec, graph);
}
HIPSIM_API int hipGraphLaunch(void* exec, void* stream) {
  return guarded("hipGraphLaunch", true, [&]() -> int {
    StreamPtr s = stream_of(stream);
    if (!s->capture) refuse_while_capturing(s->device, kCaptureImplicit);  // ROCm asks its null stream
    for (Task& t : graph_of(exec)->tasks) enqueue(s, t.run);
    return device_error(s->device);
  });
}
static int destroy_graph(const char* name, void* graph) {
  return guarded(name, false, [&]() -> int {
    Graph* g = graph_of(graph);
    runtime().graphs.erase(g);
    delete g;
    return kSuccess;
  });
}
HIPSIM_API int hipGraphDestroy(void* graph) { return destroy_graph("hipGraphDestroy", graph); }
HIPSIM_API int hipGraphExecDestroy(void* exec) { return destroy_graph("hipGraphExecDestroy", exec); }
